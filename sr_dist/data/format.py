"""The format of shards on disk: plain tar files, an index beside each, one manifest. No torch here.

A sample is a group of adjacent members of a tar that share a key, as in WebDataset: `KEY.jpg|png|webp` (HR), optional
`KEY.lr.png` (the paired LR), `KEY.cls` (ASCII integer), `KEY.json`. The index of a shard has the offsets of the members, so
selection, order and size checks read only indexes. Tars are opened for pixels.

Index file: a header, then one column after another, little-endian and memory-mapped:

    8s magic | u4 version | u4 key width | u4 attribute bytes | u4 crc32 of all that follows | u8 samples | columns
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sr_dist.core.config import Settings, typed
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.files import write_whole
from sr_dist.recipe.labels import LabelNames

FORMAT = 1
URLS = (
    "http://",
    "https://",
    "s3://",
)  # a manifest may name these for its tars; pipe: is not allowed, because it would run a command from a data file
MAGIC = b"SRDISTIX"
HEADER = struct.Struct("<8sIIIIQ")
MODES = ("RGB", "L", "RGBA", "LA", "I;16")  # the index stores the position in this list
HR_SUFFIXES = ("jpg", "jpeg", "png", "webp")
NO_CLASS = -1

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


class ShardEntry(Settings):
    name: str
    bytes: int
    samples: int
    sha256: str


class Manifest(Settings):
    """`manifest.json`: the contents of a folder of shards."""

    format: int
    samples: int
    min_side: int
    """The smallest side of the HR images."""
    scale: int | None = None
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


def member_header(name: str, size: int) -> bytes:
    """A ustar header that depends only on name and size, so equal input gives equal bytes."""
    raw = name.encode()
    if len(raw) > 100 or size >= 8**11:
        return _ustar(name, size)
    # Only name, size and checksum differ. Calling tarfile for every header takes most of the time of a build.
    block = raw.ljust(100, b"\0") + _EMPTY[100:124] + b"%011o" % size + _EMPTY[135:148] + b" " * 8 + _EMPTY[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _ustar(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime, info.uid, info.gid = size, 0o644, 0, 0, 0
    return info.tobuf(format=tarfile.USTAR_FORMAT, encoding="utf-8")


_EMPTY = _ustar("", 0)


# ---------------------------------------------------------------------------------------------------------- the index


def index_columns(key_width: int, attribute_bytes: int) -> list[tuple[str, np.dtype]]:
    tail = [("key", f"S{key_width}"), ("attributes", f"V{attribute_bytes}")]
    return [(name, np.dtype(kind)) for name, kind in (*COLUMNS, *tail)]


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
    """The memory-mapped columns of one shard: `index["width"]` is an array with a value per sample."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                header = file.read(HEADER.size)
            size = path.stat().st_size
        except OSError as error:
            raise ShardError(f"the index '{path}' cannot be read: {error.strerror}") from None
        if len(header) < HEADER.size or header[:8] != MAGIC:
            raise ShardError(f"'{path}' is not an index of sr_dist")
        _, version, key_width, attribute_bytes, self.crc32, self.samples = HEADER.unpack(header)
        if version != FORMAT:
            raise ShardError(f"'{path}' has index version {version}; this program reads version {FORMAT}")
        kinds = dict(index_columns(min(key_width, size), min(attribute_bytes, size)))
        ends = HEADER.size + np.cumsum([0, *(kind.itemsize for kind in kinds.values())], dtype=object) * self.samples
        if not (key_width and attribute_bytes) or ends[-1] != size:
            raise ShardError(f"'{path}' has {size} bytes where its header needs {ends[-1]}: it is cut short or damaged")
        # A plain array, because slicing a memmap takes ten times as long.
        self._map = np.asarray(np.memmap(path, np.uint8, "r")) if self.samples else np.zeros(size, np.uint8)
        self._columns = {
            name: self._map[begin:end].view(kind) for (name, kind), begin, end in zip(kinds.items(), ends, ends[1:], strict=False)
        }

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, column: str) -> np.ndarray:
        return self._columns[column]

    def check(self) -> None:
        """Reads the whole index and checks its checksum."""
        if zlib.crc32(self._map[HEADER.size :].data) != self.crc32:
            raise ShardError(f"'{self.path}' does not match its own checksum: it is damaged; build the shards again")


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

    def index(self, shard: int) -> Index:
        entry = self.manifest.shards[shard]
        index = Index(self.folder / index_name(entry.name))
        if len(index) != entry.samples:
            raise ShardError(f"'{index.path}' lists {len(index)} samples where the manifest says {entry.samples}")
        return index

    def check_sizes(self) -> None:
        """Checks that every shard exists and has the size in the manifest. Reads no data."""
        for problem in self.damage():
            raise ShardError(f"{problem}; 'python -m shards.verify {self.folder}' checks the rest")

    def damage(self) -> Iterator[str]:
        """The shards that are missing or have a wrong size, one message each."""
        for path, entry in zip(self.paths(), self.manifest.shards, strict=True):
            try:
                size = path.stat().st_size
            except OSError as error:
                yield f"the shard '{path}' of the manifest is missing ({error.strerror})"
                continue
            if size != entry.bytes:
                yield f"'{path}' has {size} bytes where the manifest says {entry.bytes}: it is cut short or was changed"

    def check_indexes(self) -> None:
        """Reads every index and checks its checksum."""
        for number in range(len(self.manifest.shards)):
            self.index(number).check()


