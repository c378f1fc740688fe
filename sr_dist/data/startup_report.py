"""The first lines of a run's log: the data that the run will read, and what may slow it down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sr_dist.core import launch_env, ranks
from sr_dist.core.printable import plural
from sr_dist.data.crops import DataSet
from sr_dist.data.images import FEW_IMAGES
from sr_dist.data.loader import Loader
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import RemoteShards
from sr_dist.data.select import short_groups
from sr_dist.data.unindexed import INDEX, NOT_PROMISED, UnindexedTars
from sr_dist.recipe.sections import Data

SAME_FILES = "they read the same files at the same time, which slows down a network disk, but not a local one"


def startup_lines(loader: Loader) -> Iterator[str]:
    shards = loader.source.data_sets[0].reader.shards
    yield from _unindexed_lines(shards, loader.samples) if isinstance(shards, UnindexedTars) else _indexed_lines(loader)


def _unindexed_lines(tars: UnindexedTars, samples: int) -> Iterator[str]:
    yield f"data: {plural(len(tars.urls), 'tar')} without an index, streamed by WebDataset's reader"
    yield f"warning: data.reader: webdataset does not promise {'; '.join(NOT_PROMISED)}; {INDEX}"
    if not samples:
        yield "data: the number of images is not known, so `epoch` is null; --data.samples=N states it"


def _indexed_lines(loader: Loader) -> Iterator[str]:
    data_sets = loader.source.data_sets
    for source, data_set, weight in zip(loader.data.sources, data_sets, loader.source.mix.weights, strict=True):
        yield f"data: {_epochs(loader, source, data_set, weight)}"
        yield from short_groups(data_set.reader.shards, data_set.portion)
    yield f"data: {_bytes_to_read(loader)}"
    if loader.source.substitute:
        for data_set in data_sets:
            yield from (f"warning: {problem}; its samples will be replaced" for problem in data_set.reader.shards.damage())
    num_shards, num_workers = sum(map(_num_shards, data_sets)), ranks.size() * max(loader.data.workers, 1)
    if num_shards < num_workers:
        effect = "most of them wait until the first shards are fetched" if loader.remote else SAME_FILES
        counts = f"{plural(num_shards, 'shard')} for {num_workers} workers"
        yield f"warning: {counts}: {effect}; shards.build --per_shard makes more shards"
    workers, cores = launch_env.num_local_ranks() * loader.data.workers, launch_env.available_cores()
    if workers > cores:
        yield f"warning: data.workers: {plural(workers, 'worker')} on {plural(cores, 'core')}; fewer may be faster"
    caches = [data_set.reader.shards.cache for data_set in data_sets if isinstance(data_set.reader.shards, RemoteShards)]
    if caches:
        yield from _cache_lines(loader, caches[0])


def validation_lines(data: Data, counts: Mapping[str, int]) -> Iterator[str]:
    """`counts`: the images of each set, by its name."""
    for name, images in counts.items():
        source = f"part 2 of data.train, split {list(data.split)}" if data.split else f"'{data.validation_sets[name]}'"
        about = f"validation of {name}" if name else "validation"
        yield f"{about}: {plural(images, 'image')}, {source}"
        if images < FEW_IMAGES:
            yield f"warning: {about} has fewer than {FEW_IMAGES} images: small differences of its numbers are chance"


def _epochs(loader: Loader, source: str, data_set: DataSet, weight: int) -> str:
    total, steps, batch = sum(loader.source.mix.weights), loader.config.steps, loader.data.batch
    epochs = steps * batch * weight / total / data_set.order.samples
    share = f" of '{source}', {weight} of {total} images" if len(loader.source.data_sets) > 1 else ""
    return (
        f"{plural(data_set.order.samples, 'sample')} in {plural(_num_shards(data_set), 'shard')}{share}; "
        f"{plural(steps, 'step')} of {batch} are {f'{epochs:.1f}' if epochs >= 0.05 else f'{epochs:.1g}'} epochs"
    )


def _bytes_to_read(loader: Loader) -> str:
    """Bytes per image are known in advance; images per second are not."""
    weights = loader.source.mix.weights
    sizes = [_num_bytes(data_set) / data_set.reader.shards.manifest.samples for data_set in loader.source.data_sets]
    image = sum(size * weight for size, weight in zip(sizes, weights, strict=True)) / sum(weights)
    return (
        f"{image * loader.data.batch / 1e6:,.2f} MB to read per step, {image * loader.samples / 1e6:,.1f} MB per epoch; "
        f"100 images/s need {image / 1e4:,.1f} MB/s"
    )


def _cache_lines(loader: Loader, cache: Cache) -> Iterator[str]:
    data_sets, num_nodes = loader.source.data_sets, len(set(loader.node_of))
    window = sum(_num_bytes(data_set) * min(data_set.window / data_set.order.samples, 1) for data_set in data_sets)
    yield f"data: shards are fetched to '{cache.folder}', up to {cache.limit / 1e9:g} GB, on {plural(num_nodes, 'node')}"
    if min(2 * window, sum(map(_num_bytes, data_sets))) > cache.limit:
        yield (
            f"warning: data.cache_gb: {cache.limit / 1e9:g} holds less than two windows (data.window) of shards, "
            f"{2 * window / 1e9:.2g} GB: shards will be fetched again and again"
        )


def _num_shards(data_set: DataSet) -> int:
    return len(data_set.reader.shards.manifest.shards)


def _num_bytes(data_set: DataSet) -> int:
    return sum(entry.bytes for entry in data_set.reader.shards.manifest.shards)
