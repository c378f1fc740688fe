"""Where pictures lie in HR, and the part of HR that all methods have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sr_dist.core.errors import UserError
from sr_dist.core.printable import plural
from sr_dist.data.image_pairs import Batches, ImagePairs
from sr_dist.evaluation.pictures import Pictures, Size

BORDERS = (
    2  # times the largest published border, the scale + 6 of NTIRE; others are 0, the scale and 4. SRCNN without padding loses 8
)
SHARE = 8  # of a side; a picture of another scale has 3/4 of HR's sides or fewer, so lacks an eighth or more


class Box(NamedTuple):
    """A part of HR as it is cropped to a multiple of the scale."""

    top: int
    left: int
    height: int
    width: int

    def without(self, corner: Size, size: Size) -> Box:
        """What it shares with a picture of this size and corner."""
        top, left = max(self.top, corner[0]), max(self.left, corner[1])
        bottom = min(self.top + self.height, corner[0] + size[0])
        right = min(self.left + self.width, corner[1] + size[1])
        return Box(top, left, bottom - top, right - left)

    def cut(self, whole: Size) -> tuple[int, int, int, int]:
        """The pixels that the whole has more: above, at the left, below, at the right."""
        return self.top, self.left, whole[0] - self.top - self.height, whole[1] - self.left - self.width


@dataclass
class CroppedBatches(Batches):
    """Images of which only a part is compared, because pictures lack the rest."""

    boxes: list[Box] = field(default_factory=list)

    def kind(self, i: int) -> tuple[int, ...]:
        return (*super().kind(i), *self.boxes[i])

    def __getitem__(self, number: int) -> ImagePairs | UserError:
        batch = super().__getitem__(number)
        if isinstance(batch, UserError):
            return batch
        top, left, height, width = self.boxes[self.groups[number][0]]
        return replace(batch, hr=batch.hr[..., top : top + height, left : left + width], corner=(top, left))

    def notes(self) -> list[str]:
        cuts = [cut for i, box in enumerate(self.boxes) if any(cut := box.cut(self.full_size(i)))]
        low, high = (end(pixels for cut in cuts for pixels in cut) for end in (min, max))
        words = f"{plural(low, 'pixel')} cut on every side" if low == high else f"{low} to {high} pixels cut on a side"
        return [
            *super().notes(),
            f"{len(cuts)} of {len(self.boxes)} images compared in the part that all pictures have: {words} of all methods; "
            "smaller pictures are taken for the middle of HR",
        ]


@dataclass(frozen=True)
class Misfit:
    """A picture of another size than HR: what it is, and why it has no known place in HR, if it has none."""

    method: str
    text: str
    reason: str = ""


def fitting(batches: Batches, methods: Sequence[Pictures], crop: bool | None) -> Batches:
    """The batches as these pictures can be compared with them. Refuses other sizes than HR's, or, with `crop`, takes the part of
    HR that all pictures have. `crop` is None where that cannot be asked for."""
    count = len(batches.images.names)
    boxes = [Box(0, 0, *batches.full_size(i)) for i in range(count)]
    misfits = []
    for one in methods:
        for i in range(count):
            corner = place(one.size(i), batches.stored_size(i), batches.full_size(i), batches.scale)
            if corner != (0, 0):
                misfits.append(_misfit(one, batches, i, corner))
            if not isinstance(corner, str):
                one.corners[i] = corner
                boxes[i] = boxes[i].without(corner, one.size(i))
    if not misfits:
        return batches
    if not crop or not batches.has_hr or any(one.reason for one in misfits):
        raise UserError(_refusal(misfits, batches.has_hr, crop is not None))
    return CroppedBatches(batches.images, batches.scale, batches.degrade, batches.size, boxes)


def place(own: Size, stored: Size, full: Size, scale: int) -> Size | str:
    """Where the corner of a picture lies in HR, or why that is not known. `full`: HR cropped to a multiple of the scale.

    Networks without padding and scripts that remove a border leave out as many pixels on every side of what they work on. That
    is HR as it is stored for some, and what the scale divides for others.
    """
    if own in (full, stored):
        return (0, 0)
    if all(abs(side * scale - whole) < scale for side, whole in zip(own, stored, strict=True)):
        return "this is the size of LR"
    if own[0] > stored[0] or own[1] > stored[1]:
        return "it is larger than HR"
    borders = {border for whole in (stored, full) if (border := _border(own, whole))}
    if not borders:
        return "it does not lack as many pixels on one side as on every other"
    if len(borders) > 1:
        return (
            f"it may be the middle of HR before or after that was cropped to a multiple of {scale}; "
            f"crop the images of --data to the pixels of the pictures"
        )
    (border,), most = borders, min(BORDERS * (scale + 6), (min(full) - 1) // SHARE)
    if border > most:
        return f"it lacks {plural(border, 'pixel')} on every side; a border has at most {most} of such images"
    return (border, border)


def _border(own: Size, whole: Size) -> int:
    """The pixels that a picture lacks on every side, if it is the middle of the whole; else 0."""
    height, width = (of_whole - side for of_whole, side in zip(whole, own, strict=True))
    return height // 2 if height == width > 0 and height % 2 == 0 else 0


def _misfit(one: Pictures, batches: Batches, i: int, corner: Size | str) -> Misfit:
    (height, width), stored, own = batches.full_size(i), batches.stored_size(i), one.size(i)
    hr = f"HR {width} x {height}" if batches.has_hr else f"{batches.scale} times LR ({width} x {height})"
    hr = f"HR {stored[1]} x {stored[0]} (cropped: {width} x {height})" if stored != (height, width) else hr
    text = f"picture {own[1]} x {own[0]} and {hr} of '{batches.images.names[i]}' differ in size"
    return Misfit(one.name, text, corner if isinstance(corner, str) else "")


def _refusal(misfits: Sequence[Misfit], has_hr: bool, can_crop: bool) -> str:
    first = next((one for one in misfits if one.reason), misfits[0])
    remedy = "--border=crop compares the part that all have" if can_crop else ""
    remedy = f"it cannot be laid on HR: {first.reason}" if first.reason else remedy
    counts = ", ".join(f"{name} ({count})" for name, count in Counter(one.method for one in misfits).items())
    return f"METHOD: {first.text}; wrong sizes: {counts}{f'; {remedy}' if has_hr and remedy else ''}"


def as_identified(batches: Batches) -> Mapping[str, Any]:
    """What the pixels of HR depend on besides the files."""
    if isinstance(batches, CroppedBatches):
        return {"boxes": batches.boxes}
    return {} if batches.has_hr else {"hr": None}
