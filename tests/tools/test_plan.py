"""sr_dist.plan: operations, memory and communication against independent counts, and what it says where something is wrong."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sr_dist import plan as command
from sr_dist.data import data_checks
from sr_dist.tools import communication, flops, memory, plan, traffic
from sr_dist.tools.communication import Machine
from sr_dist.tools.gpus import GPUS
from sr_dist.training.networks import phase_network
from sr_dist.training.throughput import peak

GB = 1e9
SRCNN = {"name": "run", "scale": 2, "steps": 1000, "generator": {"name": "srcnn", "skip": "none"},
         "objective": {"name": "pixel", "content": {"l1": 1.0}}, "optimizer": {}}  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(**changes)` -> the path of a small recipe without data."""
    monkeypatch.chdir(tmp_path)

    def write_recipe(**changes):
        tree = {**SRCNN, "data": {"train": "nowhere", "crop": 32, "batch": 32, **changes.pop("data", {})}, **changes}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
        return "tiny.yaml"

    return write_recipe


def planned(capsys, *words: object):
    """(the object of --json, the text before it)."""
    capsys.readouterr()
    assert command.main([*map(str, words), "--json"]) == 0
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    return json.loads(last), text


# ------------------------------------------------------------------------------------------------------------ operations


def test_operations_are_those_of_a_real_step_counted_apart(write, capsys):
    """A plain training step on real tensors, written here, under torch's counter."""
    made, _ = planned(capsys, write(), "--gpus=4")
    recipe = plan.checks.complete(data_checks.load_without_data("tiny.yaml", {}))
    network = phase_network(recipe, "generator", resuming=True, notes=[])
    with FlopCounterMode(display=False) as counter:
        (network(torch.rand(8, 3, 16, 16)) - torch.rand(8, 3, 32, 32)).abs().mean().backward()
    assert made["flops_per_image"] == counter.get_total_flops() / 8
    assert made["flops_per_step"] == made["flops_per_image"] * 32


def test_operations_are_the_logs(write):
    recipe = plan.checks.complete(data_checks.load_without_data(write(), {}))
    assert traffic.micro_batch(recipe, 4).flops_per_image == flops.per_image(recipe)


def test_launches_and_bytes_of_one_convolution_by_hand(monkeypatch):
    layer = nn.Conv2d(3, 8, 3, padding=1, device="meta")
    x = torch.rand(2, 3, 16, 16, device="meta")
    monkeypatch.setattr(traffic, "step_without_numbers", lambda recipe, images: lambda: layer(x))
    counted = traffic.micro_batch(None, 2)
    values = x.numel() + layer.weight.numel() + layer.bias.numel() + 2 * 8 * 16 * 16
    assert (counted.launches, counted.bytes) == (1, 4 * values)
    assert counted.flops_per_image == 2 * 8 * 3 * 9 * 16 * 16


def test_views_are_no_launches(monkeypatch):
    x = torch.rand(4, 6, device="meta")
    monkeypatch.setattr(traffic, "step_without_numbers", lambda recipe, images: lambda: x.t().reshape(24)[:3].detach())
    assert traffic.micro_batch(None, 2).launches == 1  # the reshape of a transposed tensor copies


# ---------------------------------------------------------------------------------------------------------------- memory


def test_memory_is_that_of_the_real_parameters(write, capsys):
    made, _ = planned(capsys, write(), "--gpus=4")
    recipe = plan.checks.complete(data_checks.load_without_data("tiny.yaml", {}))
    count = sum(p.numel() for p in phase_network(recipe, "generator", resuming=True, notes=[]).parameters())
    assert made["parameters"] == {"generator": count}
    ddp, zero2 = made["memory"]["ddp"], made["memory"]["zero2"]
    assert (ddp["weights"], ddp["gradients"], ddp["optimizer"], ddp["ema"]) == (4 * count, 4 * count, 8 * count, 4 * count)
    assert zero2["gradients"] == 4 * math.ceil(count / 4) and zero2["optimizer"] == 12 * math.ceil(count / 4)
    table = memory.memory_table(data_checks.load_without_data("tiny.yaml", {}), 4)
    for backend, title in plan.BACKENDS.items():
        assert made["memory"][backend]["total"] == table["backends"][title]["total"]


