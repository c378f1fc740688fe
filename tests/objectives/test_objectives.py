"""The papers' equations, transcribed in numpy, beside sr_dist/objectives. New files are tested too."""

import numpy as np
import pytest
import torch
from torch import nn

from sr_dist.core import plugins
from sr_dist.core.batch import Batch, DiscriminatorOutput, Reading

PACKAGE = "sr_dist.objectives"
NAMES = plugins.names(PACKAGE)
PHASES = {("generator",), ("generator", "discriminator"), ("classifier",)}


class LinearDiscriminator(nn.Module):
    """Logits that are linear in the pixels, so that numpy can transcribe them."""

    def __init__(self, classes=None, pixels=3 * 8 * 8):
        super().__init__()
        torch.manual_seed(5)
        self.real = nn.Linear(pixels, 1).double()
        self.classes = nn.Linear(pixels, classes).double() if classes else None

    def forward(self, images):
        x = images.flatten(1)
        return DiscriminatorOutput(self.real(x).squeeze(1), self.classes(x) if self.classes else None)


def a_batch(labels=(2, 0, 1), seed=0):
    draw = torch.Generator().manual_seed(seed)
    hr = torch.rand(3, 3, 8, 8, generator=draw, dtype=torch.float64)
    lr = torch.rand(3, 3, 4, 4, generator=draw, dtype=torch.float64)
    sr = torch.rand(3, 3, 8, 8, generator=draw, dtype=torch.float64)
    return Batch(lr, hr, torch.tensor(labels), ("a", "b", "c")), sr


def build(name, **options):
    module, config = plugins.resolve(PACKAGE, name, options, "objective")
    return module.Objective(config)


def with_small_content(name):
    module, _ = plugins.resolve(PACKAGE, name, {}, "objective")
    return build(name, **({"content": {"l1": 1.0}} if "content" in module.Config.model_fields else {}))


def numbers(terms):
    return {name: (value.value if isinstance(value, Reading) else value).item() for name, value in terms.items()}


def loss_terms(terms):
    """The terms that are summed."""
    return {name: value for name, value in terms.items() if not isinstance(value, Reading)}


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def cross_entropy(logits, labels):
    """The mean over the batch; samples without a class (-1) add zero."""
    rows = [np.log(np.exp(row).sum()) - row[label] if label >= 0 else 0.0 for row, label in zip(logits, labels, strict=True)]
    return np.mean(rows)


def numpy_logits(discriminator, images):
    """The logits of the linear discriminator, in numpy."""
    x = images.detach().flatten(1).numpy()
    outputs = [
        x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        for layer in (discriminator.real, discriminator.classes)
        if layer is not None
    ]
    return (outputs[0][:, 0], outputs[1] if len(outputs) > 1 else None)


# ---- every objective


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_declares_its_phases_and_validation(name):
    objective = with_small_content(name)
    assert objective.phases in PHASES
    assert objective.validation in ("restoration", "classification")
    assert [p for p in objective.parameters() if p.requires_grad] == []  # it holds no network that trains


@pytest.mark.parametrize("name", [n for n in NAMES if "generator" in with_small_content(n).phases])
def test_every_loss_of_a_generator_is_a_named_scalar_with_a_gradient(name):
    objective, (batch, _) = with_small_content(name), a_batch()
    generator = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 1)).double()
    discriminator = LinearDiscriminator(classes=3) if "discriminator" in objective.phases else None
    sr = objective(generator, batch)
    assert sr.shape == batch.hr.shape
    terms = objective.generator_loss(discriminator, batch, sr)
    assert terms and all(value.ndim == 0 and value.isfinite() for value in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in generator.parameters())


@pytest.mark.parametrize("name", [n for n in NAMES if "discriminator" in with_small_content(n).phases])
@pytest.mark.parametrize("classes", [None, 3])
def test_every_discriminator_learns_from_real_and_fake(name, classes):
    objective, (batch, sr), discriminator = with_small_content(name), a_batch(), LinearDiscriminator(classes)
    terms = loss_terms(objective.discriminator_loss(discriminator, batch, sr))
    assert terms and all(value.ndim == 0 and value.isfinite() for value in terms.values())
    sum(terms.values()).backward()
    heads = [discriminator.real, *([discriminator.classes] if "class_real" in terms else [])]
    assert all(head.weight.grad.abs().max() > 0 for head in heads)  # a bias has no part in the difference of two logits


