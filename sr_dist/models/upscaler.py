"""A trained generator as a function of images: files, PIL, numpy, tensors, one or several."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sr_dist.core import launch_env
from sr_dist.core.errors import UserError, with_article
from sr_dist.core.files import IMAGE_SUFFIXES
from sr_dist.core.outputs import write_output
from sr_dist.core.resize import imresize
from sr_dist.models import image_files, image_values, trained
from sr_dist.models.image_files import ImageFile, ImageFileError
from sr_dist.models.tile_sizes import automatic_tile, bytes_per_pixel, with_smaller_tiles
from sr_dist.models.tiling import adapt_channels, upscale_in_tiles
from sr_dist.models.trained import TrainedGenerator, Weights

Tile = int | Literal["auto"] | None  # "auto": by the free memory; None: the whole image at once
Pixels = TypeVar("Pixels", Image.Image, np.ndarray, Tensor)


@dataclass
class Upscaler:
    """Enlarges images by `scale`. Pixels of arrays and tensors are whole numbers up to 255 or 65535, or real ones in [0, 1]."""

    generator: TrainedGenerator
    device: torch.device
    tile: Tile = "auto"
    overlap: int = 32
    half: bool = False
    outscale: float | None = None
    note: Callable[[str], None] = print
    _network: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._network = self.generator.network.to(self.device).eval()

    @cached_property
    def _need(self) -> float:
        """Bytes per pixel of LR."""
        return bytes_per_pixel(self._network, self.generator.channels)

    @property
    def scale(self) -> int:
        return self.generator.scale

    @property
    def name(self) -> str:
        return self.generator.name

    def __repr__(self) -> str:
        return f"<sr_dist generator {self.name}, x{self.scale}, on {self.device}>"

    @overload
    def __call__(self, image: Pixels, *, tile: Tile = ..., out: None = ...) -> Pixels: ...
    @overload
    def __call__(self, image: str | Path, *, tile: Tile = ..., out: None = ...) -> Image.Image: ...
    @overload
    def __call__(self, image: Any, *, tile: Tile = ..., out: str | Path, overwrite: bool = ...) -> Path: ...
    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...], *, tile: Tile = ..., out: None = ...) -> list[Any]: ...

    def __call__(
        self, image: Any, *, tile: Any = image_values.UNSET, out: str | Path | None = None, overwrite: bool = False
    ) -> Any:
        """The enlarged image, of the same kind. A list gives a list; a path gives a PIL image, or with `out` a file, which
        replaces another with `overwrite` only."""
        this = self if tile is image_values.UNSET else replace(self, tile=checked_tile(tile))
        if isinstance(image, list | tuple):
            if out is not None:
                raise UserError(f"out: '{out}' is one file, and these are {len(image)} images; call without out=")
            return [this(one) for one in image]
        if out is not None:
            _check_out(image, Path(out), overwrite)
        try:
            opened, close = image_values.opened(image)
            large = this.image_file(opened)
            return close(large) if out is None else _written(large, Path(out))
        except ImageFileError as problem:
            name = f"'{image}'" if isinstance(image, str | Path) else with_article(type(image).__name__)
            raise UserError(f"image: {name}: {problem}") from None

    def image_file(self, image: ImageFile) -> ImageFile:
        """(B, C, H, W) or (C, H, W) pixels, and alpha, which is enlarged by bicubic interpolation: networks are trained on
        photographs."""
        alpha = None if image.alpha is None else self._resized(imresize(image.alpha.double(), self.scale).float())
        return replace(image, pixels=self._resized(self.planes(image.pixels)), alpha=alpha)

    def planes(self, pixels: Tensor) -> Tensor:
        """(C, H, W) or (B, C, H, W) in [0, 1] with one or three channels -> enlarged by the network, on the CPU."""
        batch = pixels if pixels.ndim == 4 else pixels[None]
        tile = self.tile
        if tile == "auto":
            need = self._need * len(batch)
            tile = automatic_tile((batch.shape[-2], batch.shape[-1]), need, self.overlap, self.device)
        sr, used = with_smaller_tiles(
            lambda tile: self._enlarged(batch, tile), tile, (batch.shape[-2], batch.shape[-1]), self.note
        )
        if used != tile:
            self.tile = used  # the next image would not fit either
        return sr if pixels.ndim == 4 else sr[0]

    def _enlarged(self, batch: Tensor, tile: int | None) -> Tensor:
        upscale = adapt_channels(self._network, self.generator.channels, self.scale)
        with self._precision():
            return upscale_in_tiles(upscale, batch, self.scale, tile, self.overlap, self.device).float()

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.half:
            return nullcontext()
        return torch.autocast(self.device.type, torch.float16 if self.device.type == "cuda" else torch.bfloat16)

    def _resized(self, planes: Tensor) -> Tensor:
        """The network's result at the requested scale."""
        if self.outscale is None or self.outscale == self.scale:
            return planes
        ratio = self.outscale / self.scale * (1 - 1e-9)  # 0.825 x 40 is 33.000000000000004, and sizes are rounded up
        return imresize(planes.double(), ratio).float()


