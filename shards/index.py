"""The command `python -m shards.index`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from shards.adopt import adopt
from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import Absent, OptionalText, Settings
from sr_dist.core.errors import UserError


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Adopt(Settings):
    """Adopts tars that others made: writes an index for each and one manifest. The tars do not change and stay in their folder.

    TARS are in WebDataset form: KEY.jpg|jpeg|png|webp, optionally KEY.lr.png and KEY.cls; .json and .txt are ignored. Every tar
    is read once; nothing is unpacked. Compressed tars are refused, since their members cannot be read alone.

    Images that training cannot read are left out of the index. OUT/rejects.jsonl lists them with the reason.

    Example: python -m shards.index data/adopted '/data/wds/train-{000000..000127}.tar' --workers=16
    """

    out: Annotated[Path, Word("OUT")]
    """The folder for the indexes and manifest.json: that of the tars, or another."""
    patterns: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Word("TARS")]
    """Tars of one folder: one or more paths, or patterns such as 'name-{000000..000127}.tar'."""
    classes: Annotated[Path | None, Absent] = None
    """A file with the names of the classes, one per line; classes are called by their numbers where it is not given."""
    tars: OptionalText = None
    """Where training reads the tars, if not from their present folder: a folder, or the beginning of their URLs (https://, s3://)."""
    workers: Annotated[int, Field(gt=0, le=1024)] = 1
    """Worker processes."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_words(work, lambda: cli.help_text(Adopt), argv)


def work(words: cli.Words, options: cli.Options) -> None:
    settings = cli.parse(Adopt, words[:2], options).model_copy(update={"patterns": tuple(words[1:])})  # a shell expands TARS
    try:
        adopt(settings.out, settings.patterns, settings.classes, settings.tars, settings.workers)
    except OSError as problem:
        raise UserError(f"OUT: '{problem.filename or settings.out}': {problem.strerror}") from None
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    sys.exit(main())
