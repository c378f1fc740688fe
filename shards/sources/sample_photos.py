"""Tiles of the colour photographs in scikit-image's package, which every installation has. INPUT is `train` or `validation`: the
right quarter of every photograph is for validation, the rest for training, so no pixel is in both. The class of a tile is
its photograph.

Only one photograph of the stereo pair is used, and no drawings.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from shards.items import Item, Listing
from sr_dist.core.config import NonNegative, Positive, Settings
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.pixels import FORMATS

PHOTOS = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg",
    "ihc.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
INNER = {"retina.jpg": (300, 300, 1111, 1111)}  # the eye is round, and everything around it is black


class Config(Settings):
    tile: Positive = 96
    """The side of a tile in pixels."""
    stride: NonNegative = 0
    """The distance from tile to tile; 0 means the side of a tile, so that none overlap."""


def listing(root: str, config: Config) -> Listing:
    if root not in ("train", "validation"):
        raise UserError(
            f"INPUT: sample_photos has the parts 'train' and 'validation', not '{root}'{nearest(root, ['train', 'validation'])}"
        )
    items = []
    for label, name in enumerate(PHOTOS):
        left, upper, right, lower = _area(name)
        border = right - max((right - left) // 4, config.tile)
        left, right = (left, border) if root == "train" else (border, right)
        stride = config.stride or config.tile
        for top in range(upper, lower - config.tile + 1, stride):
            for x in range(left, right - config.tile + 1, stride):
                key = f"{Path(name).stem}-{x:04d}-{top:04d}"
                items.append(Item(key, name, label, box=(x, top, x + config.tile, top + config.tile)))
    if not items:
        raise UserError(f"tile: no photograph has room for tiles of {config.tile} pixels in its {root} part")
    return Listing(items, [Path(name).stem for name in PHOTOS], about={"photos": list(PHOTOS)})


def read(item: Item) -> bytes:
    file = io.BytesIO()
    _photo(item.path).crop(item.box).save(file, format="PNG")
    return file.getvalue()


def _area(name: str) -> tuple[int, int, int, int]:
    with Image.open(_folder() / name, formats=FORMATS) as photo:
        return INNER.get(name, (0, 0, *photo.size))


@lru_cache(maxsize=len(PHOTOS))
def _photo(name: str) -> Image.Image:
    return Image.open(_folder() / name, formats=FORMATS).convert("RGB")


def _folder() -> Path:
    from skimage import data  # spares its import in --help and in builds of other sources

    return Path(data.__file__).parent