@pytest.mark.parametrize("name", [n for n in NAMES if "discriminator" in with_small_content(n).phases])
def test_the_adversarial_gradient_makes_sr_more_real_to_the_discriminator(name):
    objective, (batch, sr), discriminator = with_small_content(name), a_batch(), LinearDiscriminator()
    sr.requires_grad_()
    (gradient,) = torch.autograd.grad(objective.generator_loss(discriminator, batch, sr)["adversarial"], sr)
    moved = sr - 1e-3 * gradient / gradient.norm()
    assert (discriminator(moved).logits > discriminator(sr).logits).all()


@pytest.mark.parametrize("name", [n for n in NAMES if "discriminator" in with_small_content(n).phases])
def test_the_discriminators_gradient_separates_real_from_fake(name):
    objective, (batch, sr), discriminator = with_small_content(name), a_batch(), LinearDiscriminator()
    real, fake = discriminator(batch.hr).logits.mean().item(), discriminator(sr).logits.mean().item()
    sum(objective.discriminator_loss(discriminator, batch, sr).values()).backward()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter -= 1e-3 * parameter.grad
        assert discriminator(batch.hr).logits.mean() - discriminator(sr).logits.mean() > real - fake


# ---- pixel


def test_pixel_is_its_content_terms_alone():
    batch, sr = a_batch()
    objective = build("pixel", content={"l1": 0.5, "mse": {"weight": 3.0, "range": "-1..1"}})
    assert objective.phases == ("generator",)
    difference = sr.numpy() - batch.hr.numpy()
    expected = {"l1": 0.5 * np.abs(difference).mean(), "mse": 3 * 4 * (difference**2).mean()}
    assert numbers(objective.generator_loss(None, batch, sr)) == pytest.approx(expected, rel=1e-6)


def test_pixel_defaults_to_l1():
    batch, sr = a_batch()
    assert numbers(build("pixel").generator_loss(None, batch, sr)) == pytest.approx(
        {"l1": np.abs(sr.numpy() - batch.hr.numpy()).mean()}
    )


# ---- SR-UGAN, equations 5 to 8

MSE = {"mse": {"weight": 1.0, "range": "-1..1"}}


