"""The command `python -m sr_dist.fetch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sr_dist.core import catalogue, cli
from sr_dist.core.cli import Word
from sr_dist.core.config import OptionalText, Settings
from sr_dist.core.errors import UserError


class Fetch(Settings):
    """Fetches published weights and open datasets, checks them, and unpacks archives.

    Weights go to $SR_DIST_WEIGHTS, else to the torch hub cache, where every other command looks for them; datasets go to --to. A
    fetch that was interrupted is continued by the same command. A file whose digest nobody publishes is marked unchecked: it is
    trusted at the first fetch, its sha256 is recorded beside it, and it is compared afterwards. Files that were brought by other
    means are checked and used if they lie at the right place.

    Exit codes: 0 done; 1 it could not be fetched, or --check has found something damaged, or something that was named missing;
    2 a mistake in the command.
    """

    name: Annotated[str | None, Word("NAME[,NAME]")] = None
    """Names of --list, or names of files: vgg19, RealESRGAN_x4plus, div2k_train, set5."""
    to: str = "datasets"
    """The folder for datasets."""
    list_all: Annotated[bool, Field(alias="list")] = False
    """Print what can be fetched: size, what it is checked with, licence, and what it is for."""
    check: bool = False
    """Print what is here, begun, missing or damaged, and fetch nothing."""
    table: OptionalText = None
    """A YAML file in the form of sr_dist/core/catalogue.yaml in place of it: files or mirrors of your own."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Fetch, fetch, argv)


def fetch(options: Fetch) -> int:
    table = catalogue.read(Path(options.table) if options.table else catalogue.TABLE)
    names = catalogue.names_of(table, options.name) if options.name is not None else []
    if not (names or options.list_all or options.check):
        raise UserError("NAME is missing; --list prints what can be fetched")
    if options.list_all and options.check:
        raise UserError("check: not used by --list, which reads no file; leave one of them out")
    if Path(options.to).exists() and not Path(options.to).is_dir():
        raise UserError(f"to: '{options.to}' is a file; datasets need a folder")

    from sr_dist.tools import fetch  # loads torch, which the checks above do without

    if options.list_all:
        print(fetch.listing({name: table[name] for name in names or table}))
        return 0
    if options.check:
        return fetch.check(table, names, Path(options.to))
    return fetch.fetch(table, names, Path(options.to))


if __name__ == "__main__":
    sys.exit(main())
