"""The Fréchet distance beside clean-fid's, on the same features in the same process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sr_dist.evaluation.distances.frechet import Array, from_moments, moments


def bench_frechet(images: int, width: int, rounds: int, as_json: bool) -> None:
    a, b = features(images, width, 0), features(images, width, 1)
    each = [in_turn(a, b) for _ in range(rounds)]
    found: dict[str, Any] = {"images": images, "width": width, "rounds": rounds}
    found |= {key: float(np.median([one[key] for one in each])) for key in each[0]}
    found["ratios"] = [one["ratio"] for one in each]
    seconds = f"{found['seconds']:.2f} s, clean-fid {found['clean_fid_seconds']:.2f} s"
    times = f"{found['ratio']:.1f} times as fast ({found['ratio_with_moments']:.1f} with the moments)"
    print(f"{images} x {width}, medians of {rounds}: {seconds}: {times}, {found['relative_difference']:.1e} apart")
    if as_json:
        print(json.dumps(found), flush=True)


def in_turn(a: Array, b: Array) -> dict[str, float]:
    """Ours, then theirs: what the machine does besides falls on both."""
    from cleanfid.fid import frechet_distance

    moment_seconds, (ours_a, ours_b) = timed(lambda: (moments(a), moments(b)))
    seconds, ours = timed(lambda: from_moments(ours_a, ours_b))
    numpys_seconds, both = timed(lambda: [(x.mean(0), np.cov(x, rowvar=False)) for x in (a.astype(float), b.astype(float))])
    theirs_seconds, theirs = timed(lambda: frechet_distance(*both[0], *both[1]))
    return {
        "seconds": seconds,
        "moment_seconds": moment_seconds,
        "clean_fid_seconds": theirs_seconds,
        "clean_fid_moment_seconds": numpys_seconds,
        "ratio": theirs_seconds / seconds,
        "ratio_with_moments": (numpys_seconds + theirs_seconds) / (moment_seconds + seconds),
        "relative_difference": abs(ours - theirs) / abs(theirs),
    }


def features(images: int, width: int, seed: int) -> Array:
    """Correlated, positive, of falling variance, as Inception's are."""
    draw = np.random.default_rng(seed)
    scale = np.exp(-np.arange(width) / width * 4)
    common = np.random.default_rng(99).normal(size=(min(width, 64), width)) * 0.1
    rows = draw.normal(0.4 + 0.01 * seed, 1, (images, width)) * scale + draw.normal(size=(images, len(common))) @ common
    return np.maximum(rows, 0).astype(np.float32)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result