def open_shards(source: str, key: str = "shards") -> Shards:
    """Opens a folder of shards or a brace pattern such as `data/train-{000000..000127}.tar`. `key` names it in errors."""
    if "{" in source or source.endswith(".tar"):
        return _some_shards(source, key)
    folder = Path(source)
    if not folder.is_dir():
        raise ShardError(f"{key}: no folder '{source}'{_nearest_folder(folder)}")
    return Shards(folder, read_manifest(folder, key))


def _some_shards(pattern: str, key: str) -> Shards:
    paths = [Path(text) for text in expanded(pattern, key)]
    folders = sorted({path.parent for path in paths})
    if len(folders) > 1:
        raise ShardError(f"{key}: '{pattern}' names {len(folders)} folders; one manifest describes one folder")
    return some_of(Shards(folders[0], read_manifest(folders[0], key)), [path.name for path in paths], key)


def expanded(pattern: str, key: str) -> list[str]:
    """The names that a brace pattern stands for."""
    from braceexpand import braceexpand  # not needed for folders

    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise ShardError(f"{key}: the braces of '{pattern}' do not close") from None


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
    path = folder / "manifest.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
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
        raise ShardError(
            f"{key}: '{path}' says {manifest.samples} samples, its shards {[s.samples for s in manifest.shards][:4]}..."
        )
    if len({shard.name for shard in manifest.shards}) < len(manifest.shards):
        twice = [s.name for i, s in enumerate(manifest.shards) if s.name in {t.name for t in manifest.shards[:i]}]
        raise ShardError(f"{key}: '{path}' names the shard '{twice[0]}' twice")
    if manifest.tars is not None and is_url(manifest.tars) and not manifest.tars.startswith(URLS):
        raise ShardError(f"{key}: '{path}': tars: '{manifest.tars}' is neither a folder nor begins with {', '.join(URLS)}")
    for shard in manifest.shards:
        if Path(shard.name).name != shard.name or not shard.name.endswith(".tar"):
            raise ShardError(f"{key}: '{path}' names the shard '{shard.name}', which is not a tar file of that folder")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
    write_whole(folder / "manifest.json", (text + "\n").encode())


def attribute_bits(values: Iterable[bool], attribute_bytes: int) -> bytes:
    """Packs values into bytes: bit i is the i-th value."""
    packed = np.packbits(np.fromiter(values, bool), bitorder="little").tobytes()
    return packed.ljust(attribute_bytes, b"\0")


def attribute_values(column: np.ndarray, attributes: int) -> np.ndarray:
    """The `attributes` column of an index as (samples, attributes) of 0 and 1."""
    raw = np.frombuffer(column.tobytes(), np.uint8).reshape(len(column), column.dtype.itemsize)
    return np.unpackbits(raw, axis=1, bitorder="little")[:, :attributes]


def _nearest_folder(path: Path) -> str:
    parent = path.parent
    return nearest(path.name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ""
