"""The cost of a recipe: bytes against numbers worked out by hand, and the command that prints them."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext

import pytest
import torch
from processes import run
from torch import nn

from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Optimizer
from sr_dist.tools import bench, memory
from sr_dist.tools.memory import SavedTensors, Sizes, buffer_bytes, outermost, sizes, state_bytes
from sr_dist.training.build import set_up
from sr_dist.training.optimizer_state import build_optimizer, states_per_weight
from sr_dist.training.power_ema import PowerEmas
from sr_dist.training.run import close

TINY_DISCRIMINATOR = {"name": "acgan", "classes": 3, "widths": [4, 4], "features": 8}
GAN = {"name": "srugan", "content": {"mse": 1.0}, "class_weight": 1.0}


def test_a_linear_layer_of_20_weights_on_4_ranks():
    network = sizes(nn.Linear(3, 5))
    assert network == Sizes((15, 5), (), 0)
    assert state_bytes(network, 2, 0, 4, True) == {"weights": 80, "gradients": 80, "optimizer": 160, "ema": 80}
    # Stages 1 and 2 also keep master weights: 5 values and 2 states of each.
    assert state_bytes(network, 2, 1, 4, True) == {"weights": 80, "gradients": 80, "optimizer": 3 * 20, "ema": 80}
    assert state_bytes(network, 2, 2, 4, True) == {"weights": 80, "gradients": 20, "optimizer": 3 * 20, "ema": 80}
    # Stage 3 partitions each parameter: 4 of 15 values and 2 of 5. The EMA is a share and the whole copy.
    assert state_bytes(network, 2, 3, 4, True) == {"weights": 24, "gradients": 24, "optimizer": 3 * 24, "ema": 24 + 80}
    assert state_bytes(network, 2, 3, 4, False)["ema"] == 0


def test_frozen_parameters_have_neither_gradients_nor_states():
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    network[0].requires_grad_(False)
    counts = sizes(network)
    assert counts == Sizes((5, 5), (15, 5), 11)  # mean, variance, and the number of batches
    assert state_bytes(counts, 2, 0, 1, True) == {"weights": 164, "gradients": 40, "optimizer": 80, "ema": 164}


def test_buffers_are_buckets_and_at_stage_3_also_the_gathered_weights():
    network = Sizes((1000,), (), 0)
    assert buffer_bytes(network, {"stage": 0}) == 0
    assert buffer_bytes(network, {"stage": 1, "reduce_bucket_size": 250}) == 1000
    assert buffer_bytes(network, {"stage": 2, "reduce_bucket_size": 250}) == 2 * 1000
    assert buffer_bytes(network, {"stage": 3, "reduce_bucket_size": 250}) == 1000 + 4000


@pytest.mark.parametrize("options", [{"name": "adam"}, {"name": "adamw"}, {"name": "sgd"}, {"name": "sgd", "momentum": 0.9}])
def test_states_per_weight_are_those_that_the_optimizer_makes(options):
    network, settings = nn.Linear(3, 5, bias=False), Optimizer(**options)
    optimizer = build_optimizer(network, settings)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state[network.weight].values()
    assert states_per_weight(settings) == sum(value.numel() == 15 for value in state if value is not None)


def test_saved_tensors_count_each_storage_once_and_no_parameter():
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1))
    saved = SavedTensors(network)
    with saved.counting(outermost(network, ("0", "1"))):
        network(torch.ones(1, 1, 4, 4))
    # The input for the first convolution; the ReLU's output for itself and for the second convolution.
    assert saved.bytes == 4 * 16 + 4 * 32
    assert saved.segments == {"0": 64, "1": 128}


def test_only_the_outermost_modules_that_match():
    network = nn.ModuleDict({"body": nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()), "tail": nn.ReLU()})
    assert list(outermost(network, ("body.*",))) == ["body.0", "body.1"]


def gan_table(write_recipe, gpus: int = 8, **more) -> dict:
    changes = {"discriminator": TINY_DISCRIMINATOR, "objective": {**GAN, **more.pop("objective", {})}, **more}
    path = write_recipe("gan.yaml", **changes)
    return memory.memory_table(data_checks.load_without_data(path, {}), gpus)


def test_memory_falls_with_the_stage(write_recipe):
    rows = gan_table(write_recipe, data={"batch": 16})["backends"]
    states = {name: row["weights"] + row["gradients"] + row["optimizer"] for name, row in rows.items()}
    assert states["DDP"] > states["ZeRO-1"] > states["ZeRO-2"] > states["ZeRO-3"]
    assert rows["ZeRO-2, offload"]["optimizer"] == 0 < rows["ZeRO-2, offload"]["host"]
    # The buffers of one network exist at a time.
    assert rows["ZeRO-2"]["buffers"] == 2 * rows["ZeRO-1"]["buffers"] <= 2 * rows["DDP"]["weights"]
    assert rows["ZeRO-3"]["ema"] > rows["ZeRO-2"]["ema"]


def test_post_hoc_averages_are_two_copies_or_two_shares_of_the_parameters(write_recipe):
    """Of 4 bytes a value. ZeRO-3's share of each parameter is rounded up."""
    plain, more = (gan_table(write_recipe, ema={"post_hoc": value}) for value in (False, True))
    added = {name: row["ema"] - plain["backends"][name]["ema"] for name, row in more["backends"].items()}
    whole = 2 * 4 * plain["parameters"]["generator"]
    assert {added[name] for name in added if name != "ZeRO-3"} == {whole}
    assert whole / 8 <= added["ZeRO-3"] < whole / 7
    for name, row in more["backends"].items():
        assert row["total"] - plain["backends"][name]["total"] == added[name]


