"""The Fréchet distance and clean-fid's, timed on the same features in the same process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from sr_dist.evaluation.distances.frechet import Array, from_moments, moments

Result = TypeVar("Result")


def bench_frechet(images: int, width: int, rounds: int, as_json: bool) -> None:
    a, b = features(images, width, 0), features(images, width, 1)
    measurements = [measure(a, b) for _ in range(rounds)]
    result: dict[str, Any] = {"images": images, "width": width, "rounds": rounds}
    result |= {key: float(np.median([one[key] for one in measurements])) for key in measurements[0]}
    result["ratios"] = [one["ratio"] for one in measurements]
    seconds = f"{result['seconds']:.2f} s, clean-fid {result['clean_fid_seconds']:.2f} s"
    times = f"{result['ratio']:.1f} times as fast ({result['ratio_with_moments']:.1f} with the moments)"
    print(f"{images} x {width}, medians of {rounds}: {seconds}: {times}, relative difference {result['relative_difference']:.1e}")
    if as_json:
        print(json.dumps(result), flush=True)


def measure(a: Array, b: Array) -> dict[str, float]:
    """Ours, then theirs, in turn, so that other load on the machine affects both."""
    from cleanfid.fid import frechet_distance  # spares a second at the start

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
    """Correlated, positive, with decreasing variances, like Inception's."""
    random = np.random.default_rng(seed)
    scale = np.exp(-np.arange(width) / width * 4)
    common = np.random.default_rng(99).normal(size=(min(width, 64), width)) * 0.1
    rows = random.normal(0.4 + 0.01 * seed, 1, (images, width)) * scale + random.normal(size=(images, len(common))) @ common
    return np.maximum(rows, 0).astype(np.float32)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
