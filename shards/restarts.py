"""Puts restart markers into JPEGs without loss, by the program `jpegtran`, so that training decodes only the rows of its crop.

jpegtran rewrites the Huffman codes and leaves the coefficients as they are. Both files are decoded all the same: if a pixel
differs, or anything else is unusual, the original stays. One that cannot be decoded is rejected.
"""

from __future__ import annotations

import io
import signal
import subprocess
import sys

from PIL import Image

from shards.image_header import Rejected, SourceImage
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.pixels import FORMATS
from sr_dist.data.jpeg_rows import can_be_cut

COMMAND = ("jpegtran", "-copy", "all", "-optimize", "-restart", "1")  # one marker per row of blocks; metadata stay
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGBUS)  # of the program, always on the same file
PACKAGES = "Debian, Ubuntu: apt-get install libjpeg-turbo-progs; conda: install -c conda-forge libjpeg-turbo"

MARKED = "marked"
MARKED_BEFORE = "had markers"
SEVERAL = "several images in the file (MPO)"
REFUSED = "jpegtran refuses or corrects it"
NOT_CUT = "jpegtran writes no rows of blocks"
DIFFERS = "other pixels"


def jpegtran_version() -> str:
    """The version of jpegtran. Raises a UserError if there is none, or if it does not write what training can cut."""
    try:
        done = subprocess.run(
            [COMMAND[0], "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as problem:
        raise UserError(f"restarts: needs the program jpegtran, which cannot be run ({problem.strerror}); {PACKAGES}") from None
    version = ((done.stderr + done.stdout).strip().splitlines() or ["unknown"])[0]
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "JPEG")
    _, outcome = marked(SourceImage(file.getvalue(), "JPEG", "RGB", 256, 256, turned=False))
    if outcome != MARKED:
        raise UserError(f"restarts: this jpegtran ({version}) writes no usable markers ({outcome}); {PACKAGES}")
    return version


def marked(image: SourceImage) -> tuple[bytes, str]:
    """The JPEG with a restart marker per row of blocks and MARKED, or its own bytes and why they stay. Raises `Rejected`."""
    data, before = image.data, pixels(image.data)
    if before is None:
        raise Rejected("cannot be decoded")
    if image.kind != "JPEG":
        return data, SEVERAL
    if can_be_cut(data):
        return data, MARKED_BEFORE
    result = transcoded(data)
    if result is None:
        return data, REFUSED
    if not can_be_cut(result):
        return data, NOT_CUT
    return (result, MARKED) if pixels(result) == before else (data, DIFFERS)


def transcoded(data: bytes) -> bytes | None:
    """The output of jpegtran, or None if it reports an error or damage."""
    try:  # in a session of its own, so that Ctrl-C ends the build and not the program
        done = subprocess.run(COMMAND, input=data, capture_output=True, start_new_session=True)
    except OSError as problem:
        sys.exit(f"jpegtran cannot be started: {first_line(problem)}; the same command continues")
    if done.returncode < 0 and -done.returncode not in CRASHES:  # says nothing about the image
        sys.exit(f"jpegtran was killed by signal {-done.returncode}, perhaps out of memory; the same command continues")
    return done.stdout if done.returncode == 0 else None


def pixels(data: bytes) -> tuple[str, tuple[int, int], bytes] | None:
    """(mode, size, pixels), or None if they cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.mode, image.size, image.tobytes()
    except Exception:  # damaged data make decoders raise errors of many types
        return None
