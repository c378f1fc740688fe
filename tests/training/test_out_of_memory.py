"""A full GPU: the error names what fills the memory and the key to change."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sr_dist.core import launch_env
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.tools import memory_advice
from sr_dist.training import out_of_memory as out_of_memory_module
from sr_dist.training import train as training
from sr_dist.training.out_of_memory import OutOfMemory
from sr_dist.training.watchdog import Watchdog

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free."


class Full(torch.nn.Module):
    """A generator that fills the memory in its third forward pass."""

    def __init__(self, error) -> None:
        super().__init__()
        self.error, self.weight, self.calls = error, torch.nn.Parameter(torch.ones(1)), 0

    def forward(self, lr):
        self.calls += self.training
        if self.calls > 2:
            raise self.error
        return torch.nn.functional.interpolate(lr * self.weight, scale_factor=2)


def recipe_of(write_recipe, generator=None, **changes):
    options = {"generator": generator} if generator else {}
    return checks.complete(data_checks.load(write_recipe(**changes), options))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(FULL),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_the_error_names_the_largest_users_and_what_to_change(error, write_recipe, monkeypatch):
    recipe = recipe_of(write_recipe, name="full")
    estimates = training.Estimates(memory=memory_advice.largest_users)
    text = memory_advice.largest_users(recipe, 1)
    monkeypatch.setattr("sr_dist.training.build.phase_network", lambda *_: Full(error))
    with pytest.raises(OutOfMemory) as raised:
        training.train(recipe, estimates)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"out of memory in step 3: {error}"
    assert lines[1:] == text.splitlines()
    assert lines[1] == "largest users of a rank's memory (estimated):" and len(lines) == 6
    assert f"OutOfMemory: {lines[0]}" in (recipe.folder / "log.txt").read_text()
    assert (recipe.folder / "checkpoints" / "0000002").is_dir()  # what was saved stays


def test_memory_that_is_full_before_the_first_step_is_told_alike(write_recipe, monkeypatch):
    recipe = recipe_of(write_recipe, name="full")

    def fills(*_):
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr("sr_dist.training.build.phase_network", fills)
    with pytest.raises(OutOfMemory) as raised:
        training.train(recipe, training.Estimates(memory=memory_advice.largest_users))
    expected = ["out of memory before the first step: " + FULL, *memory_advice.largest_users(recipe, 1).splitlines()]
    assert str(raised.value).splitlines() == expected
    assert not recipe.folder.exists()


def test_an_error_of_any_length_is_a_line_of_the_log(write_recipe, monkeypatch):
    """As a compiler's, which has its whole input."""
    recipe = recipe_of(write_recipe, name="long")
    monkeypatch.setattr("sr_dist.training.build.phase_network", lambda *_: Full(RuntimeError("begin " + "x" * 100_000 + " end")))
    with pytest.raises(RuntimeError, match="begin"):
        training.train(recipe)
    line = (recipe.folder / "log.txt").read_text().splitlines()[-1]
    assert "failed after step 2: RuntimeError: begin x" in line and line.endswith("x end") and len(line) < 5000


def amounts(text: str) -> list[float]:
    return [float(line.split()[0].replace(",", "")) for line in text.splitlines() if " MiB  " in line]


def test_advice_costs_least_first(write_recipe):
    """Smaller micro-batches, then recomputed activations, then bf16. With batch normalization the first changes results."""
    small = {"generator": "{name: rrdb, num_blocks: 2, width: 8, growth: 4}", "data": {"crop": 32, "batch": 8}}
    text = memory_advice.largest_users(recipe_of(write_recipe, **small), 1)
    assert amounts(text) == sorted(amounts(text), reverse=True) and len(amounts(text)) == 3
    assert "activations of 8 x 32 x 32 pixels" in text.splitlines()[1]
    assert "least costly: --accumulate=2: about" in text and "the result stays the same" in text
    one_image = memory_advice.largest_users(recipe_of(write_recipe, **small, accumulate=8), 1)
    assert "least costly: --checkpointing=body.*: about" in one_image
    recomputed = recipe_of(write_recipe, **small, accumulate=8, checkpointing=["body.*"])
    assert "least costly: --precision=bf16: about" in memory_advice.largest_users(recomputed, 1)
    last = recomputed.model_copy(update={"precision": "bf16"})
    assert "least costly: a smaller --data.batch or --data.crop" in memory_advice.largest_users(last, 1)
    normed = {**small, "generator": "{name: srresnet, num_blocks: 2, width: 8}"}
    assert "--checkpointing=" in memory_advice.largest_users(recipe_of(write_recipe, **normed), 1)


