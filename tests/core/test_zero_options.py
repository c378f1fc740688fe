"""What a user's own DeepSpeed file says is taken over or refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import processes
import pytest

from sr_dist.core import zero_options
from sr_dist.core.errors import UserError

ENGINE = Path(__file__).parents[1] / "training" / "zero_engine.py"


@pytest.fixture
def stated(tmp_path, monkeypatch):
    def read(**options):
        file = tmp_path / "deepspeed.json"
        file.write_text(json.dumps(options))
        monkeypatch.setenv(zero_options.FILE, str(file))
        return zero_options.stated()

    return read


def test_options_of_zero_are_taken_over(stated):
    zero = {"stage": 1, "reduce_bucket_size": 1000, "overlap_comm": False, "allgather_bucket_size": "auto"}
    options = stated(zero_optimization=zero, wall_clock_breakdown=True, steps_per_print=10)
    config = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 26}}
    options.add_to(config)
    assert (options.stage, options.offload) == (1, None)
    assert config == {
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000, "overlap_comm": False},
        "wall_clock_breakdown": True,
    }


def test_the_optimizer_may_be_kept_in_the_hosts_memory(stated):
    assert stated(zero_optimization={"offload_optimizer": {"device": "cpu", "pin_memory": True}}).offload == {
        "device": "cpu", "pin_memory": True,
    }  # fmt: skip
    assert stated(zero_optimization={"offload_optimizer": {"device": "none"}}).offload is None


def test_what_transformers_examples_leave_to_the_trainer_is_accepted(stated):
    """Sections that are switched off or `auto` say nothing."""
    fp16 = {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16}
    nothing = {"fp16": fp16, "bf16": {"enabled": False}, "gradient_clipping": "auto", "train_batch_size": "auto"}
    assert stated(zero_optimization={"stage": 3}, gradient_accumulation_steps=1, **nothing).stage == 3


def test_offloading_to_no_device_says_nothing(stated):
    none = {"device": "none", "pin_memory": True, "nvme_path": "/local"}
    options = stated(zero_optimization={"stage": 3, "offload_param": none, "offload_optimizer": {"device": None, **none}})
    assert options == zero_options.Stated(3, None, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping: remove it; it is the recipe's to say, with optimizer.clip"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: remove it; .* with accumulate"),
        ({"bf16": {"enabled": True}}, "bf16.enabled: .* with precision"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "optimizer.type: .* with optimizer"),
        ({"zero_optimization": {"stage3_param_persistence_threshold": 10}}, "with zero.persistence_threshold"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "zero_optimization.offload_param.device: .* not used"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "memory of the cpu, not of 'nvme'"),
        ({"zero_optimization": {"reduce_bucket": 10}}, "did you mean 'zero_optimization.reduce_bucket_size'"),
        ({"zero_optimization": {"stage": 4}}, "'4' is no stage of ZeRO"),
        (
            {"zero_optimization": {"zero_quantized_gradients": True}},
            "zero_quantized_gradients: .* is not used",
        ),
        ({"sparse_attention": {"mode": "fixed"}}, "sparse_attention.mode: this option of DeepSpeed is not used"),
        ({"zero_optimization": 2}, "no section zero_optimization"),
    ],
)
def test_what_would_be_dropped_is_refused(stated, options, message):
    with pytest.raises(UserError, match=message):
        stated(**{"zero_optimization": {"stage": 2}, **options})


def test_accelerates_own_variables_that_say_nothing_new_are_not_passed(monkeypatch):
    """As under launch/accelerate/zero2_offload.yaml."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    assert zero_options.stated() == zero_options.Stated(2, {"device": "cpu"}, {})


def test_accelerates_own_variables_are_checked_too(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "0.5")
    with pytest.raises(UserError, match=r"^ACCELERATE_GRADIENT_CLIPPING: remove it; .* optimizer.clip"):
        zero_options.stated()


def test_a_file_that_is_none(tmp_path, monkeypatch):
    (tmp_path / "broken.json").write_text("{")
    for file in ("missing.json", "broken.json"):
        monkeypatch.setenv(zero_options.FILE, str(tmp_path / file))
        with pytest.raises(UserError, match=f"{file} is not readable as JSON"):
            zero_options.stated()


def test_deepspeed_gets_them(tmp_path):
    """A real engine: stage, size of the bucket, contiguous gradients and timing are those of the file."""
    pytest.importorskip("deepspeed")
    zero = {"stage": 1, "reduce_bucket_size": 12345, "contiguous_gradients": False}
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": zero, "wall_clock_breakdown": True, "train_batch_size": "auto"}))
    line = [sys.executable, str(ENGINE), str(processes.DEMO)]
    with processes.reserved_port() as reserved:
        launcher = processes.rank_variables(0, 1, reserved.getsockname()[1])
        del launcher["ACCELERATE_USE_CPU"]  # which would leave DeepSpeed out
        launcher |= {"ACCELERATE_USE_DEEPSPEED": "true", zero_options.FILE: str(file), "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            line, env=processes.environment(**launcher), capture_output=True, text=True, timeout=processes.LONGEST
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 12345, False, True]