def test_parameters_are_the_published_counts():
    """Of ESRGAN's RRDBNet and of SwinIR for x4, as many projects print them."""
    for name, counts in {"rrdb_psnr_x4": [16_697_987], "swinir_x4": [11_900_199]}.items():
        recipe = plan.without_published_weights(plan.checks.complete(data_checks.load_without_data(name, {})))
        sizes, _ = memory.parts_sizes(recipe)
        assert [sum(size.trained) + sum(size.frozen) for size in sizes.values()] == counts


def test_what_does_not_fit_gets_options_that_make_it_fit(write, capsys, monkeypatch):
    whole = planned(capsys, write(data={"batch": 64}), "--gpus=2")[0]["memory"]["ddp"]
    enough = whole["total"] + plan.CONTEXT - 0.7 * whole["activations"]  # more than half of the activations must go
    monkeypatch.setitem(GPUS, "rtx4090", replace(GPUS["rtx4090"], memory_gb=enough / GB))
    made, text = planned(capsys, "tiny.yaml", "--gpus=2", "--gpu=rtx4090")
    assert not made["memory"]["ddp"]["fits"]
    options = [row["options"] for row in made["remedies"]]
    assert options[:2] == [["--precision=bf16"], ["--precision=bf16", "--accumulate=2"]]
    assert [row["fits"] for row in made["remedies"]] == [False] * (len(options) - 1) + [True]
    assert "To make it fit, cheapest first" in text
    again, _ = planned(capsys, "tiny.yaml", "--gpus=2", "--gpu=rtx4090", *options[-1])
    assert again["memory"]["ddp"]["fits"] and again["memory"]["ddp"]["total"] == made["remedies"][-1]["total"]


def test_esrgans_global_mean_becomes_local_where_the_batch_is_accumulated():
    stated = data_checks.load_without_data("esrgan_x4", {"generator.num_blocks": "2"})
    recipe = plan.without_published_weights(plan.checks.complete(stated))
    request = plan.Request(GPUS["v100"], 4, 1)
    changes = plan._changes(recipe, request)
    assert next(changes)[0] == ["--precision=fp16"]  # it has no bf16
    added, variant, _, _ = next(changes)
    assert added == ["--accumulate=2", "--objective.batch_mean=local"]
    plan.checks.complete(variant)  # a recipe that runs
    assert plan.repeated_blocks(recipe) == ["body.*"]


# --------------------------------------------------------------------------------------------------------- communication


@pytest.mark.parametrize("gpus", [1, 2, 8, 64, 256])
def test_volumes_are_those_of_the_collectives(gpus):
    """A ring's all-reduce sends 2 (N - 1) / N of the gradients, an all-gather or a reduce-scatter half of that."""
    size = 10_000_000
    ring = (gpus - 1) / gpus * 4 * size
    assert communication.step_bytes(0, size, 0, gpus) == pytest.approx(2 * ring)
    assert communication.step_bytes(1, size, 0, gpus) == communication.step_bytes(2, size, 0, gpus) == pytest.approx(3 * ring)
    assert communication.step_bytes(3, size, 0, gpus) == pytest.approx(2 * ring)
    critic = communication.gathers("esrgan", "discriminator")
    assert communication.step_bytes(3, size, 0, gpus, gathers=critic) == pytest.approx(8 * ring)


def test_a_simulated_ring_sends_as_much():
    """Every rank passes one of N chunks on, N - 1 times to add and N - 1 times to distribute."""
    ranks, chunk = 5, 7
    sent = sum(chunk for _ in range(2) for _ in range(ranks - 1))
    assert communication.step_bytes(0, ranks * chunk, 0, ranks) == pytest.approx(4 * sent)


def test_accumulation_costs_ddp_and_zero_1_nothing():
    volumes = [communication.step_bytes(stage, 100, 0, 4, micro_batches=4) for stage in range(4)]
    assert volumes == pytest.approx([600, 900, 2700, 2400])
    assert communication.step_bytes(0, 100, 50, 4) == pytest.approx(600)  # frozen weights are not exchanged
    assert communication.step_bytes(3, 100, 50, 4) == pytest.approx(600 + 150)  # but gathered


def test_a_ring_runs_at_the_speed_of_its_slowest_link():
    assert Machine(8, 8, link=450, network=50).ring == 450
    assert Machine(16, 8, link=450, network=50).ring == 400  # eight adapters of a node together
    assert Machine(16, 2, link=32, network=50).ring == 32
    assert communication.seconds(400 * GB, Machine(16, 8, link=450, network=50)) == 1.0