def test_activations_are_linear_in_images_and_less_with_recomputation(write_recipe):
    one, two = gan_table(write_recipe, data={"batch": 8}), gan_table(write_recipe, data={"batch": 16})
    assert (one["images"], two["images"]) == (1, 2)
    full = two["activations"][-1]
    assert full["precision"] == "no"
    assert full["generator"] == pytest.approx(2 * one["activations"][-1]["generator"], rel=0.01)
    recomputed = gan_table(write_recipe, data={"batch": 16}, checkpointing=["dense*.*"])["activations"][-1]
    assert recomputed["checkpointing"] == ["dense*.*"]
    assert recomputed["generator"] < full["generator"]


def test_estimates_on_fake_tensors_equal_those_on_real_ones(write_recipe, monkeypatch):
    path = write_recipe("gan.yaml", discriminator=TINY_DISCRIMINATOR, objective=GAN)
    recipe = checks.complete(data_checks.load_without_data(path, {}))
    for patterns in ((), ("dense*.*",)):
        variant = recipe.model_copy(update={"checkpointing": patterns})
        estimated = memory.activations(variant, 2)
        with monkeypatch.context() as patched:
            patched.setattr(memory, "FakeTensorMode", lambda **_: nullcontext())
            assert memory.activations(variant, 2) == estimated


def test_a_recipe_that_resizes_leaves_no_tensors_without_numbers_behind(write_recipe):
    recipe = data_checks.load_without_data(write_recipe(data={"crop": 22}), {"generator": "{name: srcnn}"})
    tables = [memory.memory_table(recipe, gpus=1)["activations"]]
    assert torch.isfinite(imresize(torch.rand(1, 3, 11, 11), 2)).all()  # of the same size, with numbers
    tables.append(memory.memory_table(recipe, gpus=1)["activations"])
    assert tables[0] == tables[1]


def test_a_step_on_random_images_has_the_losses_of_training(write_recipe, monkeypatch):
    path = write_recipe("gan.yaml", discriminator=TINY_DISCRIMINATOR, objective=GAN)
    averaged: list[int] = []
    monkeypatch.setattr(PowerEmas, "update", lambda self, step: averaged.append(len(self._averages)))
    losses = memory.one_step(checks.complete(data_checks.load_without_data(path, {"ema.post_hoc": "true"})), 4)
    assert averaged == [2]  # they are in the memory that is measured
    readings = {"reading/accuracy_real", "reading/accuracy_fake"}
    assert losses.keys() == {"mse", "adversarial", "real", "fake", "class_real", "class_fake"} | readings
    assert all(math.isfinite(float(value)) for value in losses.values())


