"""Cuts a data set into tar shards with indexes and a manifest.

    python -m shards.build SOURCE INPUT OUT [--option=value ...]

  SOURCE         folder          images in a folder
                 class_folders   one folder per class, as ImageNet comes
                 mnist           idx files, gzipped or not; --part=train|test
                 celeba          faces with list_attr_celeba.txt; --part=train|validation|test --images=FOLDER
                 sample_photos   tiles of photographs that scikit-image ships; INPUT is `train` or `validation`
  INPUT          where the source finds its images
  OUT            the folder of shards to make
  --per_shard=1000   inputs per shard; 50 with --tile, for one image gives many samples then
  --seed=0           of the order, which is permuted so that no shard is one class
  --name=NAME        shards are called NAME-000000.tar; the name of OUT by default
  --on_bad=skip      or `fail`: stop at the first image that cannot be a sample

What happens to an image, in this order; without any of it (or with --keep) its bytes are stored as they are:
  --min_side=1       smaller images are rejected
  --max_pixels=200000000   larger ones are rejected by their header, before they are decoded
  --centre_crop=N    the N x N pixels in the middle
  --resize=N         --resize_mode=short (the shorter side becomes N), squash (N x N), crop (the middle square becomes N x N)
  --tile=N           --stride=N: cut into tiles of N x N; sample_photos has tiles of 96 of its own
  --format=png       or jpg or webp, with --quality=95; by default JPEG stays JPEG and all others become PNG

CelebA as the class-conditional study has it: celeba --centre_crop=144 --resize=64 --format=png (for images of half the size: 72).

CMYK, palettes, 1 bit, BMP, TIFF, still GIF and photographs that EXIF turns become upright PNG of the same pixels. Broken,
moving and many-paged ones are rejected. The same input and options give the same bytes. Inputs that cannot become samples are
counted and listed with their reason in OUT/rejects.jsonl.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from shards.items import Item, Listing
from shards.pixels import Preparation
from shards.writer import Making, write_shard
from sr_dist import __version__, config, door, plugins
from sr_dist.config import Absent, Settings
from sr_dist.data.format import FORMAT, Manifest, write_manifest
from sr_dist.data.order import permutation, share
from sr_dist.errors import UserError, nearest
from sr_dist.files import write_whole

SOURCES = "shards.sources"
PER_SHARD = 1000


class Build(Settings):
    """The options that all sources share."""

    name: str | None = None
    per_shard: Annotated[int | None, Absent, Field(gt=0)] = None
    seed: int = 0
    on_bad: Literal["skip", "fail"] = "skip"


def main(words: door.Words, options: door.Options) -> None:
    source, root, out = door.only(words, "SOURCE", "INPUT", "OUT")
    build(source, root, Path(out), options)


def build(source: str, root: str, out: Path, options: dict[str, str]) -> Manifest:
    if "." not in source and source not in plugins.names(SOURCES):
        raise UserError(f"SOURCE: no '{source}'{nearest(source, plugins.names(SOURCES))}")
    module, _ = plugins.resolve(SOURCES, source, {}, "SOURCE")
    own, how, shared = _sorted_out(source, options, module.Config, Preparation, Build)
    chosen, preparation = config.typed(Build, shared), config.typed(Preparation, how)
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
    preparation.check(listing.scale)
    return _write(
        out,
        listing,
        getattr(module, "read", read_file),
        chosen,
        preparation,
        {"name": source, "options": {**how, **own}, **listing.about},
    )


def _sorted_out(source: str, options: dict[str, str], *takers: type[Settings]) -> list[dict[str, str]]:
    """The options of each taker; the source comes first, for it may give a meaning of its own to a name."""
    found: list[dict[str, str]] = [{} for _ in takers]
    for key, value in options.items():
        for part, taker in zip(found, takers, strict=True):
            if key in taker.model_fields:
                part[key] = value
                break
        else:
            known = [name for taker in takers for name in taker.model_fields]
            raise UserError(f"{key}: unknown option of '{source}'{nearest(key, known)}")
    return found


def _write(out: Path, listing: Listing, read: Any, chosen: Build, how: Preparation, source: dict[str, Any]) -> Manifest:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"OUT: '{out}' cannot be made: {problem.strerror}") from None
    count = len(listing.items)
    order = permutation(count, chosen.seed, 0, use=0)
    per_shard = chosen.per_shard or (PER_SHARD if not how.tile else PER_SHARD // 20)
    num_shards = -(-count // per_shard)
    name = chosen.name or out.resolve().name
    making = Making(out, read, how, listing.attributes, listing.scale, chosen.on_bad == "fail")
    written = []
    for number in range(num_shards):
        items = [listing.items[i] for i in order[slice_of(share(count, num_shards, number))]]
        written.append(write_shard(f"{name}-{number:06d}.tar", items, making))
    rejects = [*listing.rejects, *(reject for shard in written for reject in shard.rejects)]
    write_whole(out / "rejects.jsonl", "".join(json.dumps(reject) + "\n" for reject in rejects).encode())
    samples = sum(shard.entry.samples for shard in written)
    if not samples:
        raise UserError(f"INPUT: none of {count} images can be a sample; the reasons are in '{out / 'rejects.jsonl'}'")
    manifest = Manifest(
        format=FORMAT,
        samples=samples,
        min_side=min(shard.min_side for shard in written if shard.min_side),
        scale=listing.scale,
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


def read_file(item: Item) -> bytes:
    return Path(item.path).read_bytes()


def _libjpeg() -> str:
    from PIL import features

    return str(features.version_codec("jpg"))


if __name__ == "__main__":
    sys.exit(door.run(main))