# ------------------------------------------------------------------------------------------------------------ the command


def test_time_jobs_and_epochs_follow_from_the_share_of_the_peak(write, capsys):
    words = ["--gpus=16", "--efficiency=0.25", "--time_limit=30m", "--images=500", "--steps=900000000"]
    made, text = planned(capsys, write(), *words)
    (row,) = made["speed"]
    assert row["images_per_second"] == pytest.approx(16 * 494e12 * 0.25 / made["flops_per_image"])
    assert row["hours"] == pytest.approx(900_000_000 * 32 / row["images_per_second"] / 3600)
    assert row["jobs"] == math.ceil(row["hours"] / 0.5) > 1 and row["gpu_hours"] == pytest.approx(16 * row["hours"])
    exchange = made["communication"]["ddp"]["16"]["seconds"]
    assert row["hours_without_overlap"] - row["hours"] == pytest.approx(900_000_000 * exchange / 3600)
    assert made["data"]["epochs"] == 900_000_000 * 32 / 500
    assert "computed, not measured" in text and made["computed"] is True


def test_without_a_share_there_are_three(write, capsys):
    made, _ = planned(capsys, write(), "--gpus=2")
    assert [row["share_of_peak"] for row in made["speed"]][-3:] == [0.14, 0.30, 0.40]
    assert made["data"]["epochs"] is None and made["speed"][0]["jobs"] is None


def test_a_measured_speed_is_of_one_gpu(write, capsys):
    made, text = planned(capsys, write(), "--gpus=8", "--images_per_second=100")
    (row,) = made["speed"]
    assert row["images_per_second"] == pytest.approx(800) and row["measured"]
    assert row["share_of_peak"] == pytest.approx(100 * made["flops_per_image"] / 494e12) and "(measured)" in text


def test_epochs_and_bytes_come_from_the_manifest(write, capsys, photo_shards):
    made, _ = planned(capsys, write(data={"train": str(photo_shards)}), "--gpus=4", "--nodes=2")
    manifest = json.loads((photo_shards / "manifest.json").read_text())
    assert made["data"]["images"] == manifest["samples"] and made["data"]["source"] == "manifest"
    size = sum(shard["bytes"] for shard in manifest["shards"]) / manifest["samples"]
    assert made["data"]["bytes_of_node"] == pytest.approx(size * 1000 * 32 / 2)


def test_epochs_are_of_the_images_that_are_selected(write, capsys, photo_shards):
    """Of 24 images in three classes, a class is left out."""
    data = [f"--data.train={photo_shards}", "--steps=100", "--data.batch=8"]
    plan, _ = planned(capsys, write(), "--gpus=2", *data, "--data.select={cats: 4, dunes: 4}")
    assert (plan["data"]["images"], plan["data"]["epochs"]) == (8, 100)
    halves = [
        planned(capsys, write(), "--gpus=2", *data, f"--data.split=[{s}]")[0]["data"]["images"] for s in ("0.5,0.5", "0.9,0.1")
    ]
    assert 0 < halves[0] < halves[1] < 24


