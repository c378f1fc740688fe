"""The command `python -m sr_dist.page`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from sr_dist.core import cli
from sr_dist.core.addresses import is_loopback
from sr_dist.core.cli import Word
from sr_dist.core.config import Names, Positive, Settings
from sr_dist.core.errors import UserError
from sr_dist.core.files import same_place_twice
from sr_dist.models import published

LOOPBACK = "127.0.0.1"


class Page(Settings):
    """Serves a web page on this machine: drop a picture, compare bicubic and SR under a slider, choose among runs, download.

    Pictures stay on this machine: nothing is kept, and the page loads nothing from elsewhere. One picture is enlarged at a time,
    others wait. Ctrl-C ends it. From another machine: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE
    """

    runs: Annotated[Names, Word("RUN[,RUN]")]
    """Run folders (their newest EMA), weights files, or names of files of the weights folders."""
    port: Annotated[int, Field(ge=0, le=65535)] = 7860
    """The port of the page; 0: any that is free."""
    host: str = LOOPBACK
    """The address to listen on. With any other than the loopback, everybody who reaches it can use the page: it has no password
    and no encryption."""
    max_megabytes: Positive = 20
    """The largest file that is accepted."""
    max_pixels: Positive = 4_000_000
    """The most pixels of a picture; larger ones are refused before they are decoded."""
    half: bool = False
    """Compute in 16 bits: fp16 on a GPU, bf16 on the CPU."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Page, page, argv)


def page(options: Page) -> None:
    check(options)

    from sr_dist.models import upscaler  # loads torch, which the checks above do without
    from sr_dist.tools.page import Limits, serve

    networks = [upscaler.load(run, half=options.half, key="RUN") for run in options.runs]
    local = is_loopback(options.host)
    if not local:
        print(
            f"warning: host: everybody who reaches {options.host} can use this page, without a password and without encryption; "
            f"without --host only this machine can",
            file=sys.stderr,
            flush=True,
        )
    serve(networks, (options.host, options.port), Limits(options.max_megabytes * 1_000_000, options.max_pixels, local))


def check(options: Page) -> None:
    if not options.runs:
        raise UserError("RUN: name a run folder or a weights file, or several separated by commas")
    if same_place_twice(options.runs):
        raise UserError(f"RUN: '{','.join(options.runs)}' names a run twice")
    for run in options.runs:
        published.place(run, "RUN")


if __name__ == "__main__":
    sys.exit(main())
