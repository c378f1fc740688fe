"""Images in a folder, made as a test wants them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save(tmp_path, make_photo):
    """`save("a/b_HR.png", 32, 40)` -> the pixels of a made photograph, written under that name."""
    (tmp_path / "set").mkdir()
    made = iter(range(1000))

    def write(name: str, height: int, width: int, mode: str = "RGB", **options) -> np.ndarray:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(make_photo(next(made), height, width)).convert(mode)
        image.save(path, **options)
        return np.array(image.convert("RGB"))

    write.folder = tmp_path / "set"  # type: ignore[attr-defined]
    return write
