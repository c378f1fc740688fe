"""Loaders of small shards, and the comparisons of what they read."""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sr_dist.data.degradations import bicubic
from sr_dist.data.format import open_shards
from sr_dist.data.loader import Loader, LoaderConfig
from sr_dist.recipe.sections import Data

SCALE, CROP_SIZE = 2, 16


def loader_of(*folders, run_folder=None, start=None, seed=0, accumulate=1, steps=6, channels=3, **data) -> Loader:
    """A loader of one data set, or of several with equal weights if `train` gives no others."""
    shards = [open_shards(str(folder)) for folder in folders]
    train = {"train": dict.fromkeys(map(str, folders), 1), **data}
    return make_loader(shards, LoaderConfig(settings(**train), seed, SCALE, accumulate, steps, channels), start, run_folder)


def settings(**data) -> Data:
    return Data(**{"crop": CROP_SIZE, "batch": 4, "workers": 0, "window": 10, **data})


def make_loader(shards, config, start=None, run_folder=None) -> Loader:
    degrade = bicubic.build(bicubic.Config(), SCALE)
    return Loader(shards, config, degrade, torch.device("cpu"), start, run_folder)


def read(loader: Loader, first=1) -> dict[int, list]:
    try:
        return dict(loader.steps(first))
    finally:
        loader.close()


def same(left, right) -> bool:
    pairs = (left.lr, right.lr), (left.hr, right.hr), (left.label, right.label)
    return left.keys == right.keys and all(torch.equal(*pair) for pair in pairs)


@contextmanager
def logged_messages():
    """What the package logs meanwhile. pytest's caplog gets it twice if an earlier test has left the logger without a parent."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("sr_dist")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def patience(seconds: int):
    """A test that hangs fails instead."""

    def fail(*_):
        raise AssertionError(f"no result after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def levels(image: torch.Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, C) in [0, 255]."""
    return (image * 255).permute(1, 2, 0).numpy()


def originals(photos: Path) -> dict[str, np.ndarray]:
    """Every photograph as Pillow decodes it, by its key."""
    return {path.relative_to(photos).with_suffix("").as_posix(): np.array(Image.open(path)) for path in photos.rglob("*.*")}
