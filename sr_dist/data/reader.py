"""Reads members of shards, as checked bytes and as pixels."""

from __future__ import annotations

import io
import math
import os
import re
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
from torchvision.io import ImageReadMode  # not in a worker: W&B hooks imports and fails there; registers the operator

from sr_dist.core.errors import first_line
from sr_dist.core.pixels import MAX_PIXELS, open_image
from sr_dist.data.format import Index, ShardError, Shards, attribute_values
from sr_dist.data.jpeg_rows import band, stated_size
from sr_dist.data.png_rows import upper_rows

JPEG = b"\xff\xd8"
PLACE_IN_CODE = re.compile(r"^\w+, \S+:\d+, ")  # which torchvision puts before its message
RETRY_AFTER = 600.0  # seconds after which opening a missing shard is tried again
INDEX_BYTES = 64 << 20  # of indexes in the memory of one reader; the index of a million samples has about 100 MB
NO_ATTRIBUTES = np.zeros(0, np.uint8)


class Square(NamedTuple):
    """A square part of an image."""

    top: int
    left: int
    side: int


class Box(NamedTuple):
    """A part of an image, as Pillow's `crop` takes it."""

    left: int
    top: int
    right: int
    bottom: int


class ShardReader:
    """Members of shards by (shard, row): pread from a bounded set of open files, with the checksum checked at every read.

    The limit of open files is divided among the `num_readers` of the process: by default, one trains and one validates.
    """

    def __init__(self, shards: Shards, num_readers: int = 2) -> None:
        self.shards, self.num_readers = shards, num_readers
        self._max_open = min(shards.OPEN_AT_ONCE, max(_max_open_shards() // num_readers, 2))
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, Index] = OrderedDict()
        self._index_bytes = 0  # of all of them
        self._failures: dict[int, tuple[float, ShardError]] = {}  # shards that could not be opened, with the time
        self._refetched: set[int] = set()  # shards whose cached copy was damaged

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Shards, int]]:
        return ShardReader, (self.shards, self.num_readers)  # without open files and indexes

    def index(self, shard: int) -> Index:
        if shard not in self._indexes:
            self._indexes[shard] = self.shards.index(shard)
            self._index_bytes += self._indexes[shard].num_bytes
            while self._index_bytes > INDEX_BYTES and len(self._indexes) > 1:
                self._index_bytes -= self._indexes.popitem(last=False)[1].num_bytes
        self._indexes.move_to_end(shard)
        return self._indexes[shard]

    def key(self, shard: int, row: int) -> str:
        return self.index(shard)["key"][row].decode()

    def label(self, shard: int, row: int) -> int:
        return int(self.index(shard)["class"][row])

    def attributes(self, shard: int, row: int) -> np.ndarray:
        """(A,) of 0 and 1, in the order of the manifest."""
        count = len(self.shards.manifest.attributes)
        return attribute_values(self.index(shard)["attributes"][row : row + 1], count)[0] if count else NO_ATTRIBUTES

    def read(self, shard: int, row: int, member: str) -> bytearray:
        """The bytes of one member ("hr" or "lr"); empty if it does not exist."""
        data = self._bytes(shard, row, member)
        if data is None and shard not in self._refetched and self.shards.forget(shard):
            self._refetched.add(shard)
            os.close(self._files.pop(shard))
            data = self._bytes(shard, row, member)
        if data is None:
            raise self._damaged(shard, f"the {member} image of '{self.key(shard, row)}' does not match its checksum")
        return data

    def image(self, shard: int, row: int, member: str, channels: int) -> Tensor | None:
        """(C, H, W) uint8, or None if the member does not exist."""
        data = self.read(shard, row, member)
        image = self._decode(shard, row, data, channels) if data else None
        if image is not None and tuple(image.shape[1:]) != self.size(shard, row, member):
            raise self._wrong_size(shard, row, member)
        return image

    def size(self, shard: int, row: int, member: str) -> tuple[int, int]:
        """(height, width) according to the index."""
        index, prefix = self.index(shard), "lr_" if member == "lr" else ""
        return int(index[f"{prefix}height"][row]), int(index[f"{prefix}width"][row])

    def square(self, shard: int, row: int, member: str, channels: int, square: Square) -> np.ndarray | None:
        """(side, side, C) uint8 of an image, or None if the member does not exist."""
        data = self.read(shard, row, member)
        if not data:
            return None
        try:
            return decode_square(data, channels, self.size(shard, row, member), square)
        except WrongSize:
            raise self._wrong_size(shard, row, member) from None
        except RuntimeError as error:
            raise self._undecodable(shard, row, error) from None

    def _decode(self, shard: int, row: int, data: bytearray, channels: int) -> Tensor:
        try:
            return decode(data, channels)
        except RuntimeError as error:
            raise self._undecodable(shard, row, error) from None

    def _undecodable(self, shard: int, row: int, error: RuntimeError) -> ShardError:
        return self._damaged(shard, f"'{self.key(shard, row)}' cannot be decoded: {first_line(error)}")

    def _bytes(self, shard: int, row: int, member: str) -> bytearray | None:
        """The bytes at the offset in the index, or None if their checksum differs."""
        index = self.index(shard)
        size = int(index[f"{member}_bytes"][row])
        if not size:
            return bytearray()
        data = bytearray(size)
        try:
            complete = os.preadv(self._file(shard), [data], int(index[f"{member}_offset"][row])) == size
        except OSError as error:
            problem = f"the {member} image of '{self.key(shard, row)}' cannot be read: {error.strerror}"
            raise self._damaged(shard, problem) from None
        return data if complete and zlib.crc32(data) == int(index[f"{member}_crc32"][row]) else None

    def _wrong_size(self, shard: int, row: int, member: str) -> ShardError:
        return self._damaged(shard, f"the {member} image of '{self.key(shard, row)}' does not have the size in the index")

    def _damaged(self, shard: int, problem: str) -> ShardError:
        return ShardError(f"'{self.shards.where(shard)}': {problem}{self.shards.advice()}")

    def _file(self, shard: int) -> int:
        since, failure = self._failures.get(shard, (-math.inf, None))
        if failure and monotonic() - since < RETRY_AFTER:  # another try would take as long as the first
            raise failure
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= self._max_open:
            os.close(self._files.popitem(last=False)[1])
        try:
            self._files[shard] = self.shards.open(shard)
        except (ShardError, OSError) as error:
            failure = error if isinstance(error, ShardError) else self._damaged(shard, f"cannot be opened: {error.strerror}")
            self._failures[shard] = monotonic(), failure
            raise failure from None
        return self._files[shard]


