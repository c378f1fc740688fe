"""Checks the private names of DeepSpeed that training/deepspeed.py uses, with one CPU engine per check, all in this process.

deepspeed_engines.py PORT       prints a line of JSON: {"STAGE NAME": "" or the traceback of the check}
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Engine = Any
RATE = 0.1
INPUTS = torch.tensor([[1.0, 2.0, 3.0]])
SIZE = 26  # parameters of the network
STATE = {"exp_avg": 0.5, "exp_avg_sq": 2.0, "step": 10.0}  # of a resumed run


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def start_engine(stage: int) -> Engine:
    """As training/deepspeed.py starts it; with a threshold of 0, stage 3 partitions even these small parameters."""
    import deepspeed  # takes seconds

    model = network()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # the default clips
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "zero_optimization": {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})},
    }
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def backward(engine: Engine, share: float, last: bool = True) -> None:
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(share * engine(INPUTS).square().sum(), scale_wrt_gas=False)


def parameters(engine: Engine) -> list[Any]:
    return list(engine.module.parameters())


def flat_masters(engine: Engine, stage: int) -> list[Tensor]:
    return engine.optimizer.fp32_partitioned_groups_flat if stage == 3 else engine.optimizer.single_partition_of_fp32_groups


def masters(engine: Engine, stage: int) -> Tensor:
    """The fp32 weights of all parameters in one row. ZeRO pads the end of its flat tensors."""
    return torch.cat([flat.detach().flatten() for flat in flat_masters(engine, stage)])[:SIZE]


def plain_adam(state: dict[str, float] | None = None, shares: tuple[float, ...] = (1.0,)) -> tuple[Tensor, Tensor]:
    """The weights after one step without DeepSpeed, in one row, and the norm of the gradients."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for parameter in model.parameters() if state else ():
        optimizer.state[parameter] = {
            name: torch.tensor(value) if name == "step" else torch.full_like(parameter, value) for name, value in state.items()
        }
    for share in shares:
        (share * model(INPUTS).square().sum()).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), norm


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.float().flatten(), expected.float().flatten())


def scale_wrt_gas_and_set_gradient_accumulation_boundary(stage: int) -> None:
    """Micro-batches add up, each with its own share, and the step comes after the last."""
    engine = start_engine(stage)
    backward(engine, 0.25, last=False)
    backward(engine, 0.5)
    engine.step()
    weights, norm = plain_adam(shares=(0.25, 0.5))
    same(masters(engine, stage), weights)
    same(torch.tensor(float(engine.get_global_grad_norm())), norm)  # Adam's first step does not depend on the scale


def get_global_grad_norm(stage: int) -> None:
    engine = start_engine(stage)
    backward(engine, 1.0)
    engine.step()
    same(torch.tensor(float(engine.get_global_grad_norm())), plain_adam()[1])


def optimizer_overflow(stage: int) -> None:
    """Set where a gradient is not finite; that update is skipped."""
    engine = start_engine(stage)
    backward(engine, 1.0)
    engine.step()
    assert not bool(engine.optimizer.overflow)
    before = masters(engine, stage).clone()
    backward(engine, float("inf"))
    engine.step()
    assert bool(engine.optimizer.overflow)
    same(masters(engine, stage), before)


def optimizer_param_groups(stage: int) -> None:
    """The learning rate of a step is that of its `param_groups`."""
    engine = start_engine(stage)
    before = masters(engine, stage).clone()
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    backward(engine, 1.0)
    engine.step()
    same(masters(engine, stage), before)


def optimizer_state_by_flat_master(stage: int) -> None:
    """`optimizer.optimizer.state` has the flat fp32 masters as keys."""
    engine = start_engine(stage)
    assert not engine.optimizer.optimizer.state.get(flat_masters(engine, stage)[0])
    backward(engine, 1.0)
    engine.step()
    flat = flat_masters(engine, stage)[0]
    state = engine.optimizer.optimizer.state[flat]
    assert flat.dtype == torch.float32 and {"exp_avg", "exp_avg_sq", "step"} <= set(state)
    assert state["exp_avg"].shape == flat.shape and float(state["step"]) == 1


