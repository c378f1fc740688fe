"""Checks of many shards: the sizes of their tars, and the values in their indexes, on which readers rely. No torch here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Protocol, TypeVar

import numpy as np

MODES = ("RGB", "L", "RGBA", "LA", "I;16")  # the index stores the position in this list
NO_CLASS = -1
CHECKED = (
    "hr_offset", "lr_offset", "hr_bytes", "lr_bytes", "width", "height", "lr_width", "lr_height", "class", "mode",
)  # fmt: skip
THREADS = 16  # that open files
ROWS_AT_ONCE, SHARDS_AT_ONCE = 4096, 256  # that a thread checks together
Result = TypeVar("Result")
Case = tuple[np.ndarray, str]  # the wrong rows, and the problem; `{column}` in it is the row's value


class Columns(Protocol):
    """An index, or the same columns of several."""

    def __getitem__(self, column: str, /) -> np.ndarray: ...


def joined(indexes: Sequence[Columns]) -> Mapping[str, np.ndarray]:
    """The columns that are checked, of all shards in a row: numpy's calls cost more than the few rows of a small shard."""
    return {name: np.concatenate([index[name] for index in indexes]) for name in CHECKED}


def row_cases(columns: Columns, tar_bytes: int | np.ndarray) -> list[Case]:
    """What no shard of this size can have. `tar_bytes`: of the shard, or of every row's."""
    end = np.asarray(tar_bytes, np.uint64)
    cases = [
        (columns["class"] < NO_CLASS, f"its class is {{class}}; classes are numbered from 0, and {NO_CLASS} is none"),
        (columns["mode"] >= len(MODES), f"its mode is {{mode}}; the last is {len(MODES) - 1}"),
    ]
    for member in ("hr", "lr"):
        offset, length = columns[f"{member}_offset"], columns[f"{member}_bytes"]
        outside = (offset > end) | (length > end - np.minimum(offset, end))
        cases.append((outside, f"its {member} image, {{{member}_bytes}} bytes at {{{member}_offset}}, is not inside the tar"))
    stored, lr_side = columns["lr_bytes"] > 0, np.minimum(columns["lr_width"], columns["lr_height"])
    return [
        *cases,
        (columns["hr_bytes"] == 0, "its image is empty"),
        (np.minimum(columns["width"], columns["height"]) == 0, "its image is {width} x {height}"),
        (stored != (lr_side > 0), "its LR image is {lr_width} x {lr_height}"),
    ]


def agreement_cases(columns: Columns, num_classes: int, min_side: int, scale: int) -> list[Case]:
    """What contradicts a manifest. `scale` is 0 without stored LR."""
    width, lr_width = columns["width"], columns["lr_width"]
    of_lr = width // np.maximum(lr_width, 1) * (lr_width > 0)
    return [
        (columns["class"] >= num_classes, f"its class is {{class}}, but the manifest names {num_classes}"),
        (
            np.minimum(width, columns["height"]) < min_side,
            f"it is {{width}} x {{height}}, but the manifest's min_side is {min_side}",
        ),
        (of_lr != scale, f"its LR image is {{lr_width}} x {{lr_height}}, but the manifest's scale is {scale or 'none'}"),
    ]


def any_wrong(cases: Sequence[Case]) -> bool:
    return bool(reduce(np.logical_or, (wrong for wrong, _ in cases)).any())


def groups(num_shards: int, samples: int) -> list[range]:
    """The numbers of shards that are checked together: many small ones, or a large one."""
    size = min(max(ROWS_AT_ONCE * num_shards // max(samples, 1), 1), SHARDS_AT_ONCE)
    return [range(first, min(first + size, num_shards)) for first in range(0, num_shards, size)]


def at_once(function: Callable[[range], Result], parts: Sequence[range]) -> Iterator[Result]:
    """The results in order. The disk of a cluster answers slowly, but many at once, so threads ask it if the first part mostly
    waits. On a fast disk they would only take turns in Python.
    """
    begin, cpu = time.perf_counter(), time.thread_time()
    yield from map(function, parts[:1])
    computed = time.thread_time() - cpu
    if time.perf_counter() - begin < 2 * computed:
        yield from map(function, parts[1:])
        return
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(function, parts[1:])


def damage_of(path: str, stated: int) -> str:
    """The problem with a tar of which the manifest states the bytes, or nothing."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        return f"the shard '{path}' of the manifest is missing ({error.strerror})"
    return f"'{path}' has {size} bytes where the manifest says {stated}: it is cut short or was changed" if size != stated else ""
