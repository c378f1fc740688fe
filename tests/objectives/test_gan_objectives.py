"""SRGAN and ESRGAN against naive transcriptions of their formulas: sums over samples, sigmoids and logarithms, by hand."""

from __future__ import annotations

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
@pytest.mark.parametrize("name", ["srgan", "esrgan"])
def test_r1_is_the_squared_norm_of_the_discriminators_gradient_on_real_images(name, patches):
    (batch, sr), discriminator = a_batch(), Discriminator(patches)
    terms = objective(name, r1_weight=5.0).discriminator_loss(discriminator, batch, sr.detach())
    norms = []
    for image in batch.hr:
        x = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x).logits.mean(), x, create_graph=True)
        norms.append((gradient**2).sum())
    expected = 5 * average(norms)
    assert terms["r1"].item() == pytest.approx(expected.item(), rel=1e-6)
    gradient, expected_gradient = (
        torch.autograd.grad(value, discriminator.conv.weight, retain_graph=True)[0] for value in (terms["r1"], expected)
    )
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)
    assert not batch.hr.requires_grad


@pytest.mark.parametrize("name", ["srgan", "esrgan"])
def test_r1_is_refused_under_zero(name):
    module, config = plugins.resolve("sr_dist.objectives", name, {"r1_weight": "5"}, "objective")
    assert module.refuses(config, Launch(ranks=8, cuda=True)) is None
    assert "double backward" in module.refuses(config, Launch("deepspeed", 1, ranks=8, cuda=True))
    assert module.refuses(module.Config(), Launch("deepspeed", 3, ranks=8, cuda=True)) is None


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
