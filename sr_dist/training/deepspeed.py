"""One network with its optimizer under DeepSpeed's ZeRO 1, 2 or 3.

Accelerate reads the configuration and starts the process group; the engines are driven directly, because an Accelerator
drives only one. What is saved has the layout of the other backend: whole tensors by parameter name, so a run may change
its backend and its number of ranks when it resumes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sr_dist.core import ranks
from sr_dist.recipe.sections import Optimizer, Recipe
from sr_dist.training.optimizer_state import build_optimizer


class Engine:
    """The same methods as `backends/ddp.py`'s."""

    def __init__(self, accelerator: Accelerator, network: nn.Module, recipe: Recipe, phase: str) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.settings: Optimizer = recipe.optimizer_of(phase)
        self.bare = network.to(accelerator.device)
        plugin = accelerator.state.deepspeed_plugin
        assert plugin is not None
        self.stage = int(plugin.zero_stage)
        if phase == "discriminator" and recipe.zero.discriminator is not None:
            self.stage = recipe.zero.discriminator
        offload = plugin.deepspeed_config["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu"
        self.engine, *_ = deepspeed.initialize(
            model=self.bare,
            optimizer=build_optimizer(self.bare, self.settings, on_host=offload),
            config=configuration(recipe, self.settings, self.stage, offload, sum(p.numel() for p in self.bare.parameters())),
            dist_init_required=False,
        )
        self.network = self.engine
        self.skipped = torch.zeros(())
        self.skipped_in_all = torch.zeros(())

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch. ZeRO-1 talks to the other ranks at the last one only; the
        partitioned gradients of ZeRO-2 and 3 have to be sent as they come."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)  # the loss has its share of the batch already

    def step(self, learning_rate: float) -> Tensor:
        """Updates the network unless its gradients are not finite, which DeepSpeed decides over all ranks."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        overflow = bool(self.engine.optimizer.overflow)
        self.skipped = (self.skipped + 1) * float(overflow)
        self.skipped_in_all += float(overflow)
        norm = self.engine.get_global_grad_norm()
        return torch.as_tensor(float("nan") if overflow or norm is None else float(norm))

    def held(self) -> list[Tensor]:
        """The weights that this rank keeps between steps: under ZeRO-3 its partition of each parameter."""
        parameters = list(self.bare.parameters())
        return [p.ds_tensor for p in parameters] if self.stage == 3 else parameters

    def whole(self, held: list[Tensor]) -> list[Tensor]:
        """Tensors like `held()` as whole parameters. All ranks must call."""
        if self.stage < 3:
            return held
        return [_joined(part, p.ds_shape) for part, p in zip(held, self.bare.parameters(), strict=True)]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All ranks must call."""
        names = [name for name, _ in self.bare.named_parameters()]
        weights = dict(zip(names, self.whole(self.held()), strict=True)) | dict(self.bare.named_buffers())
        return {"weights": weights, "optimizer": self._slots()}

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """All ranks must call."""
        self.load_weights(state["weights"])
        self._load_slots(state["optimizer"])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        for name, buffer in self.bare.named_buffers():
            buffer.copy_(weights[name])
        for name, parameter in self.bare.named_parameters():
            value = weights[name].to(parameter.device)
            if self.stage < 3:
                parameter.data.copy_(value)
                continue
            part = _part(value, parameter.ds_tensor)
            parameter.ds_tensor.data.copy_(part)
            if parameter.numel() == value.numel():  # small parameters stay whole on every rank
                parameter.data.copy_(value)
            if parameter.requires_grad:
                self.engine.optimizer.set_local_hp_param(part, parameter)
        if self.stage < 3:
            self.engine.optimizer.refresh_fp32_params()

    def _slots(self) -> dict[str, Tensor]:
        """The optimizer's state, whole, by parameter name."""
        from deepspeed.utils import safe_get_full_optimizer_state

        flat = self._flat_state()
        found: dict[str, Tensor] = {}
        for name, parameter in self.bare.named_parameters():
            if not parameter.requires_grad or not flat:
                continue
            for slot, value in flat.items():
                if slot == "step":
                    found[f"{name}/step"] = value.clone()
                elif self.stage == 3:
                    part = self.engine.optimizer.get_local_fp32_param(parameter, slot)
                    found[f"{name}/{slot}"] = _joined(part, parameter.ds_shape)
                else:
                    found[f"{name}/{slot}"] = safe_get_full_optimizer_state(parameter, slot)
        return found

    def _load_slots(self, state: dict[str, Tensor]) -> None:
        if not state:
            return
        optimizer = self.engine.optimizer
        slots = {key.rsplit("/", 1)[1]: value for key, value in state.items()}
        for flat in self._flat():  # the optimizer has made no state of its own yet
            optimizer.optimizer.state[flat] = {
                slot: value.clone() if slot == "step" else torch.zeros_like(flat) for slot, value in slots.items()
            }
        if self.stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.bare.named_parameters():
            for slot in slots:
                value = state.get(f"{name}/{slot}")
                if value is None or slot == "step":
                    continue
                if self.stage < 3:
                    parameter.set_full_hp_param(value.to(parameter.device), slot)
                else:
                    part = _part(value.to(parameter.ds_tensor.device), parameter.ds_tensor)
                    optimizer.set_local_hp_param(part, parameter, slot)

    def _flat(self) -> list[Tensor]:
        """This rank's flat fp32 masters."""
        optimizer = self.engine.optimizer
        return optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups

    def _flat_state(self) -> dict[str, Tensor]:
        return {
            slot: value
            for slot, value in self.engine.optimizer.optimizer.state.get(self._flat()[0], {}).items()
            if value is not None
        }

    def scaler_state(self) -> dict[str, Any]:
        return {}

    def load_scaler(self, state: dict[str, Any]) -> None:
        """There is none: fp16 is refused under ZeRO."""


def configuration(recipe: Recipe, settings: Optimizer, stage: int, offload: bool, numbers: int) -> dict[str, Any]:
    """DeepSpeed's words for what the recipe says. Masters are fp32 always; bf16 is autocast, as without DeepSpeed.

    `numbers` are those of the network: DeepSpeed's own buckets hold 500 million, gigabytes more than our networks need.
    """
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": torch.cuda.is_available() and stage >= 2}
    zero["reduce_bucket_size"] = numbers
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = recipe.zero.persistence_threshold
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # not used: the loop forms batches
        "gradient_accumulation_steps": 1,  # not used: the loop says which micro-batch is the last
        "gradient_clipping": settings.clip or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": recipe.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": None,
    }


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's partition of a parameter, padded at the end as ZeRO-3 does."""
    flat = whole.flatten()
    padded = torch.nn.functional.pad(flat, (0, like.numel() * ranks.size() - flat.numel()))
    return padded.narrow(0, ranks.rank() * like.numel(), like.numel())


def _joined(part: Tensor, shape: torch.Size) -> Tensor:
    """All ranks' partitions as the whole parameter. All ranks must call."""
    return ranks.joined(part.flatten())[: shape.numel()].view(shape)
