"""A step that is not finite names what made it: the term, the rank, the layer and the samples."""

from __future__ import annotations

import pytest
import torch

from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.training import loop
from sr_dist.training.build import set_up
from sr_dist.training.not_finite import Origin, sentence

GAN = {
    "generator": "{name: srresnet, width: 8, num_blocks: 1}",
    "discriminator": "{name: patch, widths: [8, 12], norm: none}",
    "objective": "{name: srgan, content: {mse: 1.0}, adversarial_weight: 0.1}",
    "validate_every": "none", "save_every": "none", "log_every": "2",
}  # fmt: skip


@pytest.fixture
def trained(write_recipe):
    """Trains four steps while `spoil(run, step, batches)` does something before each: -> (log.txt, the keys of the steps)."""
    runs = []

    def train(spoil, **options):
        run = set_up(checks.complete(data_checks.load(write_recipe(), {**GAN, **options})))
        runs.append(run)
        keys = {}
        for step, batches in run.loader.steps(1):
            keys[step] = [key for batch in batches for key in batch.keys]
            spoil(run, step, batches)
            loop.advance(run, step, batches)
        return (run.recipe.folder / "log.txt").read_text(), keys

    yield train
    for run in runs:
        run.loader.close(), run.stop.close(), run.watchdog.close(), run.log.close()


def test_an_image_that_is_not_finite_is_named_with_the_terms_that_it_spoils(trained):
    def spoil(run, step, batches):
        if step == 2:
            batches[0].lr[1] = float("nan")

    log, keys = trained(spoil)
    (line,) = [line for line in log.splitlines() if "were not finite" in line]
    assert "step 2: the gradients of the generator and the discriminator were not finite" in line
    assert "rank 0, terms mse, adversarial, fake, " in line
    assert line.endswith(f"samples {keys[2][1]}")


def test_the_first_layer_is_named_and_its_buffers_are_as_before(trained):
    """A weight of the body overflows in step 4; batch normalization after it makes nan of it."""
    buffers = {}

    def spoil(run, step, batches):
        network = run.engines["generator"].bare
        if step == 4:
            convolutions = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)}
            name = list(convolutions)[2]
            with torch.no_grad():
                convolutions[name].weight.fill_(float("inf"))
            buffers["layer"], buffers["network"] = name, network
            buffers["before"] = {key: value.clone() for key, value in network.named_buffers()}

    log, keys = trained(spoil)
    (line,) = [line for line in log.splitlines() if "were not finite" in line]
    assert f"first in layer generator.{buffers['layer']}, samples {', '.join(keys[4])}" in line
    assert all(value.equal(buffers["before"][key]) for key, value in buffers["network"].named_buffers())


def test_an_earlier_step_is_named_with_its_samples(trained):
    """Step 1 is counted after step 2: its layer is not known any more."""

    def spoil(run, step, batches):
        if step == 1:
            batches[0].hr[0] = float("inf")

    log, keys = trained(spoil)
    (line,) = [line for line in log.splitlines() if "were not finite" in line]
    assert "step 1:" in line and "term" in line and "layer" not in line
    assert line.endswith(f"samples {', '.join(keys[1])}")


def test_ranks_without_a_part_in_it_are_left_out():
    origins = [Origin(3, ("adversarial",), "discriminator.stages.0", ("a", "b", "c", "d", "e", "f"))]
    assert sentence(7, ["generator"], origins).endswith(
        "rank 3, term adversarial, first in layer discriminator.stages.0, samples a, b, c, d and 2 more"
    )
    assert "all terms were finite" in sentence(7, ["generator"], [])
