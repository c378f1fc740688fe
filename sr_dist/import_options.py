"""The command `python -m sr_dist.import_options`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import OptionalPositive, Settings
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.tools.basicsr.recipe import import_options as imported


class ImportOptions(Settings):
    """Writes the recipe that an option file of BasicSR, Real-ESRGAN or traiNNer-redux describes.

    Comments at its beginning, which are also printed, list how the shards are built, what must be checked, what has no equal and
    why, which options are unknown, and what was taken over.
    """

    file: Annotated[Path, Word("FILE.yml")]
    """The option file of a training."""
    out: Annotated[Path | None, Word("OUT.yaml")] = None
    """The recipe to write; without it, the recipe is printed."""
    gpus: OptionalPositive = None
    """The number of GPUs that the batch per GPU is multiplied by; else num_gpu of the file."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(ImportOptions, import_options, argv)


def import_options(options: ImportOptions) -> None:
    if options.out and options.out.exists():
        raise UserError(f"OUT.yaml: '{options.out}' exists; choose another name")
    result = imported(options.file, options.gpus)
    text = result.text(str(options.file))
    if options.out is None:
        print(text, end="")
        return
    try:
        write_whole(options.out, text.encode())
    except OSError as problem:
        raise UserError(f"OUT.yaml: '{options.out}' cannot be written: {problem.strerror}") from None
    print("\n".join([f"{options.out}: a recipe from {options.file}", *result.report()]))


if __name__ == "__main__":
    sys.exit(main())
