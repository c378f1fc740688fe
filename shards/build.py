"""Cuts a data set into tar shards with indexes and a manifest.

    python -m shards.build SOURCE INPUT OUT [--option=value ...]

  SOURCE         folder          images in a folder
                 class_folders   one folder per class, as ImageNet comes
                 imagenet_val    ImageNet's validation images; --truth=FILE says their classes, --synsets=FILE the devkit's order
                 pairs           HR images and, in --lr=FOLDER, LR images of the same names, --scale=4 times smaller
                 mnist           idx files, gzipped or not; --part=train|test
                 celeba          faces with list_attr_celeba.txt; --part=train|validation|test --images=FOLDER
                 sample_photos   tiles of photographs that scikit-image ships; INPUT is `train` or `validation`
  INPUT          where the source finds its images
  OUT            the folder of shards to make
  --workers=1        processes
  --task=0/4         builds one of four shares of the shards (0/4, 1/4, 2/4, 3/4), on any machine that sees INPUT and OUT
  --merge            writes the manifest when all tasks are done
  --per_shard=1000   inputs per shard; 50 with --tile, for one image gives many samples then
  --per_class=N      so many inputs of each class
  --seed=0           of the order, which is permuted so that no shard is one class
  --name=NAME        shards are called NAME-000000.tar; the name of OUT by default
  --on_bad=skip      or `fail`: stop at the first image that cannot be a sample, and leave nothing
  --dedupe           leaves samples with the bytes of an earlier one out of the indexes

What happens to an image, in this order; without any of it (or with --keep) its bytes are stored as they are:
  --min_side=1       smaller images are rejected
  --max_pixels=200000000   larger ones are rejected by their header, before they are decoded
  --centre_crop=N    the N x N pixels in the middle
  --resize=N         --resize_mode=short (the shorter side becomes N), squash (N x N), crop (the middle square becomes N x N)
  --tile=N           --stride=N: cut into tiles of N x N; sample_photos has tiles of 96 of its own
  --format=png       or jpg or webp, with --quality=95; by default JPEG stays JPEG and all others become PNG

CelebA as the class-conditional study has it: celeba --centre_crop=144 --resize=64 --format=png (for images of half the size: 72).

CMYK, palettes, 1 bit, BMP, TIFF, still GIF and photographs that EXIF turns become upright PNG of the same pixels. Broken,
moving and many-paged ones are rejected. The same input and options give the same bytes for any number of workers and tasks; a
build that was killed is continued by the same command. OUT/rejects.jsonl lists what cannot be a sample, with the reason,
OUT/duplicates.jsonl the samples that have the bytes of another.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shards.merge import merge
from shards.pixels import Preparation
from shards.plan import BEGUN, Plan, chosen_order, facts
from shards.work import finished_shards
from shards.writer import Making, read_file
from sr_dist.core import cli, config, plugins
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError, nearest
from sr_dist.data.format import Manifest, read_manifest
from sr_dist.data.order import share

SOURCES = "shards.sources"
PER_SHARD, PER_SHARD_OF_TILES = 1000, 50
Count = Annotated[int | None, Absent, Field(gt=0)]


class Build(Settings):
    """The options that all sources share, but for those of `Preparation`."""

    name: str | None = None
    per_shard: Count = None
    per_class: Count = None
    seed: int = 0
    on_bad: Literal["skip", "fail"] = "skip"
    dedupe: bool = False
    workers: Annotated[int, Field(gt=0, le=1024)] = 1
    task: Annotated[str | None, Absent] = None
    merge: bool = False

    def tasks(self) -> tuple[int, int]:
        """(which, of how many)"""
        found = re.fullmatch(r"(\d+)/(\d+)", self.task or "0/1")
        if not found or not int(found[1]) < int(found[2]):
            raise UserError(f"task: '{self.task}' is not a share such as 0/4, 1/4, 2/4 or 3/4; the first is 0")
        if self.task and self.merge:
            raise UserError("merge: when all tasks are done, one command without --task merges what they made")
        return int(found[1]), int(found[2])


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_words(work, lambda: inspect.cleandoc(__doc__ or ""), argv)


def work(words: cli.Words, options: cli.Options) -> None:
    source, root, out = cli.only(words, "SOURCE", "INPUT", "OUT")
    try:
        build(source, root, Path(out), options)
    except OSError as problem:
        raise UserError(f"OUT: '{problem.filename or out}' cannot be written: {problem.strerror}") from None
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")


def build(source: str, root: str, out: Path, options: dict[str, str]) -> Manifest | None:
    """The manifest, or None where one task of several has done its share."""
    plan, making, chosen = planned(source, root, out, options)
    which, tasks = chosen.tasks()
    if (out / "manifest.json").exists():  # killed when only tidying was left
        plan.continues()
        plan.tidy()
        return read_manifest(out)
    plan.begin()
    try:
        written = finished_shards(plan, making, share(plan.num_shards, tasks, which), chosen)
    except UserError:
        if not chosen.task and not chosen.merge:
            plan.clear()
        raise
    if not chosen.task:
        return merge(plan, written, chosen.dedupe)
    print(f"task {chosen.task}: its {len(written)} of {plan.num_shards} shards are built; when all tasks are done, --merge")
    return None


def planned(source: str, root: str, out: Path, options: dict[str, str]) -> tuple[Plan, Making, Build]:
    """What is to be built, with every mistake in the words and options said."""
    module = importlib.import_module(plugins.locate(SOURCES, source, "SOURCE")[0])
    if not hasattr(module, "Config") or not hasattr(module, "listing"):
        raise UserError(f"SOURCE: '{source}' has no Config and listing(root, config), so it is not a source")
    own, how, shared = _sorted_out(source, options, module.Config, Preparation, Build)
    chosen, preparation, settings = config.typed(Build, shared), config.typed(Preparation, how), config.typed(module.Config, own)
    chosen.tasks()
    name = chosen.name or out.resolve().name
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"name: '{name}' cannot begin the names of shards")
    if not root:
        raise UserError("INPUT: is empty")
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT: '{out}' is a file; shards need a folder")
    if out.exists() and Path(root).exists() and out.samefile(root):
        raise UserError(f"OUT: '{out}' is INPUT; shards need a folder of their own")
    if (out / "manifest.json").exists() and not (out / BEGUN).exists():
        raise UserError(f"OUT: '{out}' already holds shards (manifest.json); remove them or choose another folder")
    listing = module.listing(root, settings)
    preparation.check(listing.scale)
    if not listing.items:
        raise UserError(f"INPUT: no images in '{root}'")
    if listing.rejects and chosen.on_bad == "fail":
        first = listing.rejects[0]
        raise UserError(f"on_bad: '{first['path']}' ({first['key']}): {first['reason']}")
    order = chosen_order(listing, chosen.seed, chosen.per_class)
    per_shard = chosen.per_shard or (PER_SHARD_OF_TILES if preparation.tile else PER_SHARD)
    # Where files lie is not part of what is built.
    own = {key: value for key, value in own.items() if not isinstance(getattr(settings, key), Path)}
    decided = {**preparation.model_dump(mode="json"), **own, "name": name, "per_shard": per_shard, "per_class": chosen.per_class}
    plan = Plan(
        root.rstrip("/"), out, name, listing, order, -(-len(order) // per_shard), facts(source, decided, chosen.seed, listing)
    )
    plan.source.update(name=source, options={**how, **own}, **listing.about)
    stop = chosen.on_bad == "fail"
    read = getattr(module, "read", read_file)
    return plan, Making(out, read, preparation, tuple(listing.attributes), listing.scale, stop), chosen


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


if __name__ == "__main__":
    sys.exit(main())
