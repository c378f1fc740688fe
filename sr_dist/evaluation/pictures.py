"""Pictures that were made elsewhere as a method: files matched to HR by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_dist.core.errors import UserError
from sr_dist.core.files import images_below
from sr_dist.core.printable import plural
from sr_dist.data.folder_images import ImageFiles, names_below
from sr_dist.data.image_pairs import ImagePairs
from sr_dist.data.images import Images, changed_when_read, contents_of

Size = tuple[int, int]
LISTED = 5  # names in a message


class Pictures:
    """The pictures of one method, one for each image of a set."""

    def __init__(self, name: str, folder: Path, images: Sequence[str]) -> None:
        """Finds the picture of every image. Refuses a folder in which one is missing, or which has several methods."""
        self.name, self.folder = name, folder
        files = images_below(folder)
        if not files:
            raise UserError(f"METHOD: no pictures in '{folder}', and no recipe.yaml of a run")
        self.ending, partners = match(images, [str(path.relative_to(folder).with_suffix("")) for path in files], str(folder))
        self.files = [files[number] for number in partners]
        self.unused = sorted(set(names_below(folder, files)) - set(names_below(folder, self.files)))
        self._number = {image: number for number, image in enumerate(images)}
        self._images = ImageFiles(self.files, [str(path.relative_to(folder)) for path in self.files], [])
        self.corners: dict[int, Size] = {}  # of the pictures in HR

    def size(self, number: int) -> Size:
        return self._images.shape(number)[:2]

    def of(self, batch: ImagePairs) -> Tensor:
        """(B, 3, H, W) float in [0, 1]: what the pictures of these images have of this part of HR."""
        (top, left), (height, width) = batch.corner or (0, 0), batch.hr.shape[-2:]
        pictures = []
        for number in map(self._number.__getitem__, batch.names):
            above, before = self.corners.get(number, (0, 0))
            rows, columns = slice(top - above, top - above + height), slice(left - before, left - before + width)
            pictures.append(self._images.load(number)[0][:, rows, columns].to(torch.float64).div(255).float())
        return torch.stack(pictures)

    def source(self) -> dict[str, Any]:
        """For the report. All ranks must call: each reads some of the files."""
        return {
            "pictures": str(self.folder),
            "sha256": contents_of(self._images).digest(),
            "files": len(self.files),
            "ending": self.ending,
        }

    def notes(self, images: Images) -> list[str]:
        """Notes for the report: how many pictures of these images are not what another program made, or lose something here."""
        indices = range(len(self.files))
        formats = [self._images.format(i) for i in indices]
        counts = {
            "stored as JPEG, which changes pixels": sum(name in ("JPEG", "MPO") for name in formats),
            "stored as WebP, which may change pixels": sum(
                name == "WEBP" and not is_lossless(path) for name, path in zip(formats, self.files, strict=True)
            ),
            "stored grey beside images in colour": sum(self._images.shape(i)[2] > images.shape(i)[2] for i in indices),
            **changed_when_read([self._images.mode(i) for i in indices]),
        }
        notes = [f"{count} of {len(formats)} pictures of {self.name} {words}" for words, count in counts.items() if count]
        count = plural(len(self.unused), "picture")
        return notes + ([f"{count} of {self.name} without an image: {listed(self.unused)}"] if self.unused else [])


def is_lossless(webp: Path) -> bool:
    """Whether its first chunk says so. That of a WebP with metadata or transparency may be another one."""
    with webp.open("rb") as file:
        return file.read(16)[12:] == b"VP8L"


def match(images: Sequence[str], pictures: Sequence[str], folder: str) -> tuple[str, list[int]]:
    """The ending that names of pictures have after those of images (`_x4`, `-out`, none), and the picture of each image.

    A folder of one method has one ending. The ending that fits most images is taken.
    """
    plain = [re.sub(r"_[HL]R$", "", image, flags=re.IGNORECASE) for image in images]
    unscaled = [re.sub(r"[xX]\d$", "", name) for name in plain]  # LR of DIV2K is 0801x4
    by_ending = _endings(plain, pictures) or _endings(unscaled, pictures)
    if not by_ending:  # HR in folders of classes and pictures in one, or the other way round
        by_ending = _endings([Path(name).name for name in plain], [Path(picture).name for picture in pictures])
    most = max(map(len, by_ending.values()), default=0)
    best = [ending for ending, numbers in by_ending.items() if len(numbers) == most]
    best = [ending for ending in best if not ending] or [e for e in best if e.upper() not in ("_HR", "_LR")] or best
    if len(best) > 1:
        endings = " and ".join(map(repr, sorted(best)[:LISTED]))
        raise UserError(
            f"METHOD: names in '{folder}' end in {endings}; name a folder of one method, whose names all have one ending"
        )
    numbers = by_ending[best[0]] if best else {}
    if missing := [i for i in range(len(images)) if i not in numbers]:
        raise UserError(
            f"METHOD: no picture in '{folder}' for {listed([images[i] for i in missing])} ({len(missing)} of {len(images)} "
            f"images){_under_other_endings(images, missing, best, by_ending)}"
        )
    if twice := [images[i] for i, several in numbers.items() if len(several) > 1]:
        raise UserError(f"METHOD: several pictures in '{folder}' for {listed(twice)}, which differ only in their suffix")
    return best[0], [numbers[i][0] for i in range(len(images))]


def _under_other_endings(
    images: Sequence[str], missing: Sequence[int], best: Sequence[str], by_ending: Mapping[str, Mapping[int, list[int]]]
) -> str:
    """The end of a message about missing pictures: those that are there under other endings."""
    own = {ending: [images[i] for i in missing if i in numbers] for ending, numbers in by_ending.items()}
    others = [f"'{ending}' ({listed(names)})" for ending, names in sorted(own.items()) if names]
    if not others:
        return ""
    taken = f"with the ending '{best[0]}', which most have" if best[0] else "without an ending, as most are named"
    return f" {taken}; other endings there: {listed(others)}; give all names one ending"


def _endings(images: Sequence[str], pictures: Sequence[str]) -> dict[str, dict[int, list[int]]]:
    """Ending -> image -> its pictures. bird_2_SR belongs to bird_2 rather than to bird, where both are images."""
    known = {name.casefold(): number for number, name in enumerate(images)}
    if len(known) < len(images):
        known = {name: number for number, name in enumerate(images)}
    result: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, picture in enumerate(pictures):
        for length in range(len(picture), 0, -1):
            begin, ending = picture[:length], picture[length:]
            image = known.get(begin.casefold(), known.get(begin))
            if image is not None and re.fullmatch(r"|([_. -]|[xX]\d)[^/]*", ending):
                result[ending][image].append(number)
                break
    return {ending: dict(numbers) for ending, numbers in result.items()} if len(known) == len(images) else {}


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