def test_another_batch_gets_the_rate_of_the_square_root_rule(write, capsys):
    made, text = planned(capsys, write(), "--gpus=4", "--data.batch=128", "--discriminator=none")
    assert made["learning_rate"] == {"stated": 1e-4, "batch_of_file": 32, "by_square_root": pytest.approx(2e-4)}
    assert "--optimizer.learning_rate=0.0002" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--gpus=8"], "sbatch --nodes=1 --gres=gpu:8 --cpus-per-task=24 --mem=0 launch/slurm/train.sbatch tiny.yaml"),
        (
            ["--gpus=16", "--backend=zero2", "--time_limit=1-12:30:00", "--data.workers=4", "--name=a b"],
            "SR_DIST_ACCELERATE=launch/accelerate/zero2.yaml sbatch --nodes=2 --gres=gpu:8 --cpus-per-task=40 --mem=0 "
            "--time=36:30:00 launch/slurm/train.sbatch tiny.yaml --data.workers=4 '--name=a b'",
        ),
    ],
)
def test_the_line_for_sbatch(write, capsys, words, line):
    made, text = planned(capsys, write(), *words)
    assert made["job"] == line and text.endswith(line)
    script = next(word for word in shlex.split(line) if word.endswith(".sbatch"))
    assert (Path(__file__).parents[2] / script).is_file()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--gpus=64"], "data.batch: 32 is less than ranks x accumulate = 64 x 1"),
        (["--gpus=16", "--nodes=3"], "nodes: 16 GPUs cannot be divided by 3 nodes"),
        (["--gpus=8", "--efficiency=0.3", "--images_per_second=9"], "efficiency: give it, or images_per_second"),
        (["--gpus=8", "--efficiency=30"], "efficiency: input should be less than or equal to 1"),
        (["--gpus=8", "--time_limit=soon"], "time_limit: 'soon' is no time"),
        (["--gpus=8", "--time_limit=-3h"], "time_limit: '-3h' must be above 0\n"),
        (["--gpus=8", "--time_limit=0"], "time_limit: '0' must be above 0\n"),
        (["--gpus=8", "--gpu=h101"], "gpu: "),
        (["--gpus=8", "--gpu=v100", "--precision=bf16"], "precision: bf16, which the v100 computes without"),
        (["--gpus=8", "--data.crop=none"], "data.crop: none; the cost of whole images"),
        (["--gpus=8", "--data.bach=4"], "data.bach: unknown key"),
        (["--gpus=8", "--time_limit=12:30"], "time_limit: '12:30' is no time"),  # minutes and seconds for SLURM
        ([], "gpus: this key is missing"),
    ],
)
def test_mistakes_are_one_line(write, capsys, words, text):
    assert command.main([write(), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {text}")


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("24h", 24),
        ("90m", 1.5),
        ("2d", 48),
        ("12", 12),
        ("1-12:00:00", 36),
        ("12:30:00", 12.5),
        ("1-12", 36),
        ("0.5h", 0.5),
        ("none", None),
    ],
)
def test_forms_of_a_time_limit(text, hours):
    assert command.hours_of(text) == hours


def test_the_figures_of_gpus_are_the_logs():
    for name, device in {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200", "a100-80": "NVIDIA A100-SXM4-80GB",
                         "l40s": "NVIDIA L40S", "rtx4090": "NVIDIA GeForce RTX 4090"}.items():  # fmt: skip
        for precision in ("no", "bf16"):
            for tf32 in (True, False):
                assert GPUS[name].peak(precision, tf32) == peak(device, precision, tf32)
    assert GPUS["v100"].peak("no", True) == 15.7 and not GPUS["v100"].bf16


def test_classifiers_are_planned_too(capsys):
    made, _ = planned(capsys, "classifier_digits", "--gpus=2", "--classifier.outputs=10")
    assert set(made["parameters"]) == {"classifier"}


def test_a_dry_run_ends_with_the_summary_as_comments(write, capsys, photo_shards):
    from sr_dist import train

    assert train.main([write(data={"train": str(photo_shards), "batch": 8}), "--data.validation=none", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["steps"] == 1000
    summary = out[out.index("# computed, not measured") :]
    assert "# " in summary and "generator 0.1 M parameters" in summary and "1 x h100 at 30 % of the peak" in summary


def test_a_network_without_repeated_blocks_has_no_pattern(write):
    assert plan.repeated_blocks(plan.checks.complete(data_checks.load_without_data(write(), {}))) == []


def test_memory_traffic_and_launches_bound_the_share_of_the_peak(write, capsys):
    made, text = planned(capsys, write(), "--gpus=4")
    traffic_seconds = made["bytes_per_step"] / 4 / 3350e9
    share = made["flops_per_step"] / 4 / traffic_seconds / 494e12
    assert made["bounds"]["traffic"] == pytest.approx({"seconds": traffic_seconds, "share_of_peak": share})
    assert made["bounds"]["launches"]["seconds"] == pytest.approx(made["launches_per_step"] * 5e-6)
    most = min(bound["share_of_peak"] for bound in made["bounds"].values())
    assert [row["share_of_peak"] for row in made["speed"]] == [most, 0.14, 0.3, 0.4] and text.count("at most, as it is") == 1
    assert most < 0.14 and [row["needs_compile"] for row in made["speed"]] == [
        False,
        True,
        True,
        True,
    ]  # SRCNN at 32 pixels is too little work for a GPU
    assert "Without compile at most" in text and text.count("only with compile") == 3
