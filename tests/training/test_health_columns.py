"""Columns and alarms of a run's health, with worked-out numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sr_dist.core.batch import Batch, DiscriminatorOutput
from sr_dist.losses.gradient_penalty import R1Config, penalized
from sr_dist.recipe.steering import Alarms
from sr_dist.training.alarms import check, no_alarms
from sr_dist.training.health import Observer, columns


class Brightness(nn.Module):
    """Logits are 20 times the mean of an image, less 10; classes 0 and 1 for dark and bright ones."""

    def forward(self, images: torch.Tensor) -> DiscriminatorOutput:
        mean = images.mean((1, 2, 3))
        return DiscriminatorOutput(20 * mean - 10, torch.stack([0.5 - mean, mean - 0.5], 1))


def batch_of(*brightness: float, labels: tuple[int, ...] = (1, 1)) -> Batch:
    hr = torch.tensor(brightness).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return Batch(hr[..., ::2, ::2], hr, torch.tensor(labels), tuple("abcd"[: len(hr)]), step=1)


def watched(batch: Batch, sr: torch.Tensor, loss, images=lambda batch: batch.hr) -> dict[str, float]:
    """The columns of the discriminator's phase with this loss of the logits of HR and SR."""
    observer = Observer([range(2)], 2)
    discriminator = observer.watch(Brightness(), "discriminator", batch, sr)
    leaf = sr.detach().requires_grad_()  # so that the logits have a gradient, as with trained weights
    real, fake = discriminator(images(batch).detach().requires_grad_()), discriminator(leaf)
    observer.discriminator(batch, loss(real.logits[:2], fake.logits))
    return columns(observer.sums)


def binary(real, fake):
    return {"real": nn.functional.softplus(-real).mean(), "fake": nn.functional.softplus(fake).mean()}


def test_logits_are_told_by_the_memory_of_their_images():
    """HR has the logits 10 and 0, SR 2 and -10: means 5 and -4. Of the loss's gradients only sigmoid(-10) is below 1e-3. The
    second HR image is half bright, class 0 by a tie; its label is 1."""
    row = watched(batch_of(1.0, 0.5), batch_of(0.6, 0.0).hr, binary)
    assert row["health/margin"] == pytest.approx(9.0)
    assert (row["health/accuracy_real"], row["health/accuracy_fake"]) == (1.0, 1.0)
    assert (row["health/saturated_real"], row["health/saturated_fake"]) == (0.5, 0.5)
    assert (row["health/class_accuracy_real"], row["health/class_accuracy_fake"]) == (0.5, 0.5)


def test_a_form_that_never_saturates_has_no_share():
    row = watched(batch_of(1.0, 0.5), batch_of(0.6, 0.0).hr, lambda real, fake: {"critic": fake.mean() - real.mean()})
    assert (row["health/saturated_real"], row["health/saturated_fake"]) == (0.0, 0.0)


def test_images_beside_noisy_ones_count_and_augmented_ones_do_not():
    """The approximated penalty shows HR and HR with noise in one tensor."""
    batch, sr = batch_of(1.0, 0.5), batch_of(0.6, 0.0).hr
    row = watched(batch, sr, binary, images=lambda batch: torch.cat([batch.hr, batch.hr + 0.01]))
    assert row["health/margin"] == pytest.approx(9.0)
    row = watched(batch, sr, binary, images=lambda batch: batch.hr * 0.9)
    assert "health/saturated_real" not in row and "health/margin" not in row and row["health/saturated_fake"] == 0.5


def test_the_penalty_of_noise_is_watched():
    batch, sr = batch_of(1.0, 0.5), batch_of(0.6, 0.0).hr
    observer = Observer([range(2)], 2)
    discriminator = observer.watch(Brightness(), "discriminator", batch, sr)
    config = R1Config(r1_weight=1.0, r1_noise=0.01)
    output, penalty = penalized(discriminator, batch.hr.requires_grad_(), batch, 1.0, config)
    assert penalty is not None and len(output.logits) == 2
    assert len(observer._seen) == 1 and float(observer._seen[0][0]) == 1.0


def test_gradients_of_terms_and_colours():
    """mse 2 (sr - hr) / n and -mean(C): the norms are 2 * 0.1 / sqrt(96) and 20 / sqrt(48) / 2 for each of two images."""
    batch = batch_of(0.5, 0.5)
    sr = (batch.hr + 0.1).requires_grad_()
    observer = Observer([range(2)], 2)
    discriminator = observer.watch(Brightness(), "generator", batch, sr)
    terms = {"mse": (sr - batch.hr).square().mean(), "adversarial": -discriminator(sr).logits.mean()}
    observer.generator(batch, sr, terms)
    row = columns(observer.sums)
    assert row["health/gradient_mse"] == pytest.approx(0.2 / math.sqrt(96))
    assert row["health/gradient_adversarial"] == pytest.approx(20 / math.sqrt(96))
    assert row["health/adversarial_ratio"] == pytest.approx(100.0)
    assert sr.grad is None
    assert [row[f"health/mean_{c}"] for c in "rgb"] == pytest.approx([0.1] * 3)
    assert torch.stack([*terms.values()]).sum().backward() is None  # the graph is whole


