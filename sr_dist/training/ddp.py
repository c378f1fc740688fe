"""One network with its optimizer, in one process or under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from sr_dist.recipe.sections import Recipe
from sr_dist.training.buffers import Buffers, equal_on_all_ranks
from sr_dist.training.engine import EngineState
from sr_dist.training.optimizer_state import (
    Groups,
    begin_momentum,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    takes_flag,
)
from sr_dist.training.optimizer_trial import try_out


class DDPEngine:
    """Implements `engine.Engine`."""

    def __init__(self, accelerator: Accelerator, network: nn.Module, recipe: Recipe, phase: str) -> None:
        self.settings = recipe.optimizer_of(phase)
        self.bare = network.to(accelerator.device)
        self.buffers = Buffers(self.bare)  # first, because backends keep references to buffers
        try_out(self.settings, self.bare, accelerator.device, zero=False)
        self.optimizer = build_optimizer(self.bare, self.settings)
        self._groups = Groups(self.optimizer)
        begin_momentum(self.optimizer)
        self._trained = [p for p in self.bare.parameters() if p.requires_grad]  # once, because a walk takes a millisecond
        accelerator.ddp_handler = DistributedDataParallelKwargs(
            gradient_as_bucket_view=True,  # gradients are not copied
            broadcast_buffers=not equal_on_all_ranks(self.bare),
        )
        self.network = accelerator.prepare_model(self.bare)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=recipe.precision == "fp16")
        self.skipped = torch.zeros((), device=accelerator.device)
        self.skipped_total = torch.zeros((), device=accelerator.device)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Only the last micro-batch of a step exchanges gradients."""
        with nullcontext() if last or self.network is self.bare else self.network.no_sync():
            yield

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, learning_rate: float) -> Tensor:
        """After the averaging every rank holds the same gradients, so all decide alike. The decision stays on the device: fused
        optimizers take the flag as a gradient scaler would pass it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        if self.settings.clip:
            torch.nn.utils.clip_grads_with_norm_(self._trained, self.settings.clip, norm)
        overflow = (~torch.isfinite(norm)).to(torch.float32)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif not takes_flag(self.optimizer):
            if not overflow:  # waits for the device, in every step
                self.optimizer.step()
        else:
            vars(self.optimizer).update(grad_scale=None, found_inf=overflow)  # as torch's GradScaler sets them
            self.optimizer.step()
        self.skipped = (self.skipped + 1) * overflow
        self.skipped_total += overflow
        self.buffers.settle(overflow)
        for parameter in self._trained:  # `zero_grad` looks at each several times
            parameter.grad = None
        return norm

    def size_of(self, parameter: nn.Parameter) -> int:
        return parameter.numel()

    def local_weights(self) -> list[Tensor]:
        return list(self.bare.parameters())

    def without_padding(self, local: list[Tensor]) -> list[Tensor]:
        return local

    def whole(self, local: list[Tensor]) -> list[Tensor]:
        return local

    def state(self) -> EngineState:
        optimizer = optimizer_state(self.bare, self.optimizer) | self._groups.changed()
        return {"weights": self.bare.state_dict(), "optimizer": optimizer}

    def load(self, state: EngineState) -> None:
        self.load_weights(state["weights"])
        load_optimizer_state(self.bare, self.optimizer, state["optimizer"])
        self._groups.load(state["optimizer"])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.bare.load_state_dict(weights)
        self.buffers.remember()

    def scaler_state(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_scaler(self, state: dict[str, Any]) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
