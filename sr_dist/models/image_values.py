"""Images in memory: PIL, numpy and torch, as the planes that networks take and back, in their own form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sr_dist.models import image_files
from sr_dist.models.image_files import ImageFile, ImageFileError

Close = Callable[[ImageFile], Any]
UNSET: Any = object()  # an argument that was left out, where None means something
FAR_ABOVE = 4.0  # real numbers with this white level would be black in 255 levels
LEVELS = {np.dtype("uint8"): 255, np.dtype("uint16"): 65535, np.dtype("bool"): 1}


def opened(image: Any) -> tuple[ImageFile, Close]:
    """An image as planes, and the function that gives planes the form of that image."""
    if isinstance(image, str | Path):
        return image_files.read(Path(image)), image_files.to_pil
    if isinstance(image, Image.Image):
        return _of_pil(image)
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Tensor):
        return _of_tensor(image)
    raise ImageFileError("not an image; give a path, a PIL image, a numpy array, a tensor, or a list of them")


def _of_pil(image: Image.Image) -> tuple[ImageFile, Close]:
    """Pixels stay where they are: an EXIF orientation is kept beside them, not applied."""
    info = {key: value for key, value in image.info.items() if key in ("icc_profile", "exif", "dpi", "xmp")}
    mode = image.mode

    def close(large: ImageFile) -> Image.Image:
        result = image_files.to_pil(large)
        if mode in ("1", "CMYK", "YCbCr", "HSV", "LAB"):
            result = result.convert(mode)
        result.info.update(info)
        return result

    return image_files.from_pil(image), close


def _of_array(array: np.ndarray) -> tuple[ImageFile, Close]:
    """(H, W), (H, W, C) or (B, H, W, C)."""
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and array.shape[-1] not in (1, 2, 3, 4)) or 0 in array.shape:
        raise ImageFileError(f"the array has the shape {array.shape}; images are (H, W), (H, W, C) or (B, H, W, C)")
    top = _top_level(array.dtype)
    whole = array.reshape(-1, *(array.shape if array.ndim == 2 else array.shape[-3:-1]), array.shape[-1] if array.ndim > 2 else 1)
    planes = torch.from_numpy(whole.astype(np.float32) / np.float32(top)).permute(0, 3, 1, 2)
    _check_range(planes, top)

    def close(large: ImageFile) -> np.ndarray:
        result = _with_levels(joined(large), top).permute(0, 2, 3, 1).numpy().astype(array.dtype)
        return result if array.ndim == 4 else result[0] if array.ndim == 3 else result[0, ..., 0]

    return _separated(planes), close


def _of_tensor(tensor: Tensor) -> tuple[ImageFile, Close]:
    """(H, W), (C, H, W) or (B, C, H, W), on any device."""
    if tensor.ndim not in (2, 3, 4) or (tensor.ndim > 2 and tensor.shape[-3] not in (1, 2, 3, 4)) or 0 in tensor.shape:
        raise ImageFileError(f"the tensor has the shape {tuple(tensor.shape)}; images are (H, W), (C, H, W) or (B, C, H, W)")
    real = tensor.is_floating_point()
    top = 1 if real else _top_level(np.dtype(str(tensor.dtype).removeprefix("torch.")))
    plain = tensor.detach().cpu().float() / top
    planes = plain.reshape(-1, *(plain.shape[-3:] if plain.ndim > 2 else (1, *plain.shape)))
    _check_range(planes, top)

    def close(large: ImageFile) -> Tensor:
        result = _with_levels(joined(large), top).to(tensor.device, tensor.dtype)
        return result if tensor.ndim == 4 else result[0] if tensor.ndim == 3 else result[0, 0]

    return _separated(planes), close


def _top_level(kind: np.dtype) -> int:
    if kind.kind == "f":
        return 1
    kind = kind.newbyteorder("=")  # '>u2' of a file has the levels of uint16
    if kind not in LEVELS:
        raise ImageFileError(f"pixels of {kind} have no known white level; use uint8, uint16, or real numbers in [0, 1]")
    return LEVELS[kind]


def _check_range(planes: Tensor, top: int) -> None:
    """Real numbers. A few overshoot 1, as after bicubic interpolation, and are clipped in the result."""
    if top != 1:
        return
    if not planes.isfinite().all():
        raise ImageFileError("some of its pixels are not finite (NaN or infinite)")
    if (largest := float(planes.max())) > FAR_ABOVE:
        levels = "255" if largest < 256 else "65535" if largest < 65536 else "their white level"
        raise ImageFileError(
            f"real numbers are in [0, 1], and its largest is {largest:g}; divide by {levels}, or give uint8 or uint16"
        )


def _with_levels(planes: Tensor, top: int) -> Tensor:
    planes = planes.clamp(0, 1)
    return planes if top == 1 else (planes * top + 0.5).floor()


def _separated(planes: Tensor) -> ImageFile:
    """Two and four channels end with alpha."""
    colours = 3 if planes.shape[1] >= 3 else 1
    alpha = planes[:, colours:] if planes.shape[1] in (2, 4) else None
    return ImageFile(planes[:, :colours], alpha, 8, None)


def joined(image: ImageFile) -> Tensor:
    """Colours and alpha as the channels of one batch."""
    return image.pixels if image.alpha is None else torch.cat([image.pixels, image.alpha], -3)
