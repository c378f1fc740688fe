"""Memory layout and compilation change no result that a user may rely on: bits on resuming, and what R1 computes."""

from __future__ import annotations

from functools import partialmethod
from types import SimpleNamespace

import pytest
import torch
from finished import finished
from safetensors.torch import load_file
from torchvision.models.vgg import make_layers

from sr_dist.core import plugins
from sr_dist.core.plugins import PACKAGES
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.recipe.labels import Labels
from sr_dist.training import build, loop, networks
from sr_dist.training.build import set_up
from sr_dist.training.networks import repeated_blocks

GAN = {
    "generator": "{name: srresnet, width: 8, num_blocks: 1}",
    "discriminator": "{name: patch, widths: [8, 12], norm: none}",
    "objective": "{name: srgan, content: {mse: 1.0}, adversarial_weight: 0.1}",
    "validate_every": "none",
}
VARIANTS = {
    "adam": {},
    "accumulation": {"accumulate": "2"},
    "sgd with momentum": {"optimizer": "{name: sgd, learning_rate: 0.05, momentum: 0.9, clip: 1.0}"},
    "compiled": {"compile": "true"},
}


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch):
    """The graphs of torch.compile, run by torch itself: a C++ compiler would take a minute."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


def train(path, **options):
    """Trains in this process: -> the run folder."""
    run = set_up(checks.complete(data_checks.load(path, {**GAN, **options})))
    try:
        loop.fit(run)
    finally:
        run.loader.close(), run.stop.close(), run.watchdog.close(), run.log.close()
    return run.recipe.folder


def tensors(folder, step=4) -> dict:
    files = sorted((folder / "checkpoints" / f"{step:07d}").glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("variant", [*list(VARIANTS)[:-1], pytest.param("compiled", marks=pytest.mark.slow)])
def test_channels_last_resumes_to_the_same_bits(variant, write_recipe):
    """States of optimizers are stored contiguous; kernels pair the numbers of a weight and of its state in memory order."""
    path, options = write_recipe(steps=4, save_every=2), {"channels_last": "true", **VARIANTS[variant]}
    whole = tensors(train(path, name="whole", **options))
    train(path, name="parts", steps="2", **options)
    resumed = tensors(train(path, name="parts", **options))
    assert whole.keys() == resumed.keys() and len(whole) > 40
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frozen_networks_of_the_loss_have_the_layout_of_the_trained_ones(layout, write_recipe, tmp_path):
    """Else each convolution of a loss copies its images into another layout, and back."""
    runs = finished(tmp_path / "digits.safetensors", Labels("class", ("boats", "cats", "dunes")), size=16)
    content = f"{{mse: 1.0, classifier: {{weight: 0.1, runs: [{runs}], target: prediction}}}}"
    objective = f"{{name: srgan, content: {content}, adversarial_weight: 0.1}}"
    options = {**GAN, "objective": objective, "channels_last": str(layout is torch.channels_last).lower()}
    run = set_up(checks.complete(data_checks.load(write_recipe(steps=2), options)))
    try:
        weights = [p for p in run.objective.parameters() if p.ndim == 4 and p.shape[1] > 1]
        trained = [p for p in run.engines["generator"].bare.parameters() if p.ndim == 4 and p.shape[1] > 1]
        assert weights and all(p.is_contiguous(memory_format=layout) for p in [*weights, *trained])
        loop.advance(run, *next(iter(run.loader.steps(1))))
    finally:
        run.loader.close(), run.stop.close(), run.watchdog.close(), run.log.close()


def thin_vgg19(weights=None):
    """Its layers with four channels."""
    widths = [4, 4, "M", 4, 4, "M", *2 * [4, 4, 4, 4, "M"], 4, 4, 4, 4, "M"]
    return SimpleNamespace(features=make_layers(widths))


def test_frozen_features_are_converted_once_and_change_no_bit(write_recipe, monkeypatch):
    """Autocast keeps the 16-bit weights of trained layers only; those of a frozen network it would make in every call."""
    monkeypatch.setattr("torchvision.models.vgg19", thin_vgg19)
    content = "{mse: 1.0, vgg: {weight: 1.0, weights: random, layers: {conv2_2: 0.5, conv5_4: 1.0}, distance: l1}}"
    options = {"objective": f"{{name: srgan, content: {content}, adversarial_weight: 0.1}}", "precision": "bf16"}
    path, dtypes = write_recipe(steps=2, save_every=2), []

    def as_it_was(objective, precision):
        return objective

    def watched(objective, precision, convert=networks.in_precision):
        result = convert(objective, precision)
        dtypes.extend(p.dtype for p in result.parameters())
        return result

    monkeypatch.setattr(build, "in_precision", watched)
    once = tensors(train(path, name="once", **options), 2)
    monkeypatch.setattr(build, "in_precision", as_it_was)
    each_time = tensors(train(path, name="each", **options), 2)
    assert len(dtypes) == 32 and set(dtypes) == {torch.bfloat16}
    assert once.keys() == each_time.keys() and len(once) > 40
    assert [name for name in once if not once[name].equal(each_time[name])] == []


BLOCKS = {"generator": "{name: rrdb, num_blocks: 2, width: 8, growth: 4}"}


@pytest.mark.parametrize("recomputed", ["none", "body.*.rdb1"])
def test_a_compiled_body_trains_like_the_plain_network(recomputed, write_recipe):
    """Each repeated block is compiled, and the code of the first serves all."""
    path = write_recipe(steps=2)
    plain = tensors(train(path, name="plain", **BLOCKS), 2)
    torch._dynamo.utils.counters.clear()
    options = {"checkpointing": recomputed} if recomputed != "none" else {}
    compiled = tensors(train(path, name="compiled", compile="body", **BLOCKS, **options), 2)
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # generator and critic, twice each at most


def test_recomputed_batch_normalization_follows_every_image_once(write_recipe):
    """The pass that runs again must not change running statistics again."""
    path, options = write_recipe(steps=2), {"generator": "{name: srresnet, num_blocks: 2}"}
    plain = tensors(train(path, name="plain", **options), 2)
    recomputed = tensors(train(path, name="recomputed", checkpointing="body.*", **options), 2)
    assert len([name for name in plain if "running_mean" in name]) >= 4
    assert [name for name in plain if not plain[name].equal(recomputed[name])] == []


def test_the_largest_modules_that_repeat_are_compiled():
    def names(kind, name, **options):
        module, config = plugins.resolve(PACKAGES[kind], name, options, kind)
        network = module.build(config, 4)
        by_module = {module: path for path, module in network.named_modules()}
        return [by_module[block] for block in repeated_blocks(network)]

    assert names("generator", "rrdb", num_blocks=3, width=8, growth=4) == ["body.0", "body.1", "body.2"]
    assert names("generator", "rrdb", num_blocks=1, width=8, growth=4) == ["body.0.rdb1", "body.0.rdb2", "body.0.rdb3"]
    swinir = names("generator", "swinir", width=12, depths=(2, 2), heads=3, window=4)
    assert len(swinir) >= 2 and all(name.startswith("layers.") for name in swinir)
    assert names("generator", "srcnn") == [""]  # nothing repeats: the whole network


@pytest.mark.parametrize("objective", ["srgan", "esrgan"])
def test_r1_trains_compiled_networks_as_plain_ones(objective, write_recipe):
    """What torch.compile makes has no double backward, which R1 needs."""
    section = f"{{name: {objective}, content: {{mse: 1.0}}, adversarial_weight: 0.1, r1_weight: 5.0}}"
    path = write_recipe(steps=2)
    plain, compiled = (
        tensors(train(path, name=f"compile-{compiled}", objective=section, compile=compiled), 2) for compiled in ("false", "true")
    )
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("r1_noise", ["0", "0.1"])
def test_a_discriminator_on_frozen_features_resumes_to_the_same_bits(r1_noise, write_recipe):
    """Checkpoints have its heads alone; the frozen network is drawn again. Exact and approximated R1 pass through it."""
    frozen = "arch: squeezenet1_1, layers: [features.0, features.4], backbone: random, size: 64"
    penalty = f"r1_weight: 1, r1_every: 2, r1_noise: {r1_noise}"
    options = {
        "discriminator": f"{{name: features, {frozen}, width: 8}}",
        "objective": f"{{name: srgan, content: {{mse: 1.0}}, adversarial_weight: 0.1, {penalty}}}",
    }
    path = write_recipe(steps=4, save_every=2)
    whole = tensors(train(path, name="whole", **options))
    train(path, name="parts", steps="2", **options)
    resumed = tensors(train(path, name="parts", **options))
    critic = {name for name in whole if name.startswith("discriminator/")}
    assert critic and all(name.startswith("discriminator/heads.") for name in critic)
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []
    start = tensors(train(path, name="parts2", steps="2", **options), 2)
    assert all(not whole[name].equal(start[name]) for name in critic)  # every head trains
