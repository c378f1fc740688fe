"""When the discriminator is trained, and what it sees."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sr_dist.core.batch import Batch, DiscriminatorOutput
from sr_dist.core.errors import UserError
from sr_dist.data import data_checks
from sr_dist.losses.instance_noise import Noisy
from sr_dist.recipe import checks
from sr_dist.training import loop
from sr_dist.training.build import set_up

GAN = {
    "generator": "{name: msrresnet, width: 8, num_blocks: 1}",
    "discriminator": "{name: patch, widths: [8, 12], norm: none}",
    "objective": "{name: srgan, content: {mse: 1.0}, adversarial_weight: 0.1}",
    "validate_every": "none", "save_every": "none",
}  # fmt: skip


@pytest.fixture
def opened(write_recipe):
    runs = []

    def make(**options: str):
        named = {key.replace("__", "."): value for key, value in options.items()}
        runs.append(set_up(checks.complete(data_checks.load(write_recipe(), {**GAN, **named}))))
        return runs[-1]

    yield make
    for run in runs:
        run.loader.close(), run.stop.close(), run.watchdog.close(), run.log.close()


def moved(run) -> list[tuple[str, ...]]:
    """The networks whose weights each step has changed, with what it has logged of them."""
    result = []
    for step, batches in run.loader.steps(1):
        before = {name: [p.detach().clone() for p in engine.bare.parameters()] for name, engine in run.engines.items()}
        losses, norms = loop.advance(run, step, batches)
        names = {
            name
            for name, engine in run.engines.items()
            if any(not p.equal(old) for p, old in zip(engine.bare.parameters(), before[name], strict=True))
        }
        assert names == norms.keys()
        assert {"real", "fake"} <= losses.keys() and ("mse" in losses) == ("generator" in names)
        result.append(tuple(sorted(names)))
    return result


BOTH, ONE, OTHER = ("discriminator", "generator"), ("discriminator",), ("generator",)


def test_the_discriminator_is_trained_alone_first_and_more_often(opened):
    """BasicSR's net_d_init_iters and net_d_iters."""
    assert moved(opened(name="plain")) == [BOTH] * 4
    assert moved(opened(name="warm", discriminator_training__warmup="2")) == [ONE, ONE, BOTH, BOTH]
    more = {"discriminator_training__warmup": "1", "discriminator_training__updates": "3"}
    assert moved(opened(name="more", **more)) == [ONE, ONE, ONE, BOTH]


def test_the_discriminator_pauses_while_it_wins(opened):
    """It is wrong by 0.5 on average at first, so under a bound of 0.9 it pauses after the first step."""
    run = opened(name="pauses", discriminator_training__adaptive="0.9", log_every="2")
    assert moved(run) == [BOTH, OTHER, OTHER, OTHER]
    assert 0.3 < run.state["logit_gradient"] < 0.7
    alone = opened(name="alone", discriminator_training__adaptive="0.9", discriminator_training__updates="2")
    assert moved(alone) == [ONE, OTHER, ONE, OTHER]  # one of them is trained in each step


def test_a_bound_that_is_never_reached_changes_nothing(opened):
    runs = [opened(name="plain"), opened(name="bound", discriminator_training__adaptive="1e-6")]
    assert [moved(run) for run in runs] == [[BOTH] * 4] * 2
    ours, theirs = ([p for engine in run.engines.values() for p in engine.bare.parameters()] for run in runs)
    assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


class Shows(nn.Module):
    def forward(self, images):
        self.images = images
        return DiscriminatorOutput(images.mean((1, 2, 3)))


def test_noise_is_of_the_sample_the_step_and_the_pass():
    hr = torch.full((2, 3, 32, 32), 0.5)

    def seen(keys: tuple[str, ...], step: int = 1, phase: str = "generator", passes: int = 1) -> torch.Tensor:
        network = Shows()
        noisy = Noisy(network, 0.1, Batch(hr[..., ::2, ::2], hr, torch.zeros(2).long(), keys, step=step), phase)
        for _ in range(passes):
            noisy(hr)
        return network.images - hr

    ab, ba = seen(("a", "b")), seen(("b", "a"))
    assert ab.equal(ba.flip(0)) and ab.equal(seen(("a", "b")))
    assert ab.std().item() == pytest.approx(0.1, rel=0.05) and abs(ab.mean().item()) < 0.01
    others = [ab, seen(("a", "b"), step=2), seen(("a", "b"), phase="discriminator"), seen(("a", "b"), passes=2)]
    assert len({float(noise.sum()) for noise in others}) == 4


STEERED = {
    "discriminator_training": "{warmup: 1, updates: 2, adaptive: 0.6, noise: {0: 0.1, 6: 0.0}}", "save_every": "3", "steps": "8",
}  # fmt: skip


def test_a_steered_run_continues_to_the_same_bits(opened):
    folders = []
    for name, parts in (("whole", ("8",)), ("parts", ("3", "8"))):
        for steps in parts:
            run = opened(name=name, **{**STEERED, "steps": steps})
            assert loop.fit(run)
            run.loader.close(), run.stop.close(), run.watchdog.close(), run.log.close()
        folders.append(run.recipe.folder / "checkpoints" / "0000008")
    for stem in ("generator", "generator.ema", "discriminator", "discriminator.optimizer"):
        ours, theirs = (load_file(folder / f"{stem}.safetensors") for folder in folders)
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours), stem


def test_a_recipe_without_a_discriminator_has_nothing_to_steer(write_recipe):
    with pytest.raises(UserError, match="discriminator_training: the objective 'pixel' trains no discriminator"):
        checks.complete(data_checks.load(write_recipe(), {"discriminator_training.updates": "2"}))
