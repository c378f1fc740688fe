"""The Fréchet distance beside clean-fid's, on the same features in the same process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sr_dist.eval.frechet import Array, from_moments, moments


def bench_frechet(images: int, width: int, as_json: bool) -> None:
    from cleanfid.fid import frechet_distance

    a, b = features(images, width, 0), features(images, width, 1)
    moment_seconds, (ours_a, ours_b) = timed(lambda: (moments(a), moments(b)))
    seconds, ours = timed(lambda: from_moments(ours_a, ours_b))
    numpys_seconds, both = timed(lambda: [(x.mean(0), np.cov(x, rowvar=False)) for x in (a.astype(float), b.astype(float))])
    theirs_seconds, theirs = timed(lambda: frechet_distance(*both[0], *both[1]))
    found = {
        "images": images,
        "width": width,
        "seconds": {"moments": moment_seconds, "distance": seconds},
        "clean_fid_seconds": {"moments": numpys_seconds, "distance": theirs_seconds},
        "ratio": theirs_seconds / seconds,
        "ratio_with_moments": (numpys_seconds + theirs_seconds) / (moment_seconds + seconds),
        "relative_difference": abs(ours - theirs) / abs(theirs),
    }
    print(
        f"{images} x {width}: {seconds:.2f} s, clean-fid {theirs_seconds:.2f} s: {found['ratio']:.1f} times as fast "
        f"({found['ratio_with_moments']:.1f} with the moments), {found['relative_difference']:.1e} apart"
    )
    if as_json:
        print(json.dumps(found), flush=True)


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
