"""Resizing for the extractor runs beside restoring, and changes no bit."""

from __future__ import annotations

import threading

import numpy as np
import torch
from scoring import batches

from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.distances.extractor import Extractor
from sr_dist.evaluation.metric_set import Metrics
from sr_dist.evaluation.metrics import fid
from sr_dist.evaluation.partial_results import PartialResults
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.scoring import Scoring, score

CPU = torch.device("cpu")


def test_an_image_is_resized_while_the_next_method_restores(photographs, monkeypatch):
    """The first resizing does not end before the last method has been called. The features are those of one image after the
    other, to the bit."""
    from cleanfid import resize

    build, called, waited = resize.build_resizer, threading.Event(), []

    def patient(mode):
        def resized(image):
            waited.append(called.wait(20))
            return build(mode)(image)

        return resized

    def last(lr):
        called.set()
        return baseline("bicubic", 2)(lr)

    def network(images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 3).flatten(1)

    monkeypatch.setattr(resize, "build_resizer", patient)
    extractor, results, images = Extractor("toy", "", "clean", network, CPU), PartialResults(), batches(photographs(5))
    methods = {"nearest": baseline("nearest", 2), "bicubic": last}
    score(methods, images, Scoring(protocol("matlab-y", 2), Metrics((fid,), extractor), CPU, partial_results=results))
    assert len(waited) == 15 and all(waited)
    monkeypatch.setattr(resize, "build_resizer", build)
    for number in range(len(images)):
        batch = images[number]
        for name, expected in (("whole/0", batch.hr), ("whole/1", methods["nearest"](batch.lr)), ("whole/2", last(batch.lr))):
            rows = [network(torch.from_numpy(build("clean")(levels)).permute(2, 0, 1)[None])[0] for levels in eight_bit(expected)]
            np.testing.assert_array_equal(results.array(number, name), torch.stack(rows))


def eight_bit(images: torch.Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