def test_srugans_generator_loss_is_the_papers():
    (batch, sr), discriminator = a_batch(), LinearDiscriminator(classes=3)
    objective = build("srugan", content=MSE)
    fake, _ = numpy_logits(discriminator, sr)
    expected = {
        "mse": ((2 * sr.numpy() - 2 * batch.hr.numpy()) ** 2).mean(),
        "adversarial": 1e-3 * -log_sigmoid(fake).mean(),
    }  # the paper does not train the generator on the labels
    assert numbers(objective.generator_loss(discriminator, batch, sr)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("class_weight", [1.0, 0.25])
def test_srugans_discriminator_loss_is_the_papers(class_weight):
    (batch, sr), discriminator = a_batch(), LinearDiscriminator(classes=3)
    objective = build("srugan", content=MSE, class_weight=class_weight)
    (real, real_classes), (fake, fake_classes) = numpy_logits(discriminator, batch.hr), numpy_logits(discriminator, sr)
    expected = {
        "real": -log_sigmoid(real).mean(),
        "fake": -np.log(1 - 1 / (1 + np.exp(-fake))).mean(),
        "class_real": class_weight * cross_entropy(real_classes, [2, 0, 1]),
        "class_fake": class_weight * cross_entropy(fake_classes, [2, 0, 1]),
        "accuracy_real": np.mean(real_classes.argmax(1) == [2, 0, 1]),
        "accuracy_fake": np.mean(fake_classes.argmax(1) == [2, 0, 1]),
    }
    assert numbers(objective.discriminator_loss(discriminator, batch, sr)) == pytest.approx(expected, rel=1e-6)


def test_srugans_class_term_for_the_generator_is_an_option_of_the_later_code():
    (batch, sr), discriminator = a_batch(), LinearDiscriminator(classes=3)
    objective = build("srugan", content=MSE, generator_class_weight=1e-3)
    sr.requires_grad_()
    terms = objective.generator_loss(discriminator, batch, sr)
    assert terms["class"].item() == pytest.approx(1e-3 * cross_entropy(numpy_logits(discriminator, sr)[1], [2, 0, 1]), rel=1e-6)
    (gradient,) = torch.autograd.grad(terms["class"], sr)
    assert gradient.abs().max() > 0


def test_srugan_without_a_class_head_has_no_class_terms():
    (batch, sr), discriminator = a_batch(), LinearDiscriminator()
    objective = build("srugan", content=MSE, generator_class_weight=1.0)
    assert set(objective.generator_loss(discriminator, batch, sr)) == {"mse", "adversarial"}
    assert set(objective.discriminator_loss(discriminator, batch, sr)) == {"real", "fake"}


def test_labels_of_minus_one_add_nothing():
    (batch, sr), discriminator = a_batch(labels=(2, -1, 1)), LinearDiscriminator(classes=3)
    objective = build("srugan", content=MSE, generator_class_weight=1.0)
    (_, real_classes), (_, fake_classes) = numpy_logits(discriminator, batch.hr), numpy_logits(discriminator, sr)
    terms = numbers(objective.discriminator_loss(discriminator, batch, sr))
    assert terms["class_real"] == pytest.approx(cross_entropy(real_classes, [2, -1, 1]), rel=1e-6)
    assert terms["class_fake"] == pytest.approx(cross_entropy(fake_classes, [2, -1, 1]), rel=1e-6)
    sr.requires_grad_()
    (gradient,) = torch.autograd.grad(objective.generator_loss(discriminator, batch, sr)["class"], sr)
    assert gradient[1].abs().max() == 0
    assert min(gradient[0].abs().max(), gradient[2].abs().max()) > 0


def test_no_label_at_all_leaves_the_class_head_alone():
    (batch, sr), discriminator = a_batch(labels=(-1, -1, -1)), LinearDiscriminator(classes=3)
    terms = build("srugan", content=MSE).discriminator_loss(discriminator, batch, sr)
    assert terms["class_real"] == 0 and terms["class_fake"] == 0
    sum(loss_terms(terms).values()).backward()
    assert discriminator.classes.weight.grad.abs().max() == 0
    assert discriminator.real.weight.grad.abs().max() > 0


def test_losses_of_micro_batches_add_up_by_their_share():
    """The loop relies on it: every term is a mean over samples, including those without a label."""
    (batch, sr), discriminator = a_batch(labels=(2, -1, 1)), LinearDiscriminator(classes=3)
    objective = build("srugan", content=MSE, generator_class_weight=0.5)
    parts = [slice(0, 1), slice(1, 3)]
    for loss in (objective.generator_loss, objective.discriminator_loss):
        whole = numbers(loss(discriminator, batch, sr))
        added = dict.fromkeys(whole, 0.0)
        for part in parts:
            piece = Batch(batch.lr[part], batch.hr[part], batch.label[part], batch.keys[part])
            for name, value in numbers(loss(discriminator, piece, sr[part])).items():
                added[name] += len(piece) / 3 * value
        assert added == pytest.approx(whole, rel=1e-6)


def test_srugans_defaults_are_the_papers():
    module, config = plugins.resolve(PACKAGE, "srugan", {}, "objective")
    assert (config.adversarial_weight, config.class_weight, config.generator_class_weight) == (1e-3, 1.0, 0.0)
    assert config.content == {"mse": {"weight": 1.0, "range": "-1..1"}, "vgg": {"weight": 1.0, "layers": "conv5_4"}}
    assert module.Objective.phases == ("generator", "discriminator")