def load_state(engine: Engine, stage: int) -> None:
    """Gives the optimizer flat states of zeros and the step, as training/deepspeed.py does before it fills them."""
    for flat in flat_masters(engine, stage):
        engine.optimizer.optimizer.state[flat] = {
            name: torch.tensor(value) if name == "step" else torch.zeros_like(flat) for name, value in STATE.items()
        }


def set_full_hp_param_and_lazy_init(stage: int) -> None:
    """`_lazy_init_hp_params_optimizer_state` links parameters with the flat states, `set_full_hp_param` writes to them, and
    `safe_get_full_optimizer_state` reads them. The next step uses them."""
    from deepspeed.utils import safe_get_full_optimizer_state  # importing deepspeed takes seconds

    engine = start_engine(stage)
    load_state(engine, stage)
    engine.optimizer._lazy_init_hp_params_optimizer_state()
    for parameter in parameters(engine):
        for name in ("exp_avg", "exp_avg_sq"):
            parameter.set_full_hp_param(torch.full_like(parameter, STATE[name]), name)
            same(safe_get_full_optimizer_state(parameter, name), torch.full_like(parameter, STATE[name]))
    backward(engine, 1.0)
    engine.step()
    same(masters(engine, stage), plain_adam(STATE)[0])


def refresh_fp32_params(stage: int) -> None:
    """Copies the weights of the network to the masters, so that a step does not undo what was loaded."""
    engine = start_engine(stage)
    with torch.no_grad():
        for parameter in parameters(engine):
            parameter.data.fill_(0.25)
    engine.optimizer.refresh_fp32_params()
    same(masters(engine, stage), torch.full((SIZE,), 0.25))


def set_and_get_local_hp_param(stage: int) -> None:
    """Write and read the partition of this rank: of the masters without a name, of the state with one."""
    engine = start_engine(stage)
    load_state(engine, stage)
    for parameter in parameters(engine):
        for name in ("exp_avg", "exp_avg_sq"):
            value = torch.full_like(parameter.ds_tensor, STATE[name])
            engine.optimizer.set_local_hp_param(value, parameter, name)
            same(engine.optimizer.get_local_fp32_param(parameter, name), value)
    backward(engine, 1.0)
    engine.step()
    same(masters(engine, stage), plain_adam(STATE)[0])
    engine.optimizer.set_local_hp_param(torch.full_like(parameters(engine)[0].ds_tensor, 0.25), parameters(engine)[0])
    same(masters(engine, stage)[:12], torch.full((12,), 0.25))


def ds_tensor_and_ds_shape(stage: int) -> None:
    """The partition of this rank, which is all of a parameter on one rank, and the shape of the whole parameter."""
    engine = start_engine(stage)
    for parameter, plain in zip(parameters(engine), network().parameters(), strict=True):
        assert parameter.ds_shape == plain.shape
        assert parameter.numel() == 0, "the whole parameter exists only while it is used"
        same(parameter.ds_tensor[: plain.numel()], plain)


EVERY_STAGE: tuple[Callable[[int], None], ...] = (
    scale_wrt_gas_and_set_gradient_accumulation_boundary,
    get_global_grad_norm,
    optimizer_overflow,
    optimizer_param_groups,
    optimizer_state_by_flat_master,
)


def parameter_ds_numel(stage: int) -> None:
    """The size of a whole parameter, of which a rank keeps only a partition."""
    own = parameters(start_engine(stage))
    assert sum(parameter.ds_numel for parameter in own) == SIZE and not sum(parameter.numel() for parameter in own)


CHECKS: dict[int, tuple[Callable[[int], None], ...]] = {
    1: (*EVERY_STAGE, set_full_hp_param_and_lazy_init, refresh_fp32_params),
    2: (*EVERY_STAGE, set_full_hp_param_and_lazy_init, refresh_fp32_params),
    3: (*EVERY_STAGE, set_and_get_local_hp_param, ds_tensor_and_ds_shape, parameter_ds_numel),
}


def main(port: str) -> None:
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo")
    results = {}
    for stage, checks in CHECKS.items():
        for check in checks:
            try:
                check(stage)
                results[f"{stage} {check.__name__}"] = ""
            except Exception:
                results[f"{stage} {check.__name__}"] = traceback.format_exc()
    print(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
