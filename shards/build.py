"""The command `python -m shards.build`."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from shards.build_files import PLAN_FILE
from shards.build_lock import building
from shards.items import Listing
from shards.merge import merge
from shards.pixels import Preparation
from shards.plan import Plan, item_order, items_digest, tool_versions
from shards.restarts import jpegtran_version
from shards.source import Source, load_source, lr_reader, reader, source_names
from shards.workers import write_shards
from shards.writer import WriteOptions, WrittenShard
from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import OptionalPositive, OptionalText, Settings, typed
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.files import DISK_FULL
from sr_dist.data.format import Manifest, read_manifest
from sr_dist.data.order import split_range

PER_SHARD, PER_SHARD_OF_TILES = 1000, 50


class Build(Settings):
    """Cuts a data set into tar shards with indexes and a manifest.

    The same input and options give the same bytes for any number of workers and tasks. A build that was killed is continued by
    the same command. OUT/rejects.jsonl lists the inputs that cannot be samples, with the reason; OUT/duplicates.jsonl lists the
    samples that have the bytes of another.

    CMYK, palettes, 1 bit, BMP, TIFF, still GIF and photographs that EXIF turns become upright PNG of the same pixels. Rejected
    are empty files, those without an image's header or end, images of several frames or pages, and whatever is decoded (to
    crop, resize, cut, convert or encode it, or for --restarts) and cannot be. Bytes that are stored unchanged are not decoded:
    shards.verify OUT --deep decodes all.

    CelebA as the class-conditional study has it: celeba --centre_crop=144 --resize=64 --format=png (for images of half the
    size: 72).
    """

    source: Annotated[str, Word("SOURCE")]
    """The kind of data set: one of the sources below, or the dotted name of a module of your own."""
    root: Annotated[str, Word("INPUT")]
    """The place of the data set; for most sources a folder."""
    out: Annotated[Path, Word("OUT")]
    """The folder of shards to make."""
    name: str | None = None
    """Shards are called NAME-000000.tar and so on; the name of OUT where it is not given."""
    per_shard: OptionalPositive = None
    """Inputs per shard; 1000 where it is not given, or 50 with --tile, since one image then gives many samples."""
    per_class: OptionalPositive = None
    """Take only so many inputs of each class."""
    seed: int = 0
    """The seed of the order, which is permuted so that no shard holds a single class."""
    on_bad: Literal["skip", "fail"] = "skip"
    """An image that cannot be a sample is skipped, or fails the build and leaves nothing behind."""
    dedupe: bool = False
    """Leave samples with the bytes of an earlier one out of the indexes."""
    workers: Annotated[int, Field(gt=0, le=1024)] = 1
    """Worker processes."""
    task: OptionalText = None
    """Build one share of the shards, such as 0/4, 1/4, 2/4 or 3/4, on any machine that sees INPUT and OUT."""
    merge: bool = False
    """Write the manifest when all tasks are done."""

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str | None) -> str | None:
        numbers = re.fullmatch(r"(\d+)/(\d+)", task or "0/1")
        if not numbers or int(numbers[1]) >= int(numbers[2]):
            raise ValueError(f"'{task}' is not a share such as 0/4, 1/4, 2/4 or 3/4; the first is 0")
        return task

    @model_validator(mode="after")
    def _check_merge(self) -> Build:
        if self.task and self.merge:
            raise ValueError("merge: give it without --task, in one command when all tasks are done")
        return self

    @property
    def shard_name(self) -> str:
        return self.name or self.out.resolve().name

    def shards_of_task(self, num_shards: int) -> range:
        number, tasks = map(int, (self.task or "0/1").split("/"))
        return split_range(num_shards, tasks, number)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_words(work, help_text, argv)


def help_text() -> str:
    """The help of the command, with the options of every source in shards/sources."""
    sources = {name: load_source(name) for name in source_names()}
    preparation = "How each image is prepared, in this order (with none of these, or with --keep, its bytes are stored unchanged)"
    options = cli.help_text(
        Build, (preparation, Preparation), *((f"Options of {name}", source.Config) for name, source in sources.items())
    )
    lines = [line for name, source in sources.items() for line in _help_entry(name, source)]
    return "\n".join([options, "", "Sources:", *lines])


def _help_entry(name: str, source: Source[Any]) -> list[str]:
    """The first paragraph of the source's docstring."""
    about = (inspect.getdoc(source) or "").partition("\n\n")[0]
    lines = textwrap.wrap(" ".join(about.split()), cli.WIDTH - cli.INDENT)
    names = [f"  {name}", *[""] * len(lines)]
    return [f"{name:<{cli.INDENT}}{line}" for name, line in zip(names, lines, strict=False)]


def work(words: cli.Words, options: cli.Options) -> None:
    source, root, out = cli.check_words(words, "SOURCE", "INPUT", "OUT")
    try:
        build(source, root, Path(out), options)
    except OSError as problem:
        if problem.errno in DISK_FULL:
            sys.exit(f"the disk of '{out}' is full; make room, and the same command continues")
        raise UserError(f"OUT: '{problem.filename or out}' cannot be written: {problem.strerror}") from None
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")


