"""What the log says of keys that change nothing, or not what was meant."""

from __future__ import annotations

import pytest

from sr_dist.recipe import checks
from sr_dist.recipe.notes import notes

WARMUP = "warning: discriminator_training.warmup: 9 of 9 steps, so the generator is never trained"
NO_PENALTY = "warning: objective.{}: without objective.r1_weight there is no penalty, and it changes nothing"
PATCH = {"discriminator": "{name: patch, norm: batch}"}
NORM = "warning: discriminator.norm: with batch, logits depend on other images, which R1 does not mean; use none"
BEST = "warning: health.on_collapse: without validations (validate_every) no checkpoint is the best to go back to"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"steps": "9", "discriminator_training.warmup": "9"}, [WARMUP]),
        ({"steps": "9", "discriminator_training.warmup": "8"}, []),
        (
            {"objective.r1_every": "4", "objective.r1_noise": "0.01"},
            [NO_PENALTY.format("r1_every"), NO_PENALTY.format("r1_noise")],
        ),
        ({"objective.r1_every": "4", "objective.r1_weight": "1"}, []),
        (PATCH, []),
        ({**PATCH, "objective.r1_weight": "1"}, [NORM]),
        ({"health.on_collapse": "rollback", "keep.best": "psnr_y", "validate_every": "none"}, [BEST]),
    ],
)
def test_each_is_named_once(options, expected):
    recipe = checks.complete(checks.read_recipe("srgan_mse_x4", {"discriminator": "{name: patch, norm: none}", **options}))
    assert list(notes(recipe)) == expected
