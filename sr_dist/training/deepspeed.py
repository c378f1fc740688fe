"""One network with its optimizer under DeepSpeed's ZeRO 1, 2 or 3. The one file that uses private parts of DeepSpeed.

Accelerate reads the configuration and starts the process group. The engines are driven directly, because an Accelerator
drives only one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sr_dist.core import ranks, zero_options
from sr_dist.recipe.sections import Optimizer, Recipe
from sr_dist.training.buffers import Buffers, saved_buffers
from sr_dist.training.engine import EngineState
from sr_dist.training.optimizer_state import Groups, Value, build_optimizer, by_parameter, is_cut, named
from sr_dist.training.optimizer_trial import try_out


class DeepSpeedEngine:
    """Implements `engine.Engine`."""

    def __init__(self, accelerator: Accelerator, network: nn.Module, recipe: Recipe, phase: str) -> None:
        import deepspeed  # takes seconds

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Its calls of older names, dozens a step, each of which is printed: a pipe that nobody empties would stop the run.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        self.settings = recipe.optimizer_of(phase)
        self.bare = network.to(accelerator.device)
        self.buffers = Buffers(self.bare)  # first, because backends keep references to buffers
        zero = zero_options.stated()
        self.stage = zero.stage
        if phase == "discriminator" and recipe.zero.discriminator is not None:
            self.stage = recipe.zero.discriminator
        config = configuration(recipe, self.settings, self.stage, zero.offload, sum(p.numel() for p in self.bare.parameters()))
        zero.add_to(config)
        on_host = zero.offload is not None
        try_out(self.settings, self.bare, accelerator.device, zero=True, on_host=on_host)
        self.engine, *_ = deepspeed.initialize(
            model=self.bare,
            optimizer=build_optimizer(self.bare, self.settings, on_host=on_host),
            config=config,
            dist_init_required=False,
        )
        self._groups = Groups(self.engine.optimizer.optimizer)
        self.network = self.engine
        self.skipped = torch.zeros((), device=accelerator.device)
        self.skipped_total = torch.zeros((), device=accelerator.device)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """ZeRO-1 exchanges gradients at the last micro-batch only; ZeRO-2 and 3 must send partitioned gradients at each."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)  # the loss is scaled by its share of the batch already

    def step(self, learning_rate: float) -> Tensor:
        """DeepSpeed decides over all ranks whether the gradients are finite."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        overflow = bool(self.engine.optimizer.overflow)
        self.skipped = (self.skipped + 1) * float(overflow)
        self.skipped_total += float(overflow)
        self.buffers.settle(torch.full_like(self.skipped, float(overflow)))
        norm = self.engine.get_global_grad_norm()
        return torch.as_tensor(float("nan") if overflow or norm is None else float(norm))

    def size_of(self, parameter: nn.Parameter) -> int:
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def local_weights(self) -> list[Tensor]:
        return [p.ds_tensor for p in self._parameters()] if self.stage == 3 else list(self.bare.parameters())

    def without_padding(self, local: list[Tensor]) -> list[Tensor]:
        if self.stage < 3:
            return local
        sizes = [p.ds_numel - ranks.rank() * part.numel() for part, p in zip(local, self._parameters(), strict=True)]
        return [part.flatten()[: max(size, 0)] for part, size in zip(local, sizes, strict=True)]

    def whole(self, local: list[Tensor]) -> list[Tensor]:
        if self.stage < 3:
            return local
        return [_joined(partition, p.ds_shape) for partition, p in zip(local, self._parameters(), strict=True)]

    def _parameters(self) -> list[Any]:
        """Parameters with the attributes that DeepSpeed adds: ds_tensor, ds_shape, set_full_hp_param."""
        return list(self.bare.parameters())

    def _named_parameters(self) -> list[tuple[str, Any]]:
        return list(self.bare.named_parameters())

    def state(self) -> EngineState:
        names = [name for name, _ in self.bare.named_parameters()]
        weights = dict(zip(names, self.whole(self.local_weights()), strict=True)) | saved_buffers(self.bare)
        return {"weights": weights, "optimizer": self._optimizer_state() | self._groups.changed()}

    def load(self, state: EngineState) -> None:
        self.load_weights(state["weights"])
        self._load_optimizer_state(by_parameter(state["optimizer"]))
        self._groups.load(state["optimizer"])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        for name, buffer in saved_buffers(self.bare).items():
            buffer.copy_(weights[name])
        self.buffers.remember()
        for name, parameter in self._named_parameters():
            value = weights[name].to(parameter.device)
            if self.stage < 3:
                parameter.data.copy_(value)
                continue
            partition = _partition(value, parameter.ds_tensor)
            parameter.ds_tensor.data.copy_(partition)
            if parameter.numel() == value.numel():  # small parameters stay whole on every rank
                parameter.data.copy_(value)
            if parameter.requires_grad:
                self.engine.optimizer.set_local_hp_param(partition, parameter)
        if self.stage < 3:
            self.engine.optimizer.refresh_fp32_params()

    def _optimizer_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state  # importing deepspeed takes seconds

        optimizer = self.engine.optimizer
        slots = {slot: value for slot, value in optimizer.optimizer.state.get(self._flat()[0], {}).items() if value is not None}
        state: dict[str, Tensor] = {}
        for name, parameter in self._named_parameters():
            for slot, value in slots.items() if parameter.requires_grad else ():
                if not is_cut(value):
                    copied = value.clone() if isinstance(value, Tensor) else value
                    state |= named(f"{name}/{slot}", copied, optimizer.optimizer)
                elif self.stage == 3:
                    partition = optimizer.get_local_fp32_param(parameter, slot)
                    state[f"{name}/{slot}"] = _joined(partition, parameter.ds_shape)
                else:
                    state[f"{name}/{slot}"] = safe_get_full_optimizer_state(parameter, slot)
        return state

    def _load_optimizer_state(self, state: dict[str, dict[str, Value]]) -> None:
        own = {name: state[name] for name, _ in self._named_parameters() if name in state}
        if not own:
            return
        optimizer = self.engine.optimizer
        slots = {slot: value for values in own.values() for slot, value in values.items()}
        for flat in self._flat():  # the optimizer has no state of its own yet
            optimizer.optimizer.state[flat] = {slot: _begun(value, flat) for slot, value in slots.items()}
        if self.stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._named_parameters():
            for slot, value in own.get(name, {}).items():
                if not is_cut(value):
                    continue
                if self.stage < 3:
                    parameter.set_full_hp_param(value.to(parameter.device), slot)
                else:
                    partition = _partition(value.to(parameter.ds_tensor.device), parameter.ds_tensor)
                    optimizer.set_local_hp_param(partition, parameter, slot)

    def _flat(self) -> list[Tensor]:
        """This rank's flat fp32 masters."""
        optimizer = self.engine.optimizer
        return optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups

    def scaler_state(self) -> dict[str, Any]:
        return {}

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Without a gradient scaler: fp16 is refused under ZeRO."""


def configuration(recipe: Recipe, settings: Optimizer, stage: int, offload: dict[str, Any] | None, size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe. Master weights are always fp32; bf16 is autocast, as without DeepSpeed.

    `size` is the number of parameters: DeepSpeed's own buckets hold 500 million, gigabytes more than our networks need.
    """
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": torch.cuda.is_available() and stage >= 2}
    zero["reduce_bucket_size"] = -(-size // 4)  # several buckets, so that their exchange overlaps the backward pass
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = recipe.zero.persistence_threshold
    if offload:
        zero["offload_optimizer"] = offload
    return {
        "train_micro_batch_size_per_gpu": 1,  # unused: the loop forms batches
        "gradient_accumulation_steps": 1,  # unused: the loop names the last micro-batch
        "gradient_clipping": settings.clip or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Without modules whose gradients (and, under ZeRO-3, weights) may travel in bf16: DDP reduces in fp32.
        "torch_autocast": {"enabled": recipe.precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": None,
    }


def _begun(value: Value, flat: Tensor) -> Value:
    """The place of a value beside a rank's masters: zeros, which parts are copied into, or the number itself."""
    if is_cut(value):
        return torch.zeros_like(flat)
    return value.clone() if isinstance(value, Tensor) else value


def _partition(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's partition of a parameter, padded at the end as ZeRO-3 does."""
    flat = whole.flatten()
    padded = torch.nn.functional.pad(flat, (0, like.numel() * ranks.size() - flat.numel()))
    return padded.narrow(0, ranks.rank() * like.numel(), like.numel())


def _joined(partition: Tensor, shape: torch.Size) -> Tensor:
    """All ranks' partitions as the whole parameter. All ranks must call."""
    return ranks.all_gather_flat(partition.flatten())[: shape.numel()].view(shape)
