"""What must not depend on the device. On the CPU these tests show their own logic; `pytest -m gpu` runs them on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from finished import finished
from processes import ROOT

from sr_dist.core import config, plugins, ranks
from sr_dist.core.plugins import PACKAGES
from sr_dist.data import data_checks
from sr_dist.data.format import open_shards
from sr_dist.data.loader import Loader, LoaderConfig
from sr_dist.recipe import checks
from sr_dist.recipe.labels import Labels
from sr_dist.recipe.sections import Data, Optimizer, Recipe
from sr_dist.tools.step_inputs import objective_and_networks, quiet, random_batch, without_published_weights
from sr_dist.training.ddp import DDPEngine
from sr_dist.training.ema import Ema
from sr_dist.training.networks import build_degradation, prepared
from sr_dist.training.optimizer_state import begin_momentum, build_optimizer
from sr_dist.training.step import Precision, take_step

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
SMALL = ("demo", "demo_pixel", "srcnn_x4")  # enough for a CPU


def levels(images: torch.Tensor) -> torch.Tensor:
    """0 to 255. CUDA divides by multiplying with the reciprocal: x / 255 differs in the last bit for 126 of 256 values."""
    return (images.cpu() * 255).round()


def share_of_differences(images: torch.Tensor, others: torch.Tensor) -> float:
    return float((levels(images) != levels(others)).double().mean())


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_batches_on_a_device_are_those_on_the_cpu(photo_shards, accumulate, device):
    """Workers overwrite their slots while copies to the device may be in progress."""

    def loader_on(device: str, workers: int) -> Loader:
        data = Data(train=str(photo_shards), crop=24, batch=12, workers=workers)
        settings = LoaderConfig(data, seed=0, scale=2, accumulate=accumulate, steps=10, channels=3)
        shards = [open_shards(str(photo_shards))]
        return Loader(shards, settings, lambda hr, seeds: hr[..., ::2, ::2], torch.device(device))

    side = 8192 if device == "cuda" else 64
    loader, busy, steps = loader_on(device, 2), torch.rand(side, side, device=device), []
    try:
        for _, batches in loader.steps(1):
            steps.append(batches)
            busy = (busy @ busy).clamp(0, 1)  # delays the next copies
    finally:
        loader.close()
    for ours, (_, theirs) in zip(steps, loader_on("cpu", 0).steps(1), strict=True):
        for our, their in zip(ours, theirs, strict=True):
            assert our.keys == their.keys and our.hr.device.type == device
            assert levels(our.hr).equal(levels(their.hr)) and levels(our.lr).equal(levels(their.lr))
            torch.testing.assert_close(our.hr.cpu(), their.hr, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["bicubic", "gaussian", "real"])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_lr_on_a_device_is_that_of_the_cpu_with_tf32(device, name, scale):
    """TF32 would put 2 to 13 % of the pixels a level off; sums in another order move a value over a half far more seldom."""
    module, options = plugins.resolve(PACKAGES["degradation"], name, {}, "data.degradation")
    degrade = module.build(options, scale)
    hr = torch.randint(0, 256, (8, 3, 96, 96), generator=torch.Generator().manual_seed(0)) / 255
    expected = degrade(hr, torch.arange(8))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        lr = degrade(hr.to(device), torch.arange(8, device=device))
    finally:
        torch.set_float32_matmul_precision(before)
    assert lr.device.type == device
    assert share_of_differences(lr, expected) <= 1e-3
    assert (levels(lr) - levels(expected)).abs().max() <= (1 if name != "real" else 255)


@pytest.mark.parametrize("settings", [{"name": "adam"}, {"name": "adamw"}, {"name": "sgd", "momentum": 0.9}], ids=str)
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_skipped_first_update_changes_nothing(device, settings):
    """A fused optimizer skips an update where the flag on the device says so, and does not count the step."""
    network = torch.nn.Linear(3, 2).to(device)
    start = network.weight.detach().clone()
    optimizer = build_optimizer(network, Optimizer(learning_rate=0.1, **settings))
    begin_momentum(optimizer)
    for skipped in (1.0, 0.0):
        network.weight.grad, network.bias.grad = torch.ones_like(network.weight), torch.ones_like(network.bias)
        vars(optimizer).update(grad_scale=None, found_inf=torch.full((), skipped, device=device))
        optimizer.step()
        if skipped:
            assert network.weight.equal(start)
    torch.testing.assert_close(network.weight, start - 0.1 * torch.ones_like(start), rtol=1e-4, atol=1e-3)  # adamw also decays
    assert all(torch.isfinite(value).all() for state in optimizer.state.values() for value in state.values() if value is not None)
    for state in optimizer.state.values():
        assert float(state.get("step", 1)) == 1
        assert float(state.get("momentum_buffer", torch.ones(1)).mean()) == 1


# ---- steps that do not wait


@contextmanager
def without_waiting(device: str) -> Iterator[None]:
    """Operations that wait for the GPU raise an error."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def load(name: str, classifiers: dict[str, str]) -> Recipe:
    """A recipe without its data and with random weights for published ones."""
    path = ROOT / "configs" / f"{name}.yaml"
    stated = config.typed(Recipe, config.read(path))
    options = {"data.train": "none", "data.validation": "none", "data.batch": "4"}
    if stated.discriminator_classes == "manifest":
        options["discriminator.classes"] = "2"
    if stated.classifier:
        options["classifier.outputs"] = "1"
    if "classifier" in stated.objective.options.get("content", {}):
        runs = stated.objective.options["content"]["classifier"]["runs"]
        options["objective.content.classifier.runs"] = ",".join(classifiers[Path(run).name] for run in runs)
    if stated.classifier and "weights" in stated.classifier.options:
        options["classifier.weights"] = "none"
    return without_published_weights(checks.complete(data_checks.load_without_data(path, options)))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("classifiers")
    labels = {
        "classifier_digits": Labels("class", ("zero", "one")),
        "classifier_eyeglasses": Labels("attributes", ("Eyeglasses",)),
        "classifier_gender": Labels("attributes", ("Male",)),
        "classifier_hat": Labels("attributes", ("Wearing_Hat",)),
    }
    return {name: finished(folder / f"{name}.safetensors", its_labels, size=32) for name, its_labels in labels.items()}


