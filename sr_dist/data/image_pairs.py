"""LR and HR of a validation set in batches. Over all ranks, every image occurs exactly once.

Batches are formed from the sorted list, and ranks take whole batches. So the images that a network gets at one time, and every
bit of the result, do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sr_dist.core import ranks
from sr_dist.core.contracts import Degradation
from sr_dist.core.errors import UserError
from sr_dist.core.progress import Progress
from sr_dist.data.images import Images, changed_when_read
from sr_dist.data.order import split_range

MOST_PIXELS = 2**22  # of HR in a batch: one image of DIV2K, eight of 724 x 724


@dataclass(frozen=True)
class ImagePairs:
    """A batch of images of one size. Images that are stored as `grey` are their own luma."""

    lr: Tensor  # (B, 3, h, w) float
    hr: Tensor  # (B, 3, H, W) float
    names: tuple[str, ...]
    label: Tensor  # (B,); -1 where there is no class
    grey: bool
    attributes: Mapping[str, Tensor] = field(default_factory=dict)  # by name: (B,) of 0 and 1
    corner: tuple[int, int] | None = None  # of HR in what a network makes of LR, if HR is a part of that

    def single(self, i: int) -> ImagePairs:
        """The image i alone."""
        one = slice(i, i + 1)
        attributes = {name: values[one] for name, values in self.attributes.items()}
        return replace(
            self, lr=self.lr[one], hr=self.hr[one], names=self.names[one], label=self.label[one], attributes=attributes
        )


@dataclass
class Batches(Dataset[ImagePairs | UserError]):
    """The images in batches: up to `size` neighbours of the sorted list with the same size and kind of storage, and no more than
    MOST_PIXELS unless it is one image."""

    images: Images
    scale: int
    degrade: Degradation
    size: int
    has_hr: ClassVar[bool] = True

    @cached_property
    def groups(self) -> list[range]:
        """The images of each batch."""
        shapes = [self.kind(i) for i in range(len(self.images.names))]
        cuts = [i for i in range(len(shapes)) if i == 0 or shapes[i] != shapes[i - 1]] + [len(shapes)]
        return [
            range(low, min(low + size, end))
            for start, end in zip(cuts, cuts[1:], strict=False)
            for size in [min(self.size, max(MOST_PIXELS // math.prod(self.stored_size(start)), 1))]
            for low in range(start, end, size)
        ]

    def stored_size(self, i: int) -> tuple[int, int]:
        """Height and width of HR before it is cropped."""
        return self.images.shape(i)[:2]

    def full_size(self, i: int) -> tuple[int, int]:
        """Height and width of HR as it is compared: a multiple of the scale."""
        height, width, _ = self.images.shape(i)
        return height // self.scale * self.scale, width // self.scale * self.scale

    def kind(self, i: int) -> tuple[int, ...]:
        """Images of one batch are of one kind."""
        return self.images.shape(i)

    def __len__(self) -> int:
        return len(self.groups)

    def notes(self) -> list[str]:
        """Notes for the report: how many images are changed before they are scored, and how."""
        indices = range(len(self.images.names))
        shapes, modes = [self.images.shape(i) for i in indices], [self.images.mode(i) for i in indices]
        counts = {
            f"cropped at the right and below to a multiple of {self.scale}": sum(
                bool(height % self.scale or width % self.scale) for height, width, _ in shapes
            ),
            "stored grey, so their own Y": sum(grey for _, _, grey in shapes),
            **changed_when_read(modes),
        }
        return [f"{count} of {len(modes)} images {meaning}" for meaning, count in counts.items() if count]

    def __getitem__(self, number: int) -> ImagePairs | UserError:
        group = self.groups[number]
        try:
            pairs = [self._pair(i) for i in group]
        except UserError as error:  # returned, because an exception raised in a worker arrives as a long traceback
            return error
        lr, hr, label = zip(*pairs, strict=True)
        grey = self.images.shape(group[0])[2]
        names = tuple(self.images.names[i] for i in group)
        values = [self.images.attributes(i) for i in group]
        attributes = {name: torch.tensor([value[name] for value in values]) for name in values[0]}
        return ImagePairs(torch.stack(lr), torch.stack(hr), names, torch.tensor(label), grey, attributes)

    def _pair(self, i: int) -> tuple[Tensor, Tensor, int]:
        """LR and HR, (3, h, w) and (3, H, W), and the class number."""
        hr, lr, label = self.stored_pair(i)
        if lr is None:
            lr = self.degrade(hr[None], torch.tensor([i]))[0]
        return lr.float(), hr.float(), label

    def stored_pair(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        """HR without what the scale does not divide, (3, H, W), LR if it is stored, (3, h, w), and the class number: float64 in
        [0, 1]."""
        hr8, lr8, label = self.images.load(i)
        hr, scale = hr8.to(torch.float64) / 255, self.scale
        if lr8 is None:
            height, width = (side // scale * scale for side in hr.shape[-2:])
            if not height or not width:
                raise UserError(f"'{self.images.names[i]}' ({hr.shape[-1]} x {hr.shape[-2]}) is smaller than the scale {scale}")
            return hr[:, :height, :width], None, label
        lr = lr8.to(torch.float64) / 255
        height, width = lr.shape[-2] * scale, lr.shape[-1] * scale
        if not (0 <= hr.shape[-2] - height < scale and 0 <= hr.shape[-1] - width < scale):
            raise UserError(
                f"'{self.images.names[i]}': LR {lr.shape[-1]} x {lr.shape[-2]} and HR {hr.shape[-1]} x {hr.shape[-2]} "
                f"are not {scale} times apart"
            )
        return hr[:, :height, :width], lr, label


def numbers_of_this_rank(batches: Batches) -> range:
    """The consecutive whole batches of this rank. They are disjoint over ranks, and a rank may have none."""
    return split_range(len(batches), ranks.size(), ranks.rank())


def progress_of(batches: Batches, remaining: Sequence[int], about: str) -> Progress:
    """The progress of this rank's images, of which batches remain."""
    own, left = (sum(len(batches.groups[i]) for i in numbers) for numbers in (numbers_of_this_rank(batches), remaining))
    return progress_of_rank(own, own - left, about)


def progress_of_rank(total: int, done: int, about: str) -> Progress:
    """The progress of this rank's images. Only the first rank shows it."""
    about = f"{about} on rank 0 of {ranks.size()}" if ranks.size() > 1 else about
    return Progress(total, done=done, about=about, shown=ranks.is_first())


def load(batches: Batches, numbers: Sequence[int], workers: int = 0) -> Iterator[ImagePairs]:
    """The batches with these numbers. Without workers a thread loads one batch ahead: decoding runs beside the caller's work."""
    several = workers > 0 and len(numbers) > 1
    loader = (
        DataLoader(batches, sampler=numbers, batch_size=None, num_workers=workers) if several else _one_ahead(batches, numbers)
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _one_ahead(batches: Batches, numbers: Sequence[int]) -> Iterator[ImagePairs | UserError]:
    # Not closed: its thread ends with the last reference to it. Closing waits for the thread, and a generator that was left early
    # can be closed by the garbage collector in that very thread.
    thread = ThreadPoolExecutor(1, "load")
    loading = thread.submit(batches.__getitem__, numbers[0]) if numbers else None
    for following in [*numbers[1:], None]:
        batch = loading.result() if loading else None
        loading = None if following is None else thread.submit(batches.__getitem__, following)
        if batch is not None:
            yield batch
