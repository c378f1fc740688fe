"""The published files that the toolkit knows, from catalogue.yaml: weights and open datasets. No torch, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlparse

from pydantic import AfterValidator, field_validator, model_validator

from sr_dist.core import config
from sr_dist.core.config import OptionalPositive, Settings
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.passwords import without_passwords

TABLE = Path(__file__).with_name("catalogue.yaml")


def _relative(path: str) -> str:
    if path and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
        raise ValueError(f"'{path}' leads out of the folder")
    return path


Relative = Annotated[str, AfterValidator(_relative)]


class PublishedFile(Settings):
    """One file at one address."""

    address: str
    bytes: OptionalPositive = None
    sha256: str = ""
    """Whole, or its first digits."""
    md5: str = ""
    path: Relative = ""
    """The place below the folder of datasets; the last part of the address where it is not given."""
    unpack: Relative = ""
    """The folder, below that of datasets, for what is in this archive."""
    source: str = ""
    """Who publishes the digests, or has measured them."""

    @field_validator("address")
    @classmethod
    def _http(cls, address: str) -> str:
        parts = urlparse(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{without_passwords(address)}' is no http or https address")
        if parts.username is not None:
            raise ValueError(f"'{without_passwords(address)}': no name and password are sent; take an address without")
        return address

    @model_validator(mode="after")
    def _digests(self) -> PublishedFile:
        if not re.fullmatch(r"|[0-9a-f]{8,64}", self.sha256) or not re.fullmatch(r"|[0-9a-f]{32}", self.md5):
            raise ValueError("sha256 has 8 to 64 hexadecimal digits, md5 has 32")
        if self.name in ("", ".."):
            raise ValueError(f"the address ends without a file's name: '{self.address}'; path gives one")
        return self

    @property
    def place(self) -> str:
        return self.path or Path(urlparse(self.address).path).name

    @property
    def name(self) -> str:
        return Path(self.place).name

    @property
    def checked(self) -> bool:
        """Whether a digest is known before the first fetch."""
        return bool(self.sha256 or self.md5)


class Entry(Settings):
    """What one name fetches."""

    kind: Literal["features", "weights", "data"]
    files: tuple[PublishedFile, ...]
    aliases: tuple[str, ...] = ()
    licence: str
    purpose: str
    next: str
    """The command that uses it, with {to} and {weights} for the folders."""

    @property
    def bytes(self) -> int | None:
        """None where the size of a file is not known."""
        sizes = [file.bytes for file in self.files]
        return sum(size for size in sizes if size) if all(sizes) else None


Catalogue = Mapping[str, Entry]


def read(table: Path = TABLE) -> Catalogue:
    """The entries of a table by name."""
    return _package() if table == TABLE else _read(table)


@cache
def _package() -> Catalogue:
    return _read(TABLE)


def _read(table: Path) -> Catalogue:
    try:
        return {name: _entry(name, tree) for name, tree in config.read(table).items()}
    except UserError as mistake:
        raise UserError(f"table: '{table}': {mistake}") from None


def _entry(name: str, tree: object) -> Entry:
    if not isinstance(tree, dict):
        raise UserError(f"{name}: is no section")
    return config.typed(Entry, tree, name)


def lookup(catalogue: Catalogue, name: str) -> str | None:
    """The name of the entry that has this name, alias or file, the latter with or without its suffix."""
    for own, entry in catalogue.items():
        files = [word for file in entry.files for word in (file.name, file.name.rpartition(".")[0])]
        if name.lower() in (word.lower() for word in (own, *entry.aliases, *files)):
            return own
    return None


def named(catalogue: Catalogue, name: str) -> str:
    """The same; an unknown name is the user's mistake."""
    entry = lookup(catalogue, name)
    if entry is None:
        words = [*catalogue, *(alias for entry in catalogue.values() for alias in entry.aliases)]
        raise UserError(f"NAME: unknown name '{name}'{nearest(name, words)}; --list prints all")
    return entry


def names_of(catalogue: Catalogue, text: str) -> list[str]:
    """`A,B` -> the entries, each once."""
    return list(dict.fromkeys(named(catalogue, word.strip()) for word in text.split(",")))


def weights_file(name: str) -> PublishedFile | None:
    """A file of weights of the package's table by its name."""
    files = (file for entry in read().values() if entry.kind != "data" for file in entry.files)
    return next((file for file in files if file.name == name), None)


def weights_of(name: str) -> list[str]:
    """The files of weights of the entry that has this name or file in the package's table."""
    entry = lookup(read(), name)
    return [file.name for file in read()[entry].files] if entry and read()[entry].kind != "data" else []


def advice(name: str) -> str:
    """The command that fetches a file, for messages; empty where the table does not have it."""
    entry = lookup(read(), name)
    return f"python -m sr_dist.fetch {entry}" if entry else ""