ON_A_DEVICE = [*(("cpu", name) for name in SMALL), *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in RECIPES)]


@pytest.mark.parametrize(("device", "name"), ON_A_DEVICE)
def test_a_step_of_a_recipe_does_not_wait_for_the_device(device, name, classifiers):
    """LR, losses, both updates and the average: the host may run ahead of the GPU."""
    recipe = load(name, classifiers)
    accelerator = ranks.open_accelerator("no")
    if accelerator.device.type != device:
        pytest.skip(f"the process uses {accelerator.device}")
    with quiet():
        objective, networks = objective_and_networks(recipe)
    objective, first = objective.to(device), next(iter(networks))
    ema = Ema(networks[first], recipe.ema.decay)
    ema.network.to(device)
    trained = {phase: prepared(network, recipe, phase, accelerator.device) for phase, network in networks.items()}
    engines = {phase: DDPEngine(accelerator, network, recipe, phase) for phase, network in trained.items()}
    ema.follow(engines[first])
    rates = {phase: recipe.optimizer_of(phase).learning_rate for phase in engines}
    degrade, seeds = build_degradation(recipe), torch.arange(4, device=device)
    batch = random_batch(recipe, 4, accelerator.device)

    def step() -> dict[str, torch.Tensor]:
        degrade(batch.hr, seeds)
        losses, _ = take_step(objective, engines, [batch], Precision(recipe.precision, device), rates)
        ema.update()
        return losses

    step()  # constants are copied and kernels loaded once
    with without_waiting(device):
        losses = step()
    assert all(torch.isfinite(value) for value in losses.values())
