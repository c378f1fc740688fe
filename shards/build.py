"""Cuts a data set into tar shards with indexes and a manifest.

    python -m shards.build SOURCE INPUT OUT [--option=value ...]

  SOURCE         folder          images in a folder
                 class_folders   one folder per class, as ImageNet comes
                 sample_photos   tiles of photographs that scikit-image ships; INPUT is `train` or `validation`
  INPUT          where the source finds its images
  OUT            the folder of shards to make
  --per_shard=1000   samples per shard
  --seed=0           of the order, which is permuted so that no shard is one class
  --name=NAME        shards are called NAME-000000.tar; the name of OUT by default
  --min_side=1       smaller images are rejected
  --on_bad=skip      or `fail`: stop at the first image that cannot be a sample
  --tile=96 --stride=96   (sample_photos) pixels per tile, and from tile to tile

JPEG, PNG and WebP images become samples: RGB, grey, with or without alpha, 16-bit grey. Palette, CMYK and other formats
are rejected. The bytes of images are kept as they are. The same input and options give the same bytes. Inputs that cannot become
samples are counted and listed with their reason in OUT/rejects.jsonl.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sr_dist import __version__, config, door, plugins
from sr_dist.config import Settings
from sr_dist.data.format import FORMAT, Manifest, write_manifest
from sr_dist.data.order import permutation, share
from sr_dist.errors import UserError, nearest
from sr_dist.files import write_whole

SOURCES = "shards.sources"


class Build(Settings):
    """The options that all sources share."""

    name: str | None = None
    per_shard: Annotated[int, Field(gt=0)] = 1000
    seed: int = 0
    min_side: Annotated[int, Field(gt=0)] = 1
    on_bad: Literal["skip", "fail"] = "skip"


def main(words: door.Words, options: door.Options) -> None:
    source, root, out = door.only(words, "SOURCE", "INPUT", "OUT")
    build(source, root, Path(out), options)


def build(source: str, root: str, out: Path, options: dict[str, str]) -> Manifest:
    shared = {key: value for key, value in options.items() if key in Build.model_fields}
    own = {key: value for key, value in options.items() if key not in shared}
    if "." not in source and source not in plugins.names(SOURCES):
        raise UserError(f"SOURCE: no '{source}'{nearest(source, plugins.names(SOURCES))}")
    module, _ = plugins.resolve(SOURCES, source, {}, "SOURCE")
    for key in own:
        if key not in module.Config.model_fields:
            raise UserError(
                f"{key}: unknown option of '{source}'{nearest(key, [*Build.model_fields, *module.Config.model_fields])}"
            )
    chosen = config.typed(Build, shared)
    name = chosen.name or out.resolve().name
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"name: '{name}' cannot begin the names of shards")
    if not root:
        raise UserError("INPUT: is empty")
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT: '{out}' is a file; shards need a folder")
    listing = module.listing(root, config.typed(module.Config, own))
    if not listing.items:
        raise UserError(f"INPUT: no images in '{root}'")
    if (out / "manifest.json").exists():
        raise UserError(f"OUT: '{out}' already holds shards (manifest.json); remove them or choose another folder")
    return _write(out, listing, getattr(module, "read", _read_file), chosen, {"name": source, "options": own, **listing.about})


def _write(out: Path, listing: Any, read: Any, chosen: Build, source: dict[str, Any]) -> Manifest:
    from shards.writer import Limits, write_shard

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"OUT: '{out}' cannot be made: {problem.strerror}") from None
    count = len(listing.items)
    order = permutation(count, chosen.seed, 0, use=0)
    num_shards = -(-count // chosen.per_shard)
    name = chosen.name or out.resolve().name
    written = []
    for number in range(num_shards):
        items = [listing.items[i] for i in order[slice_of(share(count, num_shards, number))]]
        limits = Limits(min_side=chosen.min_side, stop_at_first=chosen.on_bad == "fail")
        shard = write_shard(out, f"{name}-{number:06d}.tar", items, read, len(listing.attributes), limits)
        written.append(shard)
    rejects = [reject for shard in written for reject in shard.rejects]
    write_whole(out / "rejects.jsonl", "".join(json.dumps(reject) + "\n" for reject in rejects).encode())
    samples = sum(shard.entry.samples for shard in written)
    if not samples:
        raise UserError(f"INPUT: none of {count} images can be a sample; the reasons are in '{out / 'rejects.jsonl'}'")
    manifest = Manifest(
        format=FORMAT,
        samples=samples,
        min_side=min(shard.min_side for shard in written if shard.min_side),
        classes=tuple(listing.classes),
        attributes=tuple(listing.attributes),
        order={"seed": chosen.seed},
        shards=tuple(shard.entry for shard in written),
        source=source,
        tool={"sr_dist": __version__, "pillow": metadata.version("pillow"), "libjpeg": _libjpeg()},
    )
    write_manifest(out, manifest)
    print(f"{samples} samples in {num_shards} shards, {len(listing.classes)} classes, smallest side {manifest.min_side}: {out}")
    if rejects:
        print(f"{len(rejects)} inputs were rejected; the reasons are in {out / 'rejects.jsonl'}")
    return manifest


def slice_of(part: range) -> slice:
    return slice(part.start, part.stop)


def _read_file(item: Any) -> bytes:
    return Path(item.path).read_bytes()


def _libjpeg() -> str:
    from PIL import features

    return str(features.version_codec("jpg"))


if __name__ == "__main__":
    sys.exit(door.run(main))
