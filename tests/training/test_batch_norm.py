"""Batch normalization over all ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from processes import run
from torch import nn

from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.recipe import checks
from sr_dist.training.batch_norm import GlobalBatchNorm, synchronize


@pytest.fixture(scope="module")
def results() -> list[dict]:
    """Of each of two ranks: by case, differences from one process that sees all images, messages and waits."""
    return json.loads(run(2, "batch_norm_ranks", cwd=Path(__file__).parent)[0])


CASES = (
    "images", "vectors", "channels_last", "without weights", "cumulative", "large mean", "bf16", "without running statistics",
    "without biases",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_normalize_as_one_process_that_has_all_images(case, results):
    """Values, gradients and running statistics, with 3 and 5 images; in one message each way, and without waiting."""
    tolerance = {"bf16": 2e-2, "large mean": 2e-3}.get(case, 2e-6)  # fp32 has 1e-3 left of a difference from 10,000
    for rank in results:
        costs = dict(rank[case])
        assert costs.pop("messages") == 2 and costs.pop("waits") == {}
        buffers = {"running_mean", "running_var", "num_batches_tracked"} if case != "without running statistics" else set()
        assert costs.keys() >= {"y", "dx"} | buffers
        assert max(costs.values()) < tolerance, costs


def test_the_second_derivative_is_that_of_one_process(results):
    """The R1 penalty of a critic with batch normalization differentiates a gradient."""
    for rank in results:
        assert len(rank["second derivative"]) == 5 and max(rank["second derivative"].values()) < 1e-9
        assert len(rank["second derivative, frozen"]) == 3 and max(rank["second derivative, frozen"].values()) < 1e-9


def test_parameters_and_buffers_stay_the_same_tensors():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3))).eval()
    names, tensors = list(network.state_dict()), [*network.parameters(), *network.buffers()]
    own = synchronize(network)
    assert list(own.state_dict()) == names and isinstance(own[2][0], GlobalBatchNorm) and not own[1].training
    assert all(ours is before for ours, before in zip([*own.parameters(), *own.buffers()], tensors, strict=True))


def test_evaluation_is_torchs():
    """Of one rank alone, also without running statistics."""
    x = torch.randn(4, 3, 2, 2)
    for norm in (nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3, track_running_stats=False).eval()):
        expected = norm(x).detach()
        assert synchronize(norm)(x).equal(expected)


def test_statistics_of_each_rank_are_refused_under_zero():
    recipe = checks.read_recipe("demo_pixel", {"batch_norm": "local"})
    checks.check_launch(recipe, Launch(ranks=2))
    with pytest.raises(UserError, match=r"^batch_norm: local does not run under ZeRO"):
        checks.check_launch(recipe, Launch("deepspeed", 2, 2))
