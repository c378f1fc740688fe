"""The format of shards on disk: plain tar files, an index beside each, one manifest. No torch here.

A sample is a group of adjacent members of a tar that share a key, as in WebDataset: `KEY.jpg|png|webp` (HR), optional
`KEY.lr.png` (the paired LR), `KEY.cls` (ASCII integer), `KEY.json`. The index of a shard has the offsets of the members, so
selection, order and size checks read only indexes. Tars are opened for pixels.

Index file: a header, then one column after another, little-endian. It is read whole and checked whenever it is opened:

    8s magic | u4 version | u4 key width | u4 attribute bytes | u4 crc32 of all that follows | u8 samples | columns
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, chain, filterfalse
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from sr_dist.core.braces import expanded
from sr_dist.core.config import Positive, Settings, typed
from sr_dist.core.errors import UserError, nearest, nearest_path
from sr_dist.core.files import Version, open_regular, read_regular, version_of, write_whole
from sr_dist.core.json_text import parse_json
from sr_dist.core.printable import is_path
from sr_dist.data.shard_checks import MODES as MODES
from sr_dist.data.shard_checks import NO_CLASS as NO_CLASS
from sr_dist.data.shard_checks import Case, agreement_cases, any_wrong, at_once, damage_of, groups, joined, row_cases
from sr_dist.recipe.labels import LabelNames

FORMAT = 1
MAX_MANIFEST, MAX_INDEX, MAX_KEY = 64_000_000, 4_000_000_000, 1024  # bytes
URLS = ("http://", "https://", "s3://")  # of tars in a manifest; not pipe:, which would run a command from a data file
MAGIC = b"SRDISTIX"
HEADER = struct.Struct("<8sIIIIQ")
HR_SUFFIXES = ("jpg", "jpeg", "png", "webp")

COLUMNS: tuple[tuple[str, str], ...] = (
    ("hr_offset", "<u8"),
    ("lr_offset", "<u8"),
    ("hr_bytes", "<u4"),
    ("hr_crc32", "<u4"),
    ("lr_bytes", "<u4"),  # 0: no LR is stored
    ("lr_crc32", "<u4"),
    ("width", "<u4"),
    ("height", "<u4"),
    ("lr_width", "<u4"),
    ("lr_height", "<u4"),
    ("class", "<i4"),
    ("mode", "<u1"),
    ("hash", "V16"),  # of the HR member's bytes
    # then "key" (S<width>) and "attributes" (V<bytes>, bit i = attribute i)
)


class ShardError(UserError):
    """Shards that are missing, damaged or do not fit the recipe."""


Size = Annotated[int, Field(ge=0, lt=2**63)]


class ShardEntry(Settings):
    name: str
    bytes: Size
    samples: Size
    sha256: str


class Manifest(Settings):
    """`manifest.json`: the contents of a folder of shards."""

    format: int
    samples: Size
    min_side: Size
    """The smallest side of the HR images."""
    scale: Positive | None = None
    """Of the stored LR images, if there are any."""
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    order: dict[str, int]
    shards: tuple[ShardEntry, ...]
    tars: str | None = None
    """Where the tars are, if not beside the manifest: a folder, relative to the manifest's, or the URL of a folder."""
    source: dict[str, Any] = {}
    tool: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """Identifies the samples and their order: equal digests mean equal training data."""
        facts = [self.format, self.order, [(s.name, s.samples, s.sha256) for s in self.shards]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def is_url(location: str) -> bool:
    return bool(re.match("[A-Za-z][A-Za-z0-9+.-]*:", location))


def content_hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def index_name(shard: str) -> str:
    return shard.removesuffix(".tar") + ".idx"


# ---------------------------------------------------------------------------------------------------------- the index


@lru_cache(maxsize=64)
def index_columns(key_width: int, attribute_bytes: int) -> tuple[tuple[str, np.dtype], ...]:
    tail = [("key", f"S{key_width}"), ("attributes", f"V{attribute_bytes}")]
    return tuple((name, np.dtype(kind)) for name, kind in (*COLUMNS, *tail))


@lru_cache(maxsize=64)
def _layout(key_width: int, attribute_bytes: int) -> tuple[dict[str, tuple[np.dtype, int]], int]:
    """The type of each column and the bytes of a row before it, and those of a whole row. Shards have few widths of keys."""
    kinds = index_columns(key_width, attribute_bytes)
    ends = list(accumulate((kind.itemsize for _, kind in kinds), initial=0))
    return {name: (kind, begin) for (name, kind), begin in zip(kinds, ends, strict=False)}, ends[-1]


def index_bytes(rows: Sequence[Mapping[str, Any]], attribute_bytes: int) -> bytes:
    """The index of one shard. A row has values by column; numbers that are left out are 0."""
    key_width = max([len(row["key"]) for row in rows], default=0) or 1
    columns = []
    for name, kind in index_columns(key_width, max(attribute_bytes, 1)):
        if kind.kind == "V":
            columns.append(b"".join(row.get(name, b"").ljust(kind.itemsize, b"\0") for row in rows))
        else:
            columns.append(np.array([row.get(name, 0) for row in rows], kind).tobytes())
    return _pack(columns, key_width, max(attribute_bytes, 1), len(rows))


def _pack(columns: Sequence[bytes], key_width: int, attribute_bytes: int, samples: int) -> bytes:
    body = b"".join(columns)
    return HEADER.pack(MAGIC, FORMAT, key_width, attribute_bytes, zlib.crc32(body), samples) + body


def index_rows(index: Index, rows: np.ndarray) -> bytes:
    """An index of some samples of a shard. `rows` is a mask."""
    key, attributes = index["key"].dtype.itemsize, index["attributes"].dtype.itemsize
    columns = [index[name][rows].tobytes() for name, _ in index_columns(key, attributes)]
    return _pack(columns, key, attributes, int(rows.sum()))


class Index:
    """The columns of one shard: `index["width"]` is an array with a value per sample.

    They are in memory: a process that maps a file ends without a message when the file is cut short.
    """

    def __init__(self, path: Path, samples: int | None = None) -> None:
        """`samples`: the number in the manifest, if it is known."""
        self.path = path
        try:
            with open_regular(path) as file:
                header, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
                end = self._read_header(header, size, samples)
                self._body = file.read(end - HEADER.size)
        except OSError as error:
            raise ShardError(f"the index '{path}' cannot be read: {error.strerror}") from None
        if len(self._body) != end - HEADER.size:
            raise ShardError(f"'{path}' was cut short while it was read")

    def _read_header(self, header: bytes, size: int, samples: int | None) -> int:
        """The number of bytes that the file must have."""
        if len(header) < HEADER.size or header[:8] != MAGIC:
            raise ShardError(f"'{self.path}' is not an index of sr_dist")
        _, version, key_width, attribute_bytes, self.crc32, self.samples = HEADER.unpack(header)
        if version != FORMAT:
            raise ShardError(f"'{self.path}' has index version {version}; this program reads version {FORMAT}")
        if samples not in (None, self.samples):
            raise ShardError(f"'{self.path}' lists {self.samples} samples where the manifest says {samples}")
        if not 0 < key_width <= MAX_KEY or size > MAX_INDEX:
            limits = f"an index has at most {MAX_INDEX}, and keys of 1 to {MAX_KEY}"
            raise ShardError(f"'{self.path}' has {size} bytes, and keys of {key_width}; {limits}")
        self._columns, row = _layout(key_width, min(attribute_bytes, size))
        end = HEADER.size + row * self.samples
        if not attribute_bytes or end != size:
            raise ShardError(f"'{self.path}' has {size} bytes where its header needs {end}: it is cut short or damaged")
        return end

    def __len__(self) -> int:
        return self.samples

    @property
    def num_bytes(self) -> int:
        return len(self._body) + 4096  # of its objects

    def __getitem__(self, column: str) -> np.ndarray:
        kind, before = self._columns[column]
        return np.frombuffer(self._body, kind, self.samples, before * self.samples)

    def check(self) -> None:
        """Compares the checksum."""
        if zlib.crc32(self._body) != self.crc32:
            raise ShardError(f"'{self.path}' does not match its own checksum: it is damaged; build the shards again")

    def check_rows(self, tar_bytes: int) -> None:
        """Refuses values that no shard of this size can have, so that readers can rely on all of them."""
        self._refuse(row_cases(self, tar_bytes))
        self.check_keys()

    def check_keys(self) -> None:
        try:
            for key in self["key"].tolist() if (self["key"].view(np.uint8) > 127).any() else ():
                key.decode()
        except UnicodeDecodeError:
            raise ShardError(f"'{self.path}': the key {key!r} is not UTF-8") from None

    def check_agreement(self, manifest: Manifest) -> None:
        """Refuses what the manifest contradicts."""
        self._refuse(agreement_cases(self, len(manifest.classes), manifest.min_side, manifest.scale or 0))
        self.check_attributes(manifest)

    def check_attributes(self, manifest: Manifest) -> None:
        if 8 * self["attributes"].dtype.itemsize < len(manifest.attributes):
            raise ShardError(f"'{self.path}' has fewer attributes than the manifest, {len(manifest.attributes)}")

    def _refuse(self, cases: Sequence[Case]) -> None:
        """Names the first wrong row of the first case that has one."""
        if any_wrong(cases):
            wrong, problem = next(case for case in cases if case[0].any())
            row = int(wrong.argmax())
            text = problem.format(**{name: self[name][row] for name in self._columns})
            raise ShardError(f"'{self.path}', sample {row}: {text}; the index is damaged, or not the manifest's")


def largest_index(entry: ShardEntry, manifest: Manifest) -> int:
    """The most bytes that the index of a shard can have."""
    row = sum(kind.itemsize for _, kind in index_columns(MAX_KEY, len(manifest.attributes) // 8 + 1))
    return min(HEADER.size + entry.samples * row, MAX_INDEX)


# ------------------------------------------------------------------------------------------------------- whole folders


@dataclass(frozen=True)
class Shards:
    """A folder of shards, or some shards of it (a brace pattern), as the manifest describes them."""

    OPEN_AT_ONCE: ClassVar[int] = 256  # with data.select, a window of the order is spread over many shards

    folder: Path
    manifest: Manifest

    @property
    def label_names(self) -> LabelNames:
        return LabelNames(str(self.folder), self.manifest.classes, self.manifest.attributes)

    def path(self, shard: int) -> Path:
        tars = self.manifest.tars or "."
        if is_url(tars):
            raise ShardError(f"the tars of '{self.folder}' are at '{tars}', not on this machine")
        return self.folder / tars / self.manifest.shards[shard].name

    def paths(self) -> list[Path]:
        return [self.path(shard) for shard in range(len(self.manifest.shards))]

    def where(self, shard: int) -> str:
        """The path of a shard, for messages."""
        return str(self.path(shard))

    def advice(self) -> str:
        """A hint for messages about damage."""
        return f"; 'python -m shards.verify {self.folder} --deep' finds what else is damaged"

    def open(self, shard: int) -> int:
        """A file descriptor of the shard."""
        return os.open(self.path(shard), os.O_RDONLY)

    def forget(self, shard: int) -> bool:
        """Removes a damaged copy of a shard. True if there was one, so that `open` makes a new copy."""
        return False

    def index(self, shard: int, agreeing: bool = True) -> Index:
        """The index of a shard, checked. `agreeing`: also with the manifest."""
        index = self.read_index(shard)
        index.check_rows(self.manifest.shards[shard].bytes)
        if agreeing:
            index.check_agreement(self.manifest)
        return index

    def read_index(self, shard: int) -> Index:
        """The index of a shard. Its checksum is right; its values may be those of another shard."""
        entry = self.manifest.shards[shard]
        index = Index(self.folder / index_name(entry.name), entry.samples)
        index.check()
        return index

    def check_sizes(self) -> None:
        """Checks that every shard exists and has the size in the manifest. Reads no data."""
        for problem in self.damage():
            raise ShardError(f"{problem}; 'python -m shards.verify {self.folder}' checks the rest")

    def damage(self) -> Iterator[str]:
        """The shards that are missing or have a wrong size, one message each."""
        entries = self.manifest.shards
        folder = str(self.path(0)).removesuffix(entries[0].name)

        def problems(numbers: range) -> list[str]:
            damages = (damage_of(folder + entries[number].name, entries[number].bytes) for number in numbers)
            return list(filter(None, damages))

        yield from chain.from_iterable(at_once(problems, self._groups()))

    def check_indexes(self) -> None:
        """Reads and checks every index."""

        def check(numbers: range) -> None:
            manifest, entries = self.manifest, self.manifest.shards
            indexes = [self.read_index(number) for number in numbers]
            for index in indexes:
                index.check_keys()
                index.check_attributes(manifest)
            columns = joined(indexes)
            ends = np.repeat([entries[number].bytes for number in numbers], [len(index) for index in indexes])
            agreement = agreement_cases(columns, len(manifest.classes), manifest.min_side, manifest.scale or 0)
            if any_wrong([*row_cases(columns, ends), *agreement]):
                for number in numbers:  # one of these says which row
                    self.index(number)

        for _ in at_once(check, self._groups()):
            pass

    def _groups(self) -> list[range]:
        return groups(len(self.manifest.shards), self.manifest.samples)


def open_shards(source: str, key: str = "shards") -> Shards:
    """Opens a folder of shards or a brace pattern such as `data/train-{000000..000127}.tar`. `key` names it in errors."""
    if "{" in source or source.endswith(".tar"):
        return _some_shards(source, key)
    folder = Path(source)
    if not folder.is_dir():
        folders = [path for path in folder.parent.glob("*") if os.path.isdir(path)]
        raise ShardError(f"{key}: no folder '{source}'{nearest_path(folder, among=folders)}")
    return Shards(folder, read_manifest(folder, key))


def _some_shards(pattern: str, key: str) -> Shards:
    paths = [Path(text) for text in expanded(pattern, key)]
    folders = sorted({path.parent for path in paths})
    if len(folders) > 1:
        raise ShardError(f"{key}: '{pattern}' names {len(folders)} folders; one manifest describes one folder")
    return some_of(Shards(folders[0], read_manifest(folders[0], key)), [path.name for path in paths], key)


def some_of(shards: Shards, names: Sequence[str], key: str) -> Shards:
    """The named shards of a folder."""
    by_name = {shard.name: shard for shard in shards.manifest.shards}
    for name in names:
        if name not in by_name:
            raise ShardError(f"{key}: the manifest of '{shards.folder}' has no shard '{name}'{nearest(name, by_name)}")
    selected = tuple(by_name[name] for name in names)
    changes = {"shards": selected, "samples": sum(shard.samples for shard in selected)}
    return replace(shards, manifest=shards.manifest.model_copy(update=changes))


def read_manifest(folder: Path, key: str = "shards") -> Manifest:
    """The manifest, checked. A training opens its shards several times, and a process holds one copy of what may be large."""
    version = version_of(folder / "manifest.json")
    return _parse_manifest(folder, key) if version is None else _same_manifest(folder, key, version)


@lru_cache(maxsize=8)
def _same_manifest(folder: Path, key: str, version: Version) -> Manifest:
    return _parse_manifest(folder, key)


def _parse_manifest(folder: Path, key: str) -> Manifest:
    path = folder / "manifest.json"
    try:
        tree = parse_json(read_regular(path, MAX_MANIFEST, "a manifest").decode())
    except FileNotFoundError:
        raise ShardError(f"{key}: '{folder}' has no manifest.json; python -m shards.build makes shards from images") from None
    except (OSError, ValueError) as error:
        raise ShardError(f"{key}: '{path}' cannot be read: {error}") from None
    if not isinstance(tree, dict) or str(tree.get("format")) != str(FORMAT):
        tool = tree.get("tool") if isinstance(tree, dict) else None
        author = f"; sr_dist {tool['sr_dist']} wrote it" if isinstance(tool, dict) and "sr_dist" in tool else ""
        raise ShardError(f"{key}: '{path}' is not a manifest of format {FORMAT}{author}")
    try:
        manifest = typed(Manifest, tree)
    except UserError as error:
        raise ShardError(f"{key}: '{path}': {error}") from None
    if manifest.samples != sum(shard.samples for shard in manifest.shards) or manifest.samples < 1:
        counts = [shard.samples for shard in manifest.shards[:4]]
        raise ShardError(f"{key}: '{path}' says {manifest.samples} samples, its shards {counts}...")
    names = [shard.name for shard in manifest.shards]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ShardError(f"{key}: '{path}' names the shard '{twice}' twice")
    if manifest.tars is not None and is_url(manifest.tars) and not manifest.tars.startswith(URLS):
        raise ShardError(f"{key}: '{path}': tars: '{manifest.tars}' is neither a folder nor begins with {', '.join(URLS)}")
    if not is_path("".join((*names, manifest.tars or ""))):  # one search for all, because there may be many
        name = next(filterfalse(is_path, (*names, manifest.tars or "")))
        raise ShardError(f"{key}: '{path}': {name!r} has an unsafe name: it holds a character that no path has")
    for name in names:
        if "/" in name or not name.endswith(".tar"):
            raise ShardError(f"{key}: '{path}' names the shard '{name}', which is not a tar file of that folder")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
    content = (text + "\n").encode()
    if len(content) > MAX_MANIFEST:
        raise ShardError(f"the manifest of '{folder}' would have {len(content)} bytes, more than {MAX_MANIFEST}: too many names")
    write_whole(folder / "manifest.json", content)


def attribute_bits(values: Iterable[bool], attribute_bytes: int) -> bytes:
    """Packs values into bytes: bit i is the i-th value."""
    packed = np.packbits(np.fromiter(values, bool), bitorder="little").tobytes()
    return packed.ljust(attribute_bytes, b"\0")


def attribute_values(column: np.ndarray, attributes: int) -> np.ndarray:
    """The `attributes` column of an index as (samples, attributes) of 0 and 1."""
    raw = np.frombuffer(column.tobytes(), np.uint8).reshape(len(column), column.dtype.itemsize)
    return np.unpackbits(raw, axis=1, bitorder="little")[:, :attributes]
