"""Values that would do nothing, or harm, are refused when the recipe is read."""

from __future__ import annotations

import pytest

from sr_dist.core.errors import UserError
from sr_dist.recipe import checks

GAN = {
    "discriminator": {"name": "patch", "widths": [8], "norm": "none"},
    "objective": {"name": "srgan", "content": {"l1": 1.0}},
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator_training.noise": "-0.1"}, "discriminator_training.noise: the deviation -0.1 is below 0"),
        ({"discriminator_training.noise": "{0: 0.1, 9: -1}"}, "discriminator_training.noise: the deviation -1 is below 0"),
        ({"optimizer.momentum": "1.0"}, "optimizer.momentum: "),
        ({"optimizer.momentum": "-0.5"}, "optimizer.momentum: "),
        ({"discriminator_optimizer": "{momentum: 2}"}, "discriminator_optimizer.momentum: "),
        ({"objective.r1_noise": "-0.1"}, "objective.r1_noise: "),
        ({"objective.content": "{l1: {}}"}, "objective.content.l1: {} has no weight and no option; write l1: 1.0"),
    ],
)
def test_such_a_value_is_refused_by_its_key(options, message, write_recipe):
    with pytest.raises(UserError) as refused:
        checks.complete(checks.read_recipe(write_recipe(**GAN), options))
    assert str(refused.value).startswith(message)


def test_their_bounds_are_allowed(write_recipe):
    options = {"discriminator_training.noise": "{0: 0.1, 9: 0}", "optimizer.momentum": "0", "objective.r1_noise": "0"}
    recipe = checks.complete(checks.read_recipe(write_recipe(**GAN), options))
    assert recipe.discriminator_training.noise == {0: 0.1, 9: 0}
