"""What a run is going to read, in the lines with which its log begins, and what may slow it down."""

from __future__ import annotations

from collections.abc import Iterator

from sr_dist.core import ranks
from sr_dist.data.crops import Samples
from sr_dist.data.loader import Stream
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import RemoteShards


def outlook(stream: Stream, sources: tuple[str, ...]) -> Iterator[str]:
    for source, part, weight in zip(sources, stream.source.parts, stream.source.mix.weights, strict=True):
        yield f"data: {_epochs(stream, source, part, weight)}"
    yield f"data: {_rate(stream)}"
    if stream.source.substitute:
        for part in stream.source.parts:
            yield from (f"warning: {problem}; its samples will be replaced" for problem in part.reader.shards.damage())
    shards, processes = sum(map(_shards, stream.source.parts)), ranks.size() * max(stream.settings.workers, 1)
    if shards < processes:
        why = "most of them wait while the first are fetched" if stream.remote else "they read the same few files side by side, "
        why += "" if stream.remote else "which a local disk does not mind and a network disk does"
        yield f"warning: {shards} shards for {processes} loading processes: {why}; shards.build --per_shard makes more"
    caches = [part.reader.shards.cache for part in stream.source.parts if isinstance(part.reader.shards, RemoteShards)]
    if caches:
        yield from _about_cache(stream, caches[0])


def _epochs(stream: Stream, source: str, part: Samples, weight: int) -> str:
    total, images = sum(stream.source.mix.weights), stream.steps_to_do * stream.settings.batch
    share = f" of '{source}', {weight} of {total} images" if len(stream.source.parts) > 1 else ""
    return (
        f"{part.order.samples:,} samples in {_shards(part):,} shards{share}; {stream.steps_to_do:,} steps of "
        f"{stream.settings.batch} are {images * weight / total / part.order.samples:.1f} epochs"
    )


def _rate(stream: Stream) -> str:
    """Bytes per image are known before, images per second are not."""
    weights = stream.source.mix.weights
    sizes = [_bytes(part) / part.reader.shards.manifest.samples for part in stream.source.parts]
    image = sum(size * weight for size, weight in zip(sizes, weights, strict=True)) / sum(weights)
    return (
        f"{image * stream.settings.batch / 1e6:,.2f} MB to read per step, {image * stream.samples / 1e6:,.1f} MB per epoch; "
        f"100 images/s need {image / 1e4:,.1f} MB/s"
    )


def _about_cache(stream: Stream, cache: Cache) -> Iterator[str]:
    window = sum(_bytes(part) * min(part.window / part.order.samples, 1) for part in stream.source.parts)
    yield f"data: shards are fetched to '{cache.folder}', up to {cache.limit / 1e9:g} GB, on {len(set(stream.node_of))} node(s)"
    if min(2 * window, sum(map(_bytes, stream.source.parts))) > cache.limit:
        yield (
            f"warning: data.cache_gb: {cache.limit / 1e9:g} holds less than two windows (data.window) of shards, "
            f"{2 * window / 1e9:.2g} GB: they will be fetched again and again"
        )


def _shards(part: Samples) -> int:
    return len(part.reader.shards.manifest.shards)


def _bytes(part: Samples) -> int:
    return sum(entry.bytes for entry in part.reader.shards.manifest.shards)
