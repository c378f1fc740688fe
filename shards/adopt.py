"""Adopts tars that other programs wrote: an index for each and one manifest."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.merge import find_duplicates, write_lines
from shards.plan import tool_versions
from shards.tar_scan import ScannedTar, scan_tar
from shards.workers import in_processes
from sr_dist.core.braces import expanded
from sr_dist.core.errors import UserError
from sr_dist.core.printable import plural
from sr_dist.core.progress import with_progress
from sr_dist.data.format import FORMAT, MAGIC, URLS, Manifest, index_name, is_url, write_manifest

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


def adopt(out: Path, patterns: Sequence[str], class_file: Path | None, tars: str | None, num_workers: int) -> Manifest:
    """`tars`: where training reads the tars, if not from their present folder."""
    paths = tar_paths(patterns)
    tars = stated_place(out, paths[0].parent, tars)
    names = class_names(class_file) if class_file else None
    check_out(out, paths)
    with temporary_folder(out) as folder:
        jobs = ((number, path, folder) for number, path in enumerate(paths))
        by_number = dict(with_progress(in_processes(scan_tar, jobs, num_workers), len(paths), "tar"))
        scanned = [by_number[number] for number in range(len(paths))]
        manifest = adopted_manifest(scanned, names, tars)
        duplicates = find_duplicates(folder, list(manifest.shards))
        for shard in manifest.shards:
            os.replace(folder / index_name(shard.name), out / index_name(shard.name))
    rejects = [reject for tar in scanned for reject in tar.rejects]
    write_lines(out / "rejects.jsonl", rejects)
    write_lines(out / "duplicates.jsonl", duplicates)
    write_manifest(out, manifest)
    print_summary(out, manifest, sum(tar.unlabelled for tar in scanned), len(rejects), len(duplicates))
    if unmarked := sum(tar.unmarked for tar in scanned):
        print(
            f"{plural(unmarked, 'JPEG')} without restart markers: training decodes them whole; `shards.build --restarts` puts "
            "markers into images as files, without loss, and training then decodes only the rows of a crop"
        )
    return manifest


def check_out(out: Path, paths: Sequence[Path]) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT: '{out}' is a file; indexes need a folder")
    if (out / "manifest.json").exists():
        raise UserError(f"OUT: '{out}' already holds shards (manifest.json); remove it or choose another folder")
    for path in paths:
        check_tar(path)
        check_index(out / index_name(path.name))


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """A folder within OUT for unfinished files. After a failure it is removed, and so is OUT if it did not exist before."""
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".adopting-", dir=out) as unfinished:
            yield Path(unfinished)
    except BaseException:
        with suppress(OSError):
            for folder in created:
                folder.rmdir()
        raise


def print_summary(out: Path, manifest: Manifest, unlabelled: int, rejects: int, duplicates: int) -> None:
    samples = manifest.samples
    counts = f"{plural(samples, 'sample')} in {plural(len(manifest.shards), 'shard')}"
    print(f"{counts}, {plural(len(manifest.classes), 'class', 'classes')}, smallest side {manifest.min_side}")
    if 0 < unlabelled < samples:
        print(f"{unlabelled} of the {samples} samples have no class")
    if rejects or duplicates:
        print(f"left out: {plural(rejects, 'input')} ({out / 'rejects.jsonl'}); samples with the bytes of another: {duplicates}")


def tar_paths(patterns: Sequence[str]) -> list[Path]:
    for pattern in patterns:
        if is_url(pattern):
            raise UserError(
                f"TARS: '{pattern}' is not on this machine; run this where the tars are, with --tars={pattern[:8]}..."
            )
    paths = [Path(path) for pattern in patterns for path in expanded(pattern, "TARS")]
    folders = sorted({str(path.parent) for path in paths})
    if len(folders) > 1:
        raise UserError(
            f"TARS: {len(folders)} folders ({folders[0]}, {folders[1]}); one manifest describes the tars of one folder"
        )
    if len({path.name for path in paths}) < len(paths):
        raise UserError("TARS: a tar is named twice")
    return paths


def stated_place(out: Path, folder: Path, stated: str | None) -> str | None:
    """The place of the tars in the manifest; None if they are beside it."""
    if stated and is_url(stated):
        if not stated.startswith(URLS):
            raise UserError(f"tars: '{stated}' is neither a folder nor begins with {', '.join(URLS)}")
        return stated
    if stated or folder.resolve() != out.resolve():
        folder = Path(stated or folder)
        return str(folder) if folder.is_absolute() else os.path.relpath(folder, out)
    return None


def class_names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"classes: '{path}' cannot be read: {problem}") from None


def check_tar(path: Path) -> None:
    """Refuses files whose members cannot be read by their offsets."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"TARS: '{path}' is not a regular file; members of a stream cannot be read alone")
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as problem:
        raise UserError(f"TARS: '{path}' cannot be read: {problem.strerror}") from None
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"TARS: '{path}' is compressed ({name}), so its members cannot be read alone; unpack it to a plain tar"
            )
    if not path.name.endswith(".tar"):
        raise UserError(f"TARS: the name of '{path}' does not end in .tar")


def check_index(path: Path) -> None:
    """Refuses to replace an index of another program; DALI's end in .idx too."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        ours = file.read(len(MAGIC)) == MAGIC
    if not ours:
        raise UserError(f"OUT: '{path}' exists and is not an index of sr_dist; choose another folder")


def adopted_manifest(scanned: list[ScannedTar], names: tuple[str, ...] | None, tars: str | None) -> Manifest:
    scales = {scale for tar in scanned for scale in tar.scales}
    num_classes = max(tar.num_classes for tar in scanned)
    samples = sum(tar.entry.samples for tar in scanned)
    if not samples:
        first = next((f": '{reject['key']}': {reject['reason']}" for tar in scanned for reject in tar.rejects), "")
        raise UserError(f"TARS: training can read none of the samples{first}")
    if len(scales) > 1:
        raise UserError(f"TARS: LR images of several scales, or not for all samples: {sorted(scales)} (0 is none)")
    if names is not None and len(names) < num_classes:
        raise UserError(f"classes: {len(names)} names, but the tars have classes up to number {num_classes - 1}")
    return Manifest(
        format=FORMAT,
        samples=samples,
        min_side=min(tar.min_side for tar in scanned if tar.min_side),
        scale=max(scales) or None,
        classes=names if names is not None else tuple(str(number) for number in range(num_classes)),
        order={},
        shards=tuple(tar.entry for tar in scanned),
        tars=tars,
        source={"name": "tars of others"},
        tool=tool_versions(),
    )
