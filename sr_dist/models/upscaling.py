"""Enlarges image files with a trained network: which files, under which names, on all ranks together."""

from __future__ import annotations

import glob
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.core.files import IMAGE_SUFFIXES, SHORT_SUFFIXES, files_below, images_below
from sr_dist.core.outputs import is_folder, write_output
from sr_dist.core.pixels import FORMATS
from sr_dist.core.progress import Progress, print_line
from sr_dist.models import image_files
from sr_dist.models.image_files import ImageFileError
from sr_dist.models.upscaler import Upscaler

Pairs = list[tuple[Path, Path]]  # (image to read, image to write)
AUTO, PNG = "auto", "png"
FILMS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
MOVING = (".gif", ".apng", *FILMS)
WILDCARDS = "*?["


@dataclass(frozen=True)
class Naming:
    """Names of images in a folder of results: STEM + suffix + . + ext. `auto` is the format of the image that is read."""

    ext: str = "png"
    suffix: str = ""

    def of(self, path: Path) -> Path:
        own = path.suffix.lower()
        ext = self.ext if self.ext != AUTO else SHORT_SUFFIXES.get(own, own)[1:] if own in IMAGE_SUFFIXES else PNG
        return path.with_name(f"{path.stem}{self.suffix}.{ext}")


class Plan(NamedTuple):
    """The work of all ranks."""

    pairs: Pairs
    existing: int  # images that were enlarged before


class Enlarged(NamedTuple):
    done: int
    failed: int


def upscale(upscaler: Upscaler, pairs: Pairs) -> Enlarged:
    """Enlarges every image of this rank. Failures are printed."""
    failed = 0
    own = pairs[ranks.rank() :: ranks.size()]
    with Progress(len(own), shown=ranks.is_first()) as progress:
        for path, target in own:
            try:
                if path.suffix.lower() in FILMS:
                    raise ImageFileError("it is a film, and only still images are enlarged; write its frames to a folder first")
                large = image_files.fitting(upscaler.image_file(image_files.read(path)), target)
                write_output(target, image_files.encode(large, target.suffix), "OUTPUT")
            except ImageFileError as problem:
                failed += 1
                print_line(f"failed: '{path}': {problem}")
            progress.advance()
    results = ranks.all_gather((len(own) - failed, failed))
    return Enlarged(sum(done for done, _ in results), sum(failed for _, failed in results))


def plan(source: str, out: str, naming: Naming, overwrite: bool) -> Plan:
    """The images to read and to write, decided by the first rank before any is written. All ranks must call."""

    def decide() -> Plan:
        images = Path(source)
        place = Path(out, naming.of(images).name) if images.is_file() and is_folder(out) else Path(out)
        pairs = targets(images, place, naming.ext, naming.suffix)
        if images.is_file():
            refuse_existing(pairs, overwrite)
            return Plan(pairs, 0)
        new = without_existing(pairs, overwrite)
        return Plan(new, len(pairs) - len(new))

    return ranks.from_first(decide)


def targets(source: Path, out: Path, ext: str, suffix: str = "") -> Pairs:
    """Every image and the file to write. Two that differ only in their suffix both keep it: a.jpg.png."""
    naming = Naming(ext, suffix)
    if source.is_file():
        return [(source, out / naming.of(source).name if is_folder(str(out)) else out)]
    folder, images = listing(source)
    root, place = folder.resolve(), out.resolve()
    images = [p for p in images if place == root or not (root / p.relative_to(folder)).is_relative_to(place)]
    if not images:
        raise UserError(f"INPUT: no images in '{source}' (looked for {' '.join(IMAGE_SUFFIXES)})")
    alike = Counter(naming.of(p) for p in images)
    names = [(p, p.relative_to(folder)) for p in images]
    return [(p, out / (whole_name(name, naming) if alike[naming.of(p)] > 1 else naming.of(name))) for p, name in names]


def whole_name(path: Path, naming: Naming) -> Path:
    """Of images that would get the same name: with the suffix that they differ in."""
    ending = naming.of(path).suffix
    return path.with_name(f"{path.name}{naming.suffix}{ending}")


