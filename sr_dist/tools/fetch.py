"""Fetches published weights and datasets, lists them, and says which are on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sr_dist.core import fetch_file
from sr_dist.core.catalogue import Catalogue, Entry, PublishedFile
from sr_dist.core.fetch_file import FetchError, Part, Wanted, record_file, recorded
from sr_dist.core.files import locked, write_json
from sr_dist.core.unpack import BadArchive, contents, unpack
from sr_dist.models import pretrained
from sr_dist.models.verified import digest

TITLES = {"features": "Networks behind losses and metrics", "weights": "Weights of generators", "data": "Datasets"}
NOTES = (
    "sha256:8    the first 8 digits of the sha256 are published",
    "unchecked   no published digest is known: the file is trusted at its first fetch, and compared afterwards",
)
MB = 1_000_000
Status = Literal["here", "missing", "begun", "damaged"]


@dataclass(frozen=True)
class Place:
    """A file of the catalogue on this machine."""

    file: PublishedFile
    path: Path
    folder: Path | None  # for what is inside

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.file.address, self.file.bytes, self.file.sha256, self.file.md5)


def places(entry: Entry, to: Path) -> Iterator[Place]:
    for file in entry.files:
        if entry.kind == "data":
            yield Place(file, to / file.place, to / file.unpack if file.unpack else None)
        else:
            yield Place(file, pretrained.existing(file.name) or pretrained.folders()[0] / file.name, None)


def fetch(catalogue: Catalogue, names: Sequence[str], to: Path) -> int:
    """Fetches entries and unpacks their archives. -> the exit code."""
    for name in names:
        entry = catalogue[name]
        try:
            for place in places(entry, to):
                _fetch_file(place)
        except (PermissionError, NotADirectoryError):
            raise  # cli names the path
        except (FetchError, BadArchive, OSError) as problem:
            print(f"error: {name}: {problem}", file=sys.stderr, flush=True)
            return 1
        print(f"{name}: complete; licence: {entry.licence}\nnext: {next_command(entry, to)}", flush=True)
    return 0


def next_command(entry: Entry, to: Path) -> str:
    weights = pretrained.folders()[0] if "{weights}" in entry.next else ""
    return entry.next.replace("{to}", shlex.quote(str(to))).replace("{weights}", shlex.quote(str(weights)))


def _fetch_file(place: Place) -> None:
    status, text = examine(place)
    if status == "damaged":
        raise FetchError(f"{text}; delete it and give this command again")
    if status == "here":
        print(f"'{place.path}': {text}", flush=True)
        return
    if not place.path.exists():
        sha256 = fetch_file.fetch(place.wanted, place.path)
        how = f"sha256 {sha256}, as published" if place.file.checked else f"sha256 {sha256}"
        print(f"'{place.path}': fetched, {place.path.stat().st_size / MB:,.1f} MB, {how}", flush=True)
    if not place.file.checked:
        print(
            f"note: no published digest of '{place.file.name}' is known: it is trusted at this first use, and from now on "
            f"compared with '{record_file(place.path)}'",
            flush=True,
        )
    if place.folder:
        _unpack(place, place.folder)


def _unpack(place: Place, folder: Path) -> None:
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            counts = unpack(place.path, folder)
            facts = {"address": place.wanted.shown, "bytes": place.path.stat().st_size, "sha256": digest(place.path)}
            write_json(record_file(place.path), {**facts, **recorded(place.path), "unpacked": counts})
            print(f"'{folder}': {counts['files']:,} files; '{place.path}' is needed no more", flush=True)
        folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------- list and check


def examine(place: Place) -> tuple[Status, str]:
    """Whether a file is on this machine, and what is inside it if it is unpacked."""
    unpacked = recorded(place.path).get("unpacked")
    if place.folder and place.folder.exists():
        if not unpacked:
            return "damaged", f"'{place.folder}' exists, but was not unpacked from '{place.path}' by this command"
        counts = contents(place.folder)
        if counts != unpacked:
            return "damaged", f"'{place.folder}' has {counts['files']:,} files, {counts['bytes']:,} bytes, but had " + (
                f"{unpacked['files']:,} files, {unpacked['bytes']:,} bytes when it was unpacked"
            )
        if not place.path.exists():
            return "here", f"unpacked in '{place.folder}', {counts['files']:,} files"
    if not place.path.exists():
        part = Part(place.path).path
        if part.exists() and part.stat().st_size:
            return "begun", f"{part.stat().st_size / MB:,.1f} MB have been fetched"
        return "missing", "not fetched"
    if not place.path.is_file():
        return "damaged", f"'{place.path}' is no file"
    if problem := _problem(place):
        return "damaged", f"'{place.path}' is damaged or another file: {problem}"
    if place.folder and not place.folder.exists():
        return "begun", f"'{place.path}' is complete, but not unpacked"
    return "here", f"complete, {place.path.stat().st_size / MB:,.1f} MB"


def _problem(place: Place) -> str | None:
    """How a file differs from what is published or recorded. A file that came from elsewhere gets a record here."""
    sha256 = digest(place.path)
    first = "" if place.file.sha256 else recorded(place.path).get("sha256", "")
    if first:
        return (
            None if sha256 == first else f"its sha256 begins {sha256[:8]}, not {first[:8]}, as '{record_file(place.path)}' has it"
        )
    md5 = fetch_file.md5_of(place.path) if place.file.md5 and not place.file.sha256 else ""
    size = place.path.stat().st_size
    problem = fetch_file.difference(place.wanted, size, sha256, md5)
    if not problem and not place.file.sha256:
        write_json(record_file(place.path), {"address": place.wanted.shown, "bytes": size, "sha256": sha256})
    return problem


def check(catalogue: Catalogue, names: Sequence[str], to: Path) -> int:
    """Prints a line per entry. -> 1 if something is damaged, or was named and is not complete."""
    bad = False
    for name in names or catalogue:
        results = [examine(place) for place in places(catalogue[name], to)]
        states = {status for status, _ in results}
        worst = next(status for status in ("damaged", "begun", "missing", "here") if status in states)
        if worst == "missing" and states != {"missing"}:
            worst = "begun"
        details = [text for status, text in results if status != "here"] or [text for _, text in results]
        print(f"{worst:8} {name:28} {'; '.join(dict.fromkeys(details))}", flush=True)
        bad |= worst == "damaged" or (bool(names) and worst != "here")
    return int(bad)


def listing(catalogue: Catalogue) -> str:
    """The table in words, by kind."""
    lines = []
    for kind, title in TITLES.items():
        entries = {name: entry for name, entry in catalogue.items() if entry.kind == kind}
        if entries:
            lines += [f"{title}:"]
        for name, entry in entries.items():
            also = f" (also {', '.join(entry.aliases)})" if entry.aliases else ""
            lines.append(f"  {name:27} {size_text(entry):>10}  {digest_text(entry):9}  {entry.purpose}{also}")
            lines.append(f"{'':53}{entry.licence}")
    return "\n".join([*lines, "", *NOTES])


def size_text(entry: Entry) -> str:
    return f"{entry.bytes / MB:,.1f} MB" if entry.bytes else "size ?"


def digest_text(entry: Entry) -> str:
    """What the weakest of its files is compared with."""
    if not all(file.checked for file in entry.files):
        return "unchecked"
    if not all(file.sha256 for file in entry.files):
        return "md5"
    shortest = min(len(file.sha256) for file in entry.files)
    return "sha256" if shortest == 64 else f"sha256:{shortest}"