def load(
    source: str | Path | Weights,
    *,
    device: str | torch.device | None = None,
    tile: Tile = "auto",
    half: bool = False,
    scale: int | None = None,
    key: str = "source",
) -> Upscaler:
    """The generator of a run folder (the EMA of its newest checkpoint), a weights file, or published weights by their name.

    `device` is the GPU if there is one. `tile` is the side of tiles in pixels of the image; "auto" cuts only images that do
    not fit into the free memory, and None none. `half` computes in 16 bits. `scale` is for weights that do not show theirs.
    `key` names the source in errors.
    """
    generator = trained.open_generator(source if isinstance(source, Weights) else str(source), key, scale)
    return Upscaler(generator, open_device(device), checked_tile(tile), half=half)


def open_device(device: str | torch.device | None) -> torch.device:
    """The GPU of this rank if there is one, or the device of this name."""
    if device is None:
        return torch.device("cuda", launch_env.local_rank()) if launch_env.uses_cuda() else torch.device("cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError):  # torch's texts name internals
        choices = "choose cpu or cuda" if torch.cuda.is_available() else "choose cpu"
        raise UserError(f"device: '{device}' does not exist on this machine; leave it out, or {choices}") from None
    return place


def checked_tile(tile: Any) -> Tile:
    if tile is None or tile == "auto" or (isinstance(tile, int) and not isinstance(tile, bool) and tile > 0):
        return tile
    raise UserError(f"tile: {tile!r}; it is a number of pixels, 'auto', or None for whole images")


def _check_out(image: Any, out: Path, overwrite: bool) -> None:
    """Before anything is computed. The image itself is never replaced."""
    if out.is_dir():
        raise UserError(f"out: '{out}' is a folder; name a file, such as '{out / 'large.png'}'")
    if out.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f"out: '{out}' has no suffix of an image ({', '.join(IMAGE_SUFFIXES)})")
    if not out.exists():
        return
    if isinstance(image, str | Path) and Path(image).exists() and out.samefile(image):
        raise UserError(f"out: '{out}' is the image that is read; name another file")
    if not overwrite:
        raise UserError(f"out: '{out}' would be overwritten; say overwrite=True, or name another file")


def _written(image: ImageFile, out: Path) -> Path:
    if image.pixels.ndim == 4:  # arrays and tensors
        if len(image.pixels) != 1:
            raise UserError(f"out: '{out}' is one file, and these are {len(image.pixels)} images; call without out=")
        image = replace(image, pixels=image.pixels[0], alpha=None if image.alpha is None else image.alpha[0])
    try:
        data = image_files.encode(image_files.fitting(image, out), out.suffix)
    except ImageFileError as problem:
        raise UserError(f"out: '{out}': {problem}") from None
    write_output(out, data, "out")
    return out