def listing(source: Path) -> tuple[Path, list[Path]]:
    """The images of a folder, or those that match a pattern, and the folder that they lie below."""
    if source.is_dir():
        note_moving(source)
        note_left_out(source)
        return source, sorted([*images_below(source), *(p for p in files_below(source) if is_still_gif(p))])
    parts = source.parts
    first = next((number for number, part in enumerate(parts) if any(sign in part for sign in WILDCARDS)), len(parts) - 1)
    files = [Path(name) for name in glob.glob(str(source), recursive=True)]
    images = sorted(p for p in files if p.is_file() and p.suffix.lower() in (*IMAGE_SUFFIXES, *MOVING))
    return Path(*parts[:first]), images


def is_still_gif(path: Path) -> bool:
    """Whether a .gif has one frame. Only its headers are read."""
    if path.suffix.lower() != ".gif" or not path.is_file():
        return False
    try:
        with Image.open(path, formats=FORMATS) as image:
            return getattr(image, "n_frames", 1) == 1
    except Exception:  # Pillow raises many kinds for what is no image
        return False


def note_moving(folder: Path) -> None:
    """Names the films and GIF of a folder, which are left out."""
    moving = [p for p in files_below(folder) if p.suffix.lower() in MOVING and p.is_file() and not is_still_gif(p)]
    if moving:
        more = f" and {len(moving) - 1} more" if len(moving) > 1 else ""
        print(f"note: '{sorted(moving)[0]}'{more}: moving pictures are left out; write their frames to a folder", flush=True)


def note_left_out(folder: Path) -> None:
    """Names what a user would take for an image of the folder: links to nothing, and images under other names. Hidden files are
    left out without a word."""
    visible = (p for p in files_below(folder) if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    others = sorted(p for p in visible if not p.is_dir() and p.suffix.lower() not in MOVING)
    links = [p for p in others if p.is_symlink() and not p.exists()]
    unnamed = [p for p in others if p.suffix.lower() not in IMAGE_SUFFIXES and p.is_file() and is_image(p)]
    suffixes = f"images without the suffix of one ({' '.join(IMAGE_SUFFIXES)})"
    for files, reason in ((links, "links to nothing"), (unnamed, suffixes)):
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            print(f"note: '{files[0]}'{more}: {reason} are left out", flush=True)


def is_image(path: Path) -> bool:
    """Whether the header is that of an image, whatever the file is called."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # Pillow raises many kinds for what is no image
        return False


def refuse_collisions(pairs: Pairs) -> None:
    """Refuses images of which one would be written over another, or into the place of another's folder."""
    sources = {target: source for source, target in pairs}  # the last one of each target
    for source, target in pairs:
        above = next((folder for folder in target.parents if folder in sources), None)
        if sources[target] != source or above:
            other = sources[above or target]
            raise UserError(f"INPUT: '{source}' and '{other}' cannot both be enlarged to '{above or target}'; rename one of them")


def refuse_own_inputs(pairs: Pairs) -> None:
    sources = {source.resolve() for source, _ in pairs}
    onto = [target for _, target in pairs if target.resolve() in sources]
    if onto:
        raise UserError(f"OUTPUT: '{onto[0]}' is one of the images that are read; name another place, or give --suffix=_large")


def without_existing(pairs: Pairs, overwrite: bool) -> Pairs:
    """The images of a folder that are still to be enlarged: files are written whole, so what exists is done."""
    refuse_collisions(pairs)
    refuse_own_inputs(pairs)
    return [(source, target) for source, target in pairs if overwrite or not target.exists()]


def refuse_existing(pairs: Pairs, overwrite: bool) -> None:
    """For an output that the user named."""
    refuse_collisions(pairs)
    refuse_own_inputs(pairs)
    existing = [target for _, target in pairs if target.exists()]
    if existing and not overwrite:
        raise UserError(f"OUTPUT: '{existing[0]}' would be overwritten; say --overwrite, or name another place")
