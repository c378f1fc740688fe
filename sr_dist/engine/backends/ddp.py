"""One network with its optimizer, alone in one process or under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sr_dist.engine.optimizers import build_optimizer, load_slots, slots
from sr_dist.recipe import Optimizer


class Engine:
    """`network` is what training calls (its gradients meet across ranks), `bare` is the module without any hooks."""

    def __init__(self, accelerator: Accelerator, network: nn.Module, settings: Optimizer) -> None:
        self.accelerator, self.settings = accelerator, settings
        self.bare = network.to(accelerator.device)
        optimizer = build_optimizer(self.bare, settings)
        self.network = accelerator.prepare_model(self.bare)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.skipped = 0  # steps in a row

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch: only the last one of a step talks to the other ranks."""
        if last or not hasattr(self.network, "no_sync"):
            yield
        else:
            with self.network.no_sync():
                yield

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's loss; the ranks' gradients are averaged at the last micro-batch."""
        self.accelerator.backward(loss)

    def step(self, learning_rate: float) -> Tensor:
        """Updates the network unless its gradients are not finite; returns their norm. The same decision on all ranks,
        because after the averaging every rank holds the same gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        scaling = self.accelerator.scaler is not None
        if scaling:
            self.accelerator.unscale_gradients(self.optimizer)
        trained = [p for p in self.bare.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        finite = bool(torch.isfinite(norm))
        if finite and self.settings.clip:
            torch.nn.utils.clip_grads_with_norm_(trained, self.settings.clip, norm)
        if finite or scaling:  # a gradient scaler skips by itself, and must see the overflow to lower its scale
            self.optimizer.step()
        self.skipped = 0 if finite else self.skipped + 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Weights and optimizer slots by parameter name: a layout that knows nothing of ranks or backends."""
        return {"weights": self.bare.state_dict(), "optimizer": slots(self.bare, self.optimizer.optimizer)}

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.bare.load_state_dict(state["weights"])
        load_slots(self.bare, self.optimizer.optimizer, state["optimizer"])

    def scaler_state(self) -> dict[str, Any]:
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
