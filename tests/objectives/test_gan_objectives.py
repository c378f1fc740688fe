"""SRGAN and ESRGAN against naive transcriptions of their formulas: sums over samples, sigmoids and logarithms, by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.batch import Batch, DiscriminatorOutput
from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.data import data_checks
from sr_dist.recipe import checks

CONTENT = {"mse": {"weight": 2.0, "range": "-1..1"}}


class Discriminator(nn.Module):
    def __init__(self, patches: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.conv = nn.Conv2d(3, 1, 5).double()
        self.patches = patches

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        logits = 2 * torch.tanh(self.conv(images)).squeeze(1) - 0.3
        return DiscriminatorOutput(logits if self.patches else logits.sum((1, 2)) / 4, None)


def a_batch() -> tuple[Batch, Tensor]:
    draw = torch.Generator().manual_seed(2)
    hr, sr, lr = (torch.rand(4, 3, size, size, generator=draw, dtype=torch.float64) for size in (8, 8, 4))
    return Batch(lr, hr, torch.full((4,), -1), ("a", "b", "c", "d")), sr.requires_grad_()


def objective(name: str, **options):
    module, config = plugins.resolve("sr_dist.objectives", name, {"content": CONTENT, **options}, "objective")
    return module.Objective(config)


def average(values) -> Tensor:
    return sum(values) / len(values)


def probability(logit: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-logit))


# Every formula: (real logits, fake logits) -> (discriminator's real term, discriminator's fake term, generator's term)


def standard(real, fake):
    return (
        average([-torch.log(probability(c)) for c in real]),
        average([-torch.log(1 - probability(c)) for c in fake]),
        average([-torch.log(probability(c)) for c in fake]),
    )


def least_squares(real, fake):
    return average([(c - 1) ** 2 for c in real]), average([c**2 for c in fake]), average([(c - 1) ** 2 for c in fake])


def hinge(real, fake):
    return average([max(0 * c, 1 - c) for c in real]), average([max(0 * c, 1 + c) for c in fake]), average([-c for c in fake])


def relativistic(real, fake):
    def d_ra(a: Tensor, others) -> Tensor:
        return probability(a - average(others))

    return (
        average([-torch.log(d_ra(c, fake)) for c in real]),
        average([-torch.log(1 - d_ra(c, real)) for c in fake]),
        average([-torch.log(1 - d_ra(c, fake)) for c in real]) + average([-torch.log(d_ra(c, real)) for c in fake]),
    )


CASES = [
    ("srgan", {}, standard, 1e-3, 1),
    ("srgan", {"form": "least_squares", "adversarial_weight": 0.3}, least_squares, 0.3, 1),
    ("srgan", {"form": "hinge", "adversarial_weight": 0.2}, hinge, 0.2, 1),
    ("esrgan", {}, relativistic, 5e-3, 1),
    ("esrgan", {"batch_mean": "local"}, relativistic, 5e-3, 1),
    ("esrgan", {"halved": True}, relativistic, 5e-3, 0.5),
]
PENALIZED = ["srgan", "esrgan", "srugan", "r3gan"]


def logits(discriminator: nn.Module, images: Tensor) -> list[Tensor]:
    return list(discriminator(images).logits.flatten())


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize(("name", "options", "formula", "weight", "factor"), CASES)
def test_the_generators_loss_and_gradient_are_the_papers(name, options, formula, weight, factor, patches):
    (batch, sr), discriminator = a_batch(), Discriminator(patches)
    terms = objective(name, **options).generator_loss(discriminator.requires_grad_(False), batch, sr)
    content = 2 * average([((2 * a - 1) - (2 * b - 1)) ** 2 for a, b in zip(sr.flatten(), batch.hr.flatten(), strict=True)])
    adversarial = weight * factor * formula(logits(discriminator, batch.hr), logits(discriminator, sr))[2]
    assert set(terms) == {"mse", "adversarial"}
    for actual, expected in ((terms["mse"], content), (terms["adversarial"], adversarial)):
        assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
        gradient, expected_gradient = (torch.autograd.grad(value, sr, retain_graph=True)[0] for value in (actual, expected))
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6 * expected_gradient.abs().max().item())


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize(("name", "options", "formula", "weight", "factor"), CASES)
def test_the_discriminators_loss_and_gradient_are_the_papers(name, options, formula, weight, factor, patches):
    (batch, sr), discriminator = a_batch(), Discriminator(patches)
    terms = objective(name, **options).discriminator_loss(discriminator, batch, sr.detach())
    real, fake, _ = formula(logits(discriminator, batch.hr), logits(discriminator, sr.detach()))
    assert set(terms) == {"real", "fake"}
    for actual, expected in ((terms["real"], factor * real), (terms["fake"], factor * fake)):
        assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
        gradient, expected_gradient = (
            torch.cat([g.flatten() for g in torch.autograd.grad(value, discriminator.parameters(), retain_graph=True)])
            for value in (actual, expected)
        )
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6 * expected_gradient.abs().max().item())


@pytest.mark.parametrize(("name", "options", "formula", "weight", "factor"), CASES)
def test_a_small_step_of_the_generator_raises_the_discriminators_logits(name, options, formula, weight, factor):
    (batch, sr), discriminator = a_batch(), Discriminator()
    (gradient,) = torch.autograd.grad(objective(name, **options).generator_loss(discriminator, batch, sr)["adversarial"], sr)
    assert discriminator(sr - 1e-3 * gradient / gradient.norm()).logits.mean() > discriminator(sr).logits.mean()


def test_both_terms_of_the_relativistic_generator_loss_have_a_gradient():
    """The term of the real images reaches sr only through E[C(sr)]; without it the gradient differs."""
    (batch, sr), discriminator = a_batch(), Discriminator()
    real, fake = discriminator(batch.hr).logits.detach(), discriminator(sr).logits
    through_the_mean = torch.nn.functional.softplus(real - fake.mean()).mean()
    (part,) = torch.autograd.grad(through_the_mean, sr, retain_graph=True)
    assert part.abs().max() > 0
    (whole,) = torch.autograd.grad(objective("esrgan").generator_loss(discriminator, batch, sr)["adversarial"], sr)
    (rest,) = torch.autograd.grad(torch.nn.functional.softplus(-(fake - real.mean())).mean(), sr)
    torch.testing.assert_close(whole, 5e-3 * (part + rest), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("patches", [False, True])
def test_r3gan_pairs_every_restored_image_with_its_own_hr(patches):
    (batch, sr), discriminator = a_batch(), Discriminator(patches)
    loss = objective("r3gan", adversarial_weight=0.3, r1_weight=0, r2_weight=0)
    pairs = list(zip(logits(discriminator, batch.hr), logits(discriminator, sr), strict=True))
    adversarial = 0.3 * average([-torch.log(probability(fake - real)) for real, fake in pairs])
    terms = loss.generator_loss(discriminator, batch, sr)
    assert set(terms) == {"mse", "adversarial"}
    for actual, expected in zip(
        torch.autograd.grad(terms["adversarial"], sr), torch.autograd.grad(adversarial, sr, retain_graph=True), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-9)
    terms = loss.discriminator_loss(discriminator, batch, sr.detach())
    expected = average([-torch.log(probability(real - fake)) for real, fake in pairs])
    assert set(terms) == {"paired"} and terms["paired"].item() == pytest.approx(expected.item(), rel=1e-6)
    gradient, expected_gradient = (
        torch.autograd.grad(value, discriminator.conv.weight)[0] for value in (terms["paired"], expected)
    )
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def squared_gradients(discriminator: nn.Module, images: Tensor) -> Tensor:
    """The mean over images of |dC/dx|^2, one image at a time."""
    norms = []
    for image in images:
        x = image[None].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x).logits.mean(), x, create_graph=True)
        norms.append((gradient**2).sum())
    return average(norms)


@pytest.mark.parametrize("patches", [False, True])
def test_r2_is_the_squared_norm_of_the_discriminators_gradient_on_restored_images(patches):
    (batch, sr), discriminator = a_batch(), Discriminator(patches)
    terms = objective("r3gan", r1_weight=5.0, r2_weight=2.0).discriminator_loss(discriminator, batch, sr.detach())
    for actual, expected in (
        (terms["r1"], 5 * squared_gradients(discriminator, batch.hr)),
        (terms["r2"], 2 * squared_gradients(discriminator, sr)),
    ):
        gradient, expected_gradient = (
            torch.autograd.grad(value, discriminator.conv.weight, retain_graph=True)[0] for value in (actual, expected)
        )
        assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("noise", [0, 0.01])
@pytest.mark.parametrize("name", PENALIZED)
def test_a_lazy_penalty_acts_in_every_third_step_three_times_as_strong(name, noise):
    (batch, sr), discriminator = a_batch(), Discriminator()
    every_step, lazy = (objective(name, r1_weight=5.0, r1_every=every, r1_noise=noise) for every in (1, 3))
    for step in range(1, 7):
        at = dataclasses.replace(batch, step=step)
        own, whole = (loss.discriminator_loss(discriminator, at, sr.detach()) for loss in (lazy, every_step))
        assert ("r1" in own) == (step in (3, 6))
        if "r1" in own:
            assert own["r1"].item() == pytest.approx(3 * whole["r1"].item(), rel=1e-6)
        first = next(iter(own))  # the other terms stay as they are
        assert own[first].item() == pytest.approx(whole[first].item(), rel=1e-6)


@pytest.mark.parametrize("patches", [False, True])
def test_penalties_approximated_with_noise_are_the_exact_ones_on_average(patches):
    """Over 500 draws of 4 images; (g n)^2 deviates by sqrt(2) |g|^2, so the mean by about 3 percent."""
    (batch, sr), discriminator = a_batch(), Discriminator(patches)
    loss = objective("r3gan", r1_weight=1.0, r2_weight=1.0, r1_noise=1e-3)
    exact = {"r1": squared_gradients(discriminator, batch.hr), "r2": squared_gradients(discriminator, sr)}
    draws = [loss.discriminator_loss(discriminator, dataclasses.replace(batch, step=step), sr.detach()) for step in range(500)]
    for name, expected in exact.items():
        mean = average([terms[name] for terms in draws])
        assert mean.item() == pytest.approx(expected.item(), rel=0.1)
        gradient, expected_gradient = (
            torch.autograd.grad(value, discriminator.conv.weight, retain_graph=True)[0].flatten() for value in (mean, expected)
        )
        assert torch.cosine_similarity(gradient, expected_gradient, dim=0) > 0.99


@pytest.mark.parametrize("name", PENALIZED)
def test_the_noise_belongs_to_the_sample_and_the_step(name):
    """Halves of a batch have the penalty of the whole; another step has another one."""
    (batch, sr), discriminator = a_batch(), Discriminator()
    seeds, loss = torch.tensor([5, -3, 2**62, 8]), objective(name, r1_weight=5.0, r1_noise=0.01)

    def r1(step: int, part: slice) -> float:
        own = Batch(batch.lr[part], batch.hr[part], batch.label[part], batch.keys[part], step=step, seeds=seeds[part])
        return loss.discriminator_loss(discriminator, own, sr.detach()[part])["r1"].item()

    whole, halves = r1(1, slice(None)), [r1(1, slice(0, 2)), r1(1, slice(2, 4))]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5)
    assert halves[0] != pytest.approx(halves[1], rel=1e-3) and r1(2, slice(None)) != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize("name", PENALIZED)
def test_r1_is_the_squared_norm_of_the_discriminators_gradient_on_real_images(name, patches):
    (batch, sr), discriminator = a_batch(), Discriminator(patches)
    terms = objective(name, r1_weight=5.0).discriminator_loss(discriminator, batch, sr.detach())
    expected = 5 * squared_gradients(discriminator, batch.hr)
    assert terms["r1"].item() == pytest.approx(expected.item(), rel=1e-6)
    gradient, expected_gradient = (
        torch.autograd.grad(value, discriminator.conv.weight, retain_graph=True)[0] for value in (terms["r1"], expected)
    )
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)
    assert not batch.hr.requires_grad


@pytest.mark.parametrize("name", PENALIZED)
def test_exact_r1_is_refused_under_zero_and_approximated_r1_is_not(name):
    module, config = plugins.resolve("sr_dist.objectives", name, {"r1_weight": "5"}, "objective")
    assert module.refuses(config, Launch(ranks=8, cuda=True)) is None
    assert "double backward" in module.refuses(config, Launch("deepspeed", 1, ranks=8, cuda=True))
    assert "r1_noise" in module.refuses(config, Launch("deepspeed", 1, ranks=8, cuda=True))
    for free in ({"r1_weight": 5, "r1_noise": 0.01}, {"r1_weight": 0} | ({"r2_weight": 0} if name == "r3gan" else {})):
        assert module.refuses(module.Config(**free), Launch("deepspeed", 3, ranks=8, cuda=True)) is None


def test_exact_r2_is_refused_under_zero():
    module, config = plugins.resolve("sr_dist.objectives", "r3gan", {"r1_weight": "0", "r2_weight": "1"}, "objective")
    assert module.refuses(config, Launch("deepspeed", 1, ranks=8, cuda=True)).startswith("r2_weight: ")


def test_defaults_are_the_papers():
    _, srgan = plugins.resolve("sr_dist.objectives", "srgan", {}, "objective")
    assert (srgan.form, srgan.adversarial_weight, srgan.r1_weight) == ("standard", 1e-3, 0.0)
    assert srgan.content == {"vgg": {"weight": 1.0, "layers": "conv5_4"}}
    _, esrgan = plugins.resolve("sr_dist.objectives", "esrgan", {}, "objective")
    assert (esrgan.adversarial_weight, esrgan.batch_mean, esrgan.halved) == (5e-3, "global", False)
    assert esrgan.content["l1"] == 1e-2
    assert esrgan.content["vgg"] == {"weight": 1.0, "layers": "conv5_4", "activated": False, "distance": "l1", "divide": 1.0}


# ---- what an objective requires of the rest of the recipe

ESRGAN = {"objective": {"name": "esrgan", "content": {"l1": 1.0}}, "discriminator": {"name": "patch", "widths": [8, 8]}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": "2"}, r"^objective\.batch_mean: global cannot span the 2 micro-batches"),
        ({"data.crop": "none"}, r"^objective\.batch_mean: global cannot span whole images"),
        ({"discriminator.name": "acgan", "discriminator.classes": "3"}, r"^discriminator\.classes: .*no class head"),
        ({"discriminator.name": "srgan_vgg"}, r"^discriminator\.crop: .* 96, but data\.crop is 16; "),
    ],
)  # fmt: skip
def test_contradictory_recipes_are_refused(write_recipe, options, message):
    discriminator = {} if "discriminator.name" in options else {"widths": [8, 8]}
    parts = {**ESRGAN, "discriminator": {"name": "patch", **discriminator}}
    with pytest.raises(UserError, match=message):
        checks.complete(data_checks.load(write_recipe(**parts), options))


@pytest.mark.parametrize("options", [{}, {"accumulate": "2", "objective.batch_mean": "local"}])
def test_valid_recipes_are_accepted(write_recipe, options):
    assert checks.complete(data_checks.load(write_recipe(**ESRGAN), options)).objective.options["halved"] is False
