"""The parts of `prove` that need no launch: made images, distances, rates, refusals, and what a log says of a failure."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from shards import verify
from sr_dist.data.format import attribute_values, open_shards
from sr_dist.tools import made_data, prove, prove_results


def test_made_shards_are_whole_and_the_same_again(tmp_path, capsys):
    folders = [made_data.make_shards(tmp_path / name, 12, 40, ["Hat", "Smile"]) for name in "ab"]
    assert verify.main([str(folders[0]), "--deep"]) == 0, capsys.readouterr().out
    shards = open_shards(str(folders[0]))
    assert (shards.manifest.samples, shards.manifest.min_side, shards.manifest.classes) == (12, 40, ("a", "b", "c"))
    answers = attribute_values(shards.index(0)["attributes"], 2)
    assert set(answers[:, 0]) == set(answers[:, 1]) == {0, 1} and (answers[:, 0] != answers[:, 1]).any()
    assert [shards.index(0)["class"][i] for i in range(4)] == [0, 1, 2, 0]
    assert open_shards(str(folders[1])).manifest.digest == shards.manifest.digest


def tensors(**values):
    return {f"generator.{name}": torch.tensor(value) for name, value in values.items()}


def test_a_distance_is_relative_to_the_tensors_own_move():
    start = tensors(a=[0.0, 0.0], b=[0.0], count=0)
    expected = tensors(a=[1.0, 2.0], b=[0.5], count=4)
    assert prove_results.relative_distance(tensors(a=[1.0, 2.0], b=[0.501], count=4), expected, start) == (
        pytest.approx(0.001 / 0.5, rel=1e-3), "generator.b",
    )  # fmt: skip
    assert prove_results.relative_distance(expected, expected, start)[0] == 0


def test_a_tensor_that_hardly_moves_is_compared_with_a_share_of_the_furthest_move():
    start, expected = tensors(a=[0.0], b=[0.0]), tensors(a=[1.0], b=[1e-9])
    share, name = prove_results.relative_distance(tensors(a=[1.0], b=[3e-9]), expected, start)
    assert name == "generator.b" and share == pytest.approx(2e-9 / prove_results.LEAST, rel=1e-3)


def test_counts_must_be_equal_and_nothing_hides_what_is_not_a_number():
    start, expected = tensors(a=[0.0], count=0), tensors(a=[1.0], count=4)
    assert prove_results.relative_distance(tensors(a=[1.0], count=5), expected, start) == (1.0, "generator.count")
    assert math.isnan(prove_results.relative_distance(tensors(a=[math.nan], count=5), expected, start)[0])
    row = prove.verdict(prove.Row("x", prove.EQUAL, math.nan, 0.0), 1e-4)
    assert row.verdict == prove.UNEQUAL


def run_folder(folder, weights, rows):
    checkpoint = folder / "checkpoints" / "0000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    save_file({"w": torch.tensor(weights)}, checkpoint / "generator.safetensors")
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"images_per_second": 1, **row}) + "\n" for row in rows))
    return folder


def test_the_rate_moves_weights_by_a_hundredth(tmp_path):
    """|w| = 5, |g| = 2: a step of 0.025 moves by 0.05."""
    folder = run_folder(tmp_path, [3.0, 4.0], [{"grad_norm/generator": 2.0}])
    assert prove_results.rates(folder) == {"optimizer": "{name: sgd, learning_rate: 2.500000e-02}"}


def test_losses_differ_relative_to_the_largest_value_of_their_term(tmp_path):
    one = run_folder(tmp_path / "one", [0.0], [{"loss/l1": 4.0, "loss/r1": 1e-3}, {"loss/l1": 1.0}])
    two = run_folder(tmp_path / "two", [0.0], [{"loss/l1": 4.0, "loss/r1": 1e-3}, {"loss/l1": 1.1}])
    assert prove_results.loss_difference(two, one) == pytest.approx(0.1 / 4)
    assert prove_results.loss_difference(one, one) == 0


def test_a_failure_is_told_in_its_own_words():
    lines = [
        "INFO",
        "[rank0]: Traceback (most recent call last):",
        "[rank0]:   File x",
        "[rank0]: RuntimeError: unused",
        "Traceback",
    ]
    log = "\n".join([*lines, "  a", "Other"])
    assert prove.problem_in(log) == "RuntimeError: unused"
    assert prove.problem_in("a\nerror: data.crop: 7\nTraceback (most\n  x\nE") == "error: data.crop: 7"
    assert prove.problem_in("all is well") is None


@pytest.mark.parametrize(
    ("recipe", "backend", "reason"),
    [
        ("r3gan_x4", "zero1", "its double backward does not run under ZeRO"),
        ("realesrgan_x4", "zero3", "spectral norm does not run under ZeRO-3"),
        ("demo", "zero3", None),
        ("r3gan_x4", "ddp", None),
    ],
)
def test_backends_that_refuse_a_recipe_are_named_without_a_launch(recipe, backend, reason, tmp_path):
    from sr_dist.data import data_checks
    from sr_dist.recipe import checks

    request = prove.Request(recipe, {}, (backend,), 2, 1e-4, tmp_path)
    complete = checks.complete(data_checks.load(recipe, prove.without_files(request, prove.options_of(request))))
    answer = prove.refusal(complete, backend, 2)
    assert reason in answer if reason else answer is None


def test_a_recipe_becomes_small_and_needs_no_files(tmp_path):
    request = prove.Request("esrgan_x4", {"generator.num_blocks": "1"}, ("ddp",), 2, 1e-4, tmp_path)
    options = prove.without_files(request, prove.options_of(request))
    assert (options["data.crop"], options["discriminator.crop"], options["data.batch"]) == ("32", "32", "7")
    assert options["init.generator"] == "none" and "random" in options["objective.content"]
    assert "batch_mean" in prove.refusal_of_accumulation(request, options)
    own = prove.options_of(prove.Request("esrgan_x4", {"data.crop": "64"}, ("ddp",), 3, 1e-4, tmp_path))
    assert (own["data.crop"], own["discriminator.crop"], own["data.batch"]) == ("64", "64", "11")


def test_mistakes_in_the_command_are_one_line(run_commands, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    cases = [
        (["demo", "--backends=zero4"], "backends: no backend 'zero4'"),
        (["demo", f"--out={tmp_path}/full"], "is not empty"),
        (["demo", "--accumulate=2"], "accumulate: prove sets it itself"),
        (["demo", "--ranks=1"], "ranks"),
        (["demmo"], "did you mean 'demo'"),
        (["demo", "--generator.widht=3"], "generator.widht: unknown key"),
        (["demo", "--data.batch=3"], "data.batch: 3 is less than"),
    ]
    for (words, message), answer in zip(cases, run_commands([("sr_dist.prove", words) for words, _ in cases]), strict=True):
        assert answer.code == 2 and answer.err.startswith("error: ") and message in answer.err, (words, answer)
        assert answer.err.count("\n") == 1