def test_states_that_fill_the_memory_are_divided_by_zero(write_recipe):
    large = {"generator": "{name: srcnn, widths: [1024, 64]}", "data": {"crop": 8, "batch": 2}}
    text = memory_advice.largest_users(recipe_of(write_recipe, **large), 2)
    assert "states of the optimizers" in text.splitlines()[1] and "zero2.yaml" in text.splitlines()[-1]


def test_a_gpu_leaves_a_snapshot_and_failures_hide_nothing(tmp_path, monkeypatch):
    recipe = SimpleNamespace(folder=tmp_path)
    run = SimpleNamespace(step=4, recipe=recipe, device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: open(path, "wb").close())

    def fails(recipe, ranks):
        raise RuntimeError("no estimate")

    problem = out_of_memory_module.out_of_memory(run, torch.OutOfMemoryError(FULL), fails)
    assert str(problem).splitlines() == [
        f"out of memory in step 5: {FULL}",
        f"its blocks: {tmp_path / 'oom-rank-000.pickle'}; open it in https://pytorch.org/memory_viz",
    ]
    assert (tmp_path / "oom-rank-000.pickle").exists()


RECORDER = ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
LATER_NAMES = ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE")


@pytest.fixture
def recorder(monkeypatch):
    """The variables of the flight recorder, of which none is set yet."""
    for name in (*RECORDER, *LATER_NAMES):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(launch_env, "_own_values", {})
    return launch_env.os.environ


def test_the_flight_recorder_writes_into_the_run_folder(tmp_path, monkeypatch, recorder):
    monkeypatch.setenv(RECORDER[0], "50")
    monkeypatch.chdir(tmp_path)
    launch_env.record_collectives(tmp_path / "runs" / "a")
    values = [recorder[name] for name in RECORDER]
    assert values == ["50", "1", str(tmp_path / "runs" / "a" / "nccl-rank-")]


def test_the_flight_recorder_follows_the_runs_of_a_process(tmp_path, recorder):
    """The second run's records went into the first one's folder."""
    for name in ("a", "b"):
        launch_env.record_collectives(tmp_path / name)
    assert recorder[RECORDER[2]] == str(tmp_path / "b" / "nccl-rank-")
    recorder[RECORDER[2]] = "/own/file"
    launch_env.record_collectives(tmp_path / "c")
    assert recorder[RECORDER[2]] == "/own/file"


def test_a_users_setting_of_the_flight_recorder_stays_under_either_name(tmp_path, monkeypatch, recorder):
    """torch reads the later name first, and warns about the earlier one."""
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "0")
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", "/own/file")
    launch_env.record_collectives(tmp_path)
    assert RECORDER[0] not in recorder and RECORDER[2] not in recorder
    assert (recorder["TORCH_FR_BUFFER_SIZE"], recorder["TORCH_FR_DUMP_TEMP_FILE"]) == ("0", "/own/file")


def test_a_rank_that_hangs_names_the_dumps_of_its_collectives(tmp_path, capsys):
    (tmp_path / "nccl-rank-0").touch()
    watchdog = Watchdog(tmp_path, 1, None)
    watchdog.timeout = 60.0
    watchdog._say_who()
    assert f"the last collectives of NCCL: {tmp_path / 'nccl-rank-0'} (read them with torchfrtrace)" in capsys.readouterr().err
