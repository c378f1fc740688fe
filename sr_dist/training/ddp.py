"""One network with its optimizer, alone in one process or under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sr_dist.recipe.sections import Optimizer, Recipe
from sr_dist.training.optimizer_state import build_optimizer, load_slots, slots


class Engine:
    """What the loop asks of a backend; the other backend has the same methods.

    `network` is what training calls (its gradients meet across ranks), `bare` is the module without any hooks.
    `skipped` counts updates in a row that were left out, `skipped_in_all` all of them, on the device: nothing waits for it.
    """

    def __init__(self, accelerator: Accelerator, network: nn.Module, recipe: Recipe, phase: str) -> None:
        self.settings: Optimizer = recipe.optimizer_of(phase)
        self.bare = network.to(accelerator.device)
        self.optimizer = build_optimizer(self.bare, self.settings)
        self.network = accelerator.prepare_model(self.bare)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=recipe.precision == "fp16")
        self.skipped = torch.zeros((), device=accelerator.device)
        self.skipped_in_all = torch.zeros((), device=accelerator.device)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch: only the last one of a step talks to the other ranks."""
        silent = nullcontext() if last or self.network is self.bare else self.network.no_sync()
        with silent:
            yield

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's loss; the ranks' gradients are averaged at the last micro-batch."""
        self.scaler.scale(loss).backward()

    def step(self, learning_rate: float) -> Tensor:
        """Updates the network unless its gradients are not finite; returns their norm, before clipping.

        After the averaging every rank holds the same gradients, so all decide alike, and the decision stays on the
        device: the optimizers take the flag as a gradient scaler would hand it to them.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.bare.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.settings.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        overflow = (~torch.isfinite(norm)).to(torch.float32)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, overflow
            self.optimizer.step()
        self.skipped = (self.skipped + 1) * overflow
        self.skipped_in_all += overflow
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def held(self) -> list[Tensor]:
        """The weights that this rank keeps between steps: here all of them, whole."""
        return list(self.bare.parameters())

    def whole(self, held: list[Tensor]) -> list[Tensor]:
        """Tensors like `held()` as whole parameters. All ranks must call."""
        return held

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Weights and optimizer slots by parameter name, whole: a layout that knows nothing of ranks or backends.
        All ranks must call."""
        return {"weights": self.bare.state_dict(), "optimizer": slots(self.bare, self.optimizer)}

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Takes back what `state` of any backend gave. All ranks must call."""
        self.load_weights(state["weights"])
        load_slots(self.bare, self.optimizer, state["optimizer"])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.bare.load_state_dict(weights)

    def scaler_state(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_scaler(self, state: dict[str, Any]) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