def _max_open_shards() -> int:
    """Less than half of the files that a process may open: sockets, pipes and shared memory need the others."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit * 3 // 8


def decode(data: bytes | bytearray, channels: int) -> Tensor:
    """JPEG, PNG or WebP bytes -> (C, H, W) uint8 with 1 or 3 channels. Raises a RuntimeError for bytes that are no image.

    torchvision is the fastest decoder for JPEG. Its Python wrapper costs 4 % of the time and warns in every process, so we call
    the operator. Its PNG reader ends the whole process on damaged pixels, so Pillow reads the other formats.
    """
    if data[:2] == JPEG:
        if (size := stated_size(data)) and math.prod(size) > MAX_PIXELS:
            raise RuntimeError(f"{size[1]} x {size[0]} is more than {MAX_PIXELS} pixels")
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        raw = torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=torch.uint8)
        try:
            return torch.ops.image.decode_jpeg(raw, mode.value, False)
        except RuntimeError as error:
            raise RuntimeError(PLACE_IN_CODE.sub("", first_line(error))) from None
    try:
        with open_image(io.BytesIO(data)) as image:
            return to_tensor(image, channels)
    except Exception as error:  # decoders raise errors of many types
        raise RuntimeError(first_line(error)) from None


class WrongSize(RuntimeError):
    """An image that has not the size that an index or its header states."""


def decode_square(data: bytearray, channels: int, size: tuple[int, int], square: Square) -> np.ndarray:
    """(side, side, C) uint8 of an image of `size`, (height, width). Of a JPEG with restart markers, only the rows around the
    square are decoded; of a PNG, those down to its end. The last row and column of an image that is too small are repeated.
    """
    top, left, side = square
    box = Box(left, top, min(left + side, size[1]), min(top + side, size[0]))
    pixels = _jpeg_box(data, channels, size, box) if data[:2] == JPEG else _pillow_box(data, channels, size, box)
    return _padded(pixels, side)


def _jpeg_box(data: bytearray, channels: int, size: tuple[int, int], box: Box) -> np.ndarray:
    """(height, width, C) uint8 of a box in a JPEG."""
    left, top, right, bottom = box
    part, first = band(data, size, top, bottom)
    if part is not data:
        with suppress(RuntimeError):  # damaged before it was packed; the decoder may accept the whole file
            return hwc(decode(part, channels))[top - first : bottom - first, left:right]
    pixels = hwc(decode(data, channels))
    _check_size(pixels.shape[:2], size, box)
    return pixels[top:bottom, left:right]


def _pillow_box(data: bytearray, channels: int, size: tuple[int, int], box: Box) -> np.ndarray:
    """The same of a PNG or WebP. Colours are converted after the cut, because the time for that grows with the pixels."""
    part = upper_rows(data, size, box.bottom)
    if part is not data:
        with suppress(Exception), open_image(io.BytesIO(part)) as image:  # decoders raise errors of many types
            return hwc(to_tensor(image.crop(box), channels))
    try:
        with open_image(io.BytesIO(data)) as image:
            _check_size((image.height, image.width), size, box)
            return hwc(to_tensor(image.crop(box), channels))
    except WrongSize:
        raise
    except Exception as error:
        raise RuntimeError(first_line(error)) from None


def _check_size(actual: tuple[int, ...], size: tuple[int, int], box: Box) -> None:
    if actual != size or box.top >= box.bottom or box.left >= box.right:
        raise WrongSize(f"its header states {size[1]} x {size[0]} pixels, and it has {actual[1]} x {actual[0]}")


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """A Pillow image -> (C, H, W) uint8. 16 bits are reduced to 8."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.int32) / 257 + 0.5).clip(0, 255).astype(np.uint8))
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def hwc(image: Tensor) -> np.ndarray:
    """HWC view: decoders already produce this layout, and slicing it in numpy is cheaper."""
    return image.permute(1, 2, 0).numpy()


def _padded(image: np.ndarray, side: int) -> np.ndarray:
    height, width, _ = image.shape
    if height == width == side:
        return image
    return np.pad(image, ((0, side - height), (0, side - width), (0, 0)), mode="edge")