def build(source: str, root: str, out: Path, options: Mapping[str, str]) -> Manifest | None:
    """The manifest, or None if one task of several has done its share."""
    module = load_source(source)
    own, preparing, general = _by_class(source, options, module.Config, Preparation, Build)
    settings = cli.parse(Build, [source, root, str(out)], general)
    preparation, config = typed(Preparation, preparing), typed(module.Config, own)
    check_folders(settings)
    listing = module.listing(root, config)
    preparation.check(listing.scale)
    check_listing(settings, listing)
    plan = make_plan(settings, preparation, listing, _without_paths(own, config))
    plan.source.update(name=source, options={**preparing, **_without_paths(own, config)}, **listing.about)
    write_options = WriteOptions(
        out, reader(module), preparation, tuple(listing.attributes), listing.scale, settings.on_bad == "fail", lr_reader(module)
    )
    return run_plan(plan, write_options, settings)


def run_plan(plan: Plan, write_options: WriteOptions, settings: Build) -> Manifest | None:
    if (plan.out / "manifest.json").exists():  # the build was killed while it tidied up
        plan.check_continues()
        plan.tidy()
        return read_manifest(plan.out)
    if settings.merge and not (plan.out / PLAN_FILE).exists():
        raise UserError(f"merge: no build has begun in '{plan.out}'; without --merge this command builds its shards")
    plan.begin()
    with building(plan.out, settings.shards_of_task(plan.num_shards)):
        try:
            written = build_shards(plan, write_options, settings)
        except UserError:
            if not settings.task and not settings.merge:
                plan.clear()
            raise
        if not settings.task:
            return merge(plan, written, settings.dedupe)
    print(f"task {settings.task}: its {len(written)} of {plan.num_shards} shards are built; when all tasks are done, --merge")
    return None


def build_shards(plan: Plan, write_options: WriteOptions, settings: Build) -> list[WrittenShard]:
    """The shards of this task. Those that an earlier run has finished are not built again."""
    numbers = settings.shards_of_task(plan.num_shards)
    written = {number: shard for number in numbers if (shard := plan.finished(number, settings.dedupe))}
    missing = [number for number in numbers if number not in written]
    if missing and settings.merge:
        raise UserError(
            f"merge: {len(missing)} of {plan.num_shards} shards are not built, '{plan.shard(missing[0])}' among them; "
            "without --merge this command builds them"
        )
    if written and missing:
        print(f"{len(written)} of {len(numbers)} shards were built before")
    written |= write_shards(plan, missing, write_options, settings.workers)
    return [written[number] for number in numbers]


def _by_class(source: str, options: Mapping[str, str], *classes: type[Settings]) -> list[dict[str, str]]:
    """The options of each settings class. A name that several have belongs to the first: the source's own."""
    groups: list[dict[str, str]] = [{} for _ in classes]
    for key, value in options.items():
        for group, settings in zip(groups, classes, strict=True):
            if key in settings.model_fields:
                group[key] = value
                break
        else:
            known = [name for settings in classes for name in settings.model_fields if name not in ("source", "root", "out")]
            raise UserError(f"{key}: unknown option of '{source}'{nearest(key, known)}")
    return groups


def check_folders(settings: Build) -> None:
    out, name = settings.out, settings.shard_name
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"name: the names of shards cannot begin with '{name}'")
    if not settings.root:
        raise UserError("INPUT: is empty")
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT: '{out}' is a file; shards need a folder")
    if out.exists() and Path(settings.root).exists() and out.samefile(settings.root):
        raise UserError(f"OUT: '{out}' is INPUT; shards need a folder of their own")
    if (out / "manifest.json").exists() and not (out / PLAN_FILE).exists():
        raise UserError(f"OUT: '{out}' already holds shards (manifest.json); remove them or choose another folder")


def check_listing(settings: Build, listing: Listing) -> None:
    if not listing.items:
        raise UserError(f"INPUT: no images in '{settings.root}'")
    if listing.rejects and settings.on_bad == "fail":
        first = listing.rejects[0]
        raise UserError(f"on_bad: '{first['path']}' ({first['key']}): {first['reason']}")


def make_plan(settings: Build, preparation: Preparation, listing: Listing, own: dict[str, str]) -> Plan:
    """`own`: the options of the source, without paths."""
    order = item_order(listing, settings.seed, settings.per_class)
    per_shard = settings.per_shard or (PER_SHARD_OF_TILES if preparation.tile else PER_SHARD)
    shared = {"name": settings.shard_name, "per_shard": per_shard, "per_class": settings.per_class}
    prepared, tool = preparation.model_dump(mode="json"), tool_versions()
    if preparation.restarts:
        tool["jpegtran"] = jpegtran_version()
    else:  # plan files of builds that began before this option existed do not have it
        prepared.pop("restarts")
    fingerprint = {
        "source": settings.source,
        "options": {**prepared, **own, **shared},
        "seed": settings.seed,
        "inputs": {"count": len(listing.items), "digest": items_digest(listing.items)},
        "tool": tool,
    }
    num_shards = -(-len(order) // per_shard)
    return Plan(settings.root.rstrip("/"), settings.out, settings.shard_name, listing, order, num_shards, fingerprint)


def _without_paths(own: dict[str, str], config: Settings) -> dict[str, str]:
    """The place of files does not change what is built."""
    return {key: value for key, value in own.items() if not isinstance(getattr(config, key), Path)}


if __name__ == "__main__":
    sys.exit(main())
