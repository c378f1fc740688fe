"""What an evaluation is known by, and how its methods are called."""

from __future__ import annotations

import pytest
import torch

from sr_dist.commands import Evaluation
from sr_dist.engine.evaluate import everything
from sr_dist.eval.chosen import open_metrics
from sr_dist.eval.opinions import Judge
from sr_dist.eval.parts import identity
from sr_dist.eval.protocol import protocol
from sr_dist.labels import Labels

CPU = torch.device("cpu")


def known_by(methods="ab", classifiers="kl"):
    """The identity of an evaluation of methods and classifiers of these names; their files are alike in nothing."""
    judges = [Judge(name, Labels("class", ("x", "y")), None, {"sha256": f"of {name}"}) for name in classifiers]
    asked = Evaluation(methods=tuple(methods), data="images")
    metrics = open_metrics(["psnr"], CPU, judges=judges)
    return identity(everything(asked, protocol("matlab-y", 2), "content", metrics, {name: {"sha256": name} for name in methods}))


@pytest.mark.parametrize("other", [{"methods": "ba"}, {"classifiers": "lk"}])
def test_another_order_is_another_evaluation(other):
    """Arrays of a killed evaluation lie under numbers: continued in another order, they would be taken for each other's."""
    assert known_by() == known_by() != known_by(**other)