def test_memory_needs_no_shards_unless_the_classes_come_from_them(write_recipe, tmp_path):
    nowhere = {"train": str(tmp_path / "nowhere")}
    path = write_recipe("gan.yaml", data=nowhere, discriminator={**TINY_DISCRIMINATOR, "classes": "manifest"}, objective=GAN)
    with pytest.raises(UserError, match=r"discriminator.classes: manifest, but .*--discriminator.classes=N"):
        data_checks.load_without_data(path, {})
    assert data_checks.load_without_data(path, {"discriminator.classes": "7"}).discriminator.options["classes"] == "7"


def test_published_weights_are_counted_and_not_read(write_recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    objective = {"content": {"vgg": {"weight": 1.0, "layers": "conv5_4"}}}
    table = gan_table(write_recipe, objective=objective, data={"crop": 32})
    assert table["backends"]["DDP"]["content"] == 4 * (20_024_384 + 6)  # VGG19's convolutions, and a mean and deviation
    half = gan_table(write_recipe, objective=objective, data={"crop": 32}, precision="bf16")
    assert half["backends"]["DDP"]["content"] == 2 * 20_024_384 + 4 * 6
    by_precision = {row["precision"]: row["generator"] for row in half["activations"]}
    assert by_precision["bf16"] < by_precision["no"], "weights that are 16 bits already are not saved once more"


def test_bench_step_times_real_steps_and_touches_no_run_folder(write_recipe, tmp_path):
    path = write_recipe("gan.yaml", discriminator=TINY_DISCRIMINATOR, objective=GAN)
    out, _ = run(0, "sr_dist.bench", "step", path, "--steps=2", "--json", cwd=tmp_path)
    result = json.loads(out.splitlines()[-1])
    speed = result["images_per_second"]
    assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert (result["steps"], result["ranks"], result["finite"]) == (2, 1, True)
    assert 0 <= result["data_wait"] < 1
    assert result["losses"].keys() >= {"mse", "real", "fake"}
    assert not (tmp_path / "runs").exists()


def test_bench_step_counts_making_lr_as_work_and_not_as_a_wait(write_recipe, monkeypatch, tmp_path):
    """Images are in memory at once, and the device takes 0.2 s for LR: as in a training, nobody waits for data."""
    recipe = data_checks.load(write_recipe(), {"steps": "4", "data.workers": "0", "runs": str(tmp_path)})
    run = set_up(checks.complete(recipe))
    degrade = run.loader.degrade
    monkeypatch.setattr(run.loader, "degrade", lambda hr, seeds: (time.sleep(0.2), degrade(hr, seeds))[1])
    monkeypatch.setattr(bench, "WARM_UP", 1)
    result = bench.time_steps(run)
    close(run)
    assert (result["steps"], result["data_wait"] < 0.5) == (3, True)


def test_bench_data_measures_the_stream_beside_the_decoder_and_webdataset(write_recipe, tmp_path):
    """Without the validation set of the recipe, which it does not read."""
    words = [write_recipe(), "--data.validation=not/there", "--images=8", "--rounds=1", "--json"]
    out, _ = run(0, "sr_dist.bench", "data", *words, cwd=tmp_path)
    result = json.loads(out.splitlines()[-1])
    speeds = result["images_per_second"]
    assert speeds.keys() == {"stream", "decode", "batches", "webdataset", "tars"}
    assert all(speed > 0 for speed in speeds.values())
    assert result["share_of_decode"] == pytest.approx(speeds["stream"] / speeds["decode"])
    assert result["ratio_to_webdataset"] == pytest.approx(speeds["stream"] / speeds["webdataset"])
    assert result["ratio_to_reader_webdataset"] == pytest.approx(speeds["stream"] / speeds["tars"])
    assert result["resume"].keys() == {"seconds_at_the_start", "seconds_after_1000000_steps", "ratio"}
    assert result["samples"] == 24
    assert not (tmp_path / "runs").exists()


def test_the_command_prints_a_table_and_ends_with_json(write_recipe, tmp_path):
    out, _ = run(0, "sr_dist.bench", "step", write_recipe(), "--memory", "--gpus=2", "--json", cwd=tmp_path)
    *table, last = out.splitlines()
    result = json.loads(last)
    assert (result["gpus"], result["measured"]) == (2, None)
    assert any(line.startswith("| ZeRO-3 | ") for line in table)
    assert "computed" in out
    assert "estimated" in out