def test_micro_batches_add_up_to_the_global_batch():
    """Three images in parts of one and two have the columns of all three at once."""
    both = [torch.tensor([0.9, 0.2, 0.7]), torch.tensor([0.3, 0.4, 0.1])]
    hr, sr = ((values.view(3, 1, 1, 1) * torch.linspace(0.5, 1, 48).view(1, 3, 4, 4)).contiguous() for values in both)

    def run(parts: list[range]) -> dict[str, float]:
        observer = Observer(parts, 3)
        for part in parts:
            own, ones = hr[part.start : part.stop].clone(), torch.ones(len(part), dtype=torch.long)
            batch = Batch(own[..., ::2, ::2], own, ones, tuple(map(str, part)), step=1, share=len(part) / 3)
            restored = sr[part.start : part.stop].clone().requires_grad_()
            seen = observer.watch(Brightness(), "generator", batch, restored)
            loss = {"l1": (restored - own).abs().mean(), "adversarial": -seen(restored).logits.mean()}
            observer.generator(batch, restored, loss)
            seen = observer.watch(Brightness(), "discriminator", batch, restored)
            answers = [seen(images.detach().requires_grad_()).logits for images in (own, restored)]
            observer.discriminator(batch, binary(*answers))
        return columns(observer.sums)

    whole, parts = run([range(3)]), run([range(1), range(1, 3)])
    assert whole.keys() == parts.keys() and len(whole) == 17
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-5), name


WON = {"health/saturated_real": 1.0, "health/saturated_fake": 0.95, "health/margin": 12.0}
FINE = {"health/saturated_real": 1.0, "health/saturated_fake": 0.1, "health/margin": 12.0}


def rows_with_an_alarm(rows: list[dict[str, float]], bounds: Alarms) -> list[int]:
    state = no_alarms()
    return [number for number, row in enumerate(rows, start=1) if check(row, bounds, state)]


def test_an_alarm_comes_after_two_rows_and_again_when_it_was_gone_or_lasts():
    bounds = Alarms(repeat=5)
    assert rows_with_an_alarm([WON] * 13, bounds) == [2, 7, 12]
    assert rows_with_an_alarm([WON, FINE, WON, WON, WON, FINE, WON, WON], bounds) == [4, 8]
    assert rows_with_an_alarm([{**WON, "health/saturated_fake": math.nan}] * 4, bounds) == []


def test_colours_are_bad_only_after_they_were_good():
    early = [{"health/mean_r": -0.4, "health/spread_r": 0.1}] * 3
    good, bad = {"health/mean_r": 0.01, "health/spread_r": 1.0}, {"health/mean_r": -0.2, "health/spread_r": 1.1}
    assert rows_with_an_alarm([*early, good, bad, bad], Alarms()) == [6]
    state = no_alarms()
    for row in (good, bad):
        check(row, Alarms(), state)
    (alarm,) = check(bad, Alarms(), state)
    assert alarm.text.startswith("colours drift: channel r of SR is -0.200 off")
    assert "optimizer.learning_rate" in alarm.text


def test_every_alarm_names_a_key_that_exists(write_recipe):
    from sr_dist.core import config
    from sr_dist.recipe.sections import Recipe

    bad = WON | {"health/adversarial_ratio": 40.0, "health/mean_g": 0.3, "health/spread_b": 3.0}
    state = no_alarms()
    state["armed"] += ["mean", "spread"]
    assert check(bad, Alarms(), state) == []
    alarms = check(bad, Alarms(), state)
    assert [alarm.name for alarm in alarms] == ["collapse", "ratio", "mean", "spread"]
    sections = {"discriminator_optimizer": "optimizer"}
    tree = config.flatten(config.typed(Recipe, config.read(write_recipe())).model_dump(mode="json"))
    for alarm in alarms:
        keys = [word.strip(";,()") for word in alarm.text.split() if "." in word.strip(";,().") and word[0].isalpha()]
        for key in keys:
            section, rest = key.split(".", 1)
            assert section in ("objective", "init") or f"{sections.get(section, section)}.{rest}".split("=")[0] in tree, key
