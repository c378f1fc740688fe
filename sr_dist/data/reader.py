"""Members of shards as bytes that are known to be right, and as pixels."""

from __future__ import annotations

import io
import math
import os
import resource
import sys
import zlib
from collections import OrderedDict
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode  # here, for W&B watches imports and fails in a forked worker; it brings the operator

from sr_dist.core.errors import first_line
from sr_dist.data.format import Index, ShardError, Shards, attribute_values
from sr_dist.data.jpeg_rows import band

JPEG = b"\xff\xd8"
ASK_AGAIN = 600.0  # seconds after which a shard that could not be opened is asked for again
NO_ATTRIBUTES = np.zeros(0, np.uint8)


class Square(NamedTuple):
    """A part of an image."""

    top: int
    left: int
    side: int


class ShardReader:
    """Members of shards by (shard, row): pread through a bounded set of open files, checked at every read. It shares what a
    process may open with the process's other `readers`: by default one trains and one validates.
    """

    def __init__(self, shards: Shards, readers: int = 2) -> None:
        self.shards, self.readers = shards, readers
        self._most = min(shards.OPEN_AT_ONCE, max(_may_be_open() // readers, 2))
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, Index] = OrderedDict()  # a mapped file is an open one
        self._lost: dict[int, tuple[float, ShardError]] = {}  # shards that could not be opened, and when that was
        self._renewed: set[int] = set()  # shards whose copy was damaged and made again

    def __reduce__(self) -> tuple:
        return ShardReader, (self.shards, self.readers)  # open files and maps stay in their process

    def index(self, shard: int) -> Index:
        if shard not in self._indexes:
            if len(self._indexes) >= self._most:
                self._indexes.popitem(last=False)
            self._indexes[shard] = self.shards.index(shard)
        self._indexes.move_to_end(shard)
        return self._indexes[shard]

    def key(self, shard: int, row: int) -> str:
        return self.index(shard)["key"][row].decode()

    def label(self, shard: int, row: int) -> int:
        return int(self.index(shard)["class"][row])

    def attributes(self, shard: int, row: int) -> np.ndarray:
        """(A,) of 0 and 1, in the manifest's order."""
        count = len(self.shards.manifest.attributes)
        return attribute_values(self.index(shard)["attributes"][row : row + 1], count)[0] if count else NO_ATTRIBUTES

    def read(self, shard: int, row: int, member: str) -> bytearray:
        """The bytes of one member ("hr" or "lr"); empty where there is none."""
        data = self._bytes(shard, row, member)
        if data is None and shard not in self._renewed and self.shards.forget(shard):
            self._renewed.add(shard)
            os.close(self._files.pop(shard))
            data = self._bytes(shard, row, member)
        if data is None:
            raise self._damaged(shard, f"the {member} image of '{self.key(shard, row)}' does not match its checksum")
        return data

    def image(self, shard: int, row: int, member: str, channels: int) -> Tensor | None:
        """(C, H, W) uint8, or None where the member does not exist."""
        data = self.read(shard, row, member)
        return self._decoded(shard, row, data, channels) if data else None

    def size(self, shard: int, row: int, member: str) -> tuple[int, int]:
        """(height, width), as the index knows it."""
        index, small = self.index(shard), "lr_" if member == "lr" else ""
        return int(index[f"{small}height"][row]), int(index[f"{small}width"][row])

    def square(self, shard: int, row: int, member: str, channels: int, square: Square) -> np.ndarray | None:
        """(side, side, C) uint8 of an image; of a JPEG only the rows around it are decoded, where its build allows that. An
        image that is too small gets its last row and column repeated.
        """
        data = self.read(shard, row, member)
        if not data:
            return None
        top, left, side = square
        size = height, width = self.size(shard, row, member)
        bottom, right = min(top + side, height), min(left + side, width)
        part, first = band(data, size, top, bottom) if data[:2] == JPEG else (data, 0)
        if part is not data:
            with suppress(RuntimeError):  # it was damaged before it was packed, and the decoder may be content with the whole
                return _filled(_rows(decode(part, channels))[top - first : bottom - first, left:right], side)
        pixels = _rows(self._decoded(shard, row, data, channels))
        if pixels.shape[:2] != size or top >= bottom or left >= right:
            raise self._damaged(shard, f"the {member} image of '{self.key(shard, row)}' is not of the size that its index says")
        return _filled(pixels[top:bottom, left:right], side)

    def _decoded(self, shard: int, row: int, data: bytearray, channels: int) -> Tensor:
        try:
            return decode(data, channels)
        except RuntimeError as problem:
            raise self._damaged(shard, f"'{self.key(shard, row)}' cannot be decoded: {first_line(problem)}") from None

    def _bytes(self, shard: int, row: int, member: str) -> bytearray | None:
        """What lies where the index says, or None if it is something else."""
        index = self.index(shard)
        size = int(index[f"{member}_bytes"][row])
        if not size:
            return bytearray()
        data = bytearray(size)
        try:
            right = os.preadv(self._file(shard), [data], int(index[f"{member}_offset"][row])) == size
        except OSError as problem:
            what = f"the {member} image of '{self.key(shard, row)}' cannot be read: {problem.strerror}"
            raise self._damaged(shard, what) from None
        return data if right and zlib.crc32(data) == int(index[f"{member}_crc32"][row]) else None

    def _damaged(self, shard: int, what: str) -> ShardError:
        return ShardError(f"'{self.shards.where(shard)}': {what}{self.shards.advice()}")

    def _file(self, shard: int) -> int:
        since, problem = self._lost.get(shard, (-math.inf, None))
        if problem and monotonic() - since < ASK_AGAIN:  # it would take as long as the first time
            raise problem
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= self._most:
            os.close(self._files.popitem(last=False)[1])
        try:
            self._files[shard] = self.shards.open(shard)
        except (ShardError, OSError) as caught:
            lost = caught if isinstance(caught, ShardError) else self._damaged(shard, f"cannot be opened: {caught.strerror}")
            self._lost[shard] = monotonic(), lost
            raise lost from None
        return self._files[shard]


def _may_be_open() -> int:
    """Shards: each takes two of the files that a process may have open, its tar and its index; a quarter is left to others."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most * 3 // 8


def decode(data: bytes | bytearray, channels: int) -> Tensor:
    """JPEG, PNG or WebP bytes -> (C, H, W) uint8 with 1 or 3 channels; a RuntimeError says why it cannot be.

    torchvision is fastest for JPEG, without the wrapping that costs 4 % of the time and warns in every process; its PNG reader
    ends the whole process on damaged pixels, so Pillow reads the others.
    """
    if data[:2] == JPEG:
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        raw = torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=torch.uint8)
        return torch.ops.image.decode_jpeg(raw, mode.value, False)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_tensor(image, channels)
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as problem:
        raise RuntimeError(first_line(problem)) from None


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """A Pillow image -> (C, H, W) uint8; 16 bits become 8."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.int32) / 257 + 0.5).clip(0, 255).astype(np.uint8))
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def _rows(image: Tensor) -> np.ndarray:
    """(H, W, C): numpy cuts and copies with less ado, and decoders leave pixels so."""
    return image.permute(1, 2, 0).numpy()


def _filled(image: np.ndarray, side: int) -> np.ndarray:
    height, width, _ = image.shape
    if height == width == side:
        return image
    return np.pad(image, ((0, side - height), (0, side - width), (0, 0)), mode="edge")
