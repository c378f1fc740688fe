"""The contract between the training loop and a backend (`ddp.py`, `deepspeed.py`)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from sr_dist.training.buffers import Buffers

EngineState = dict[str, dict[str, Tensor]]  # "weights" and "optimizer" -> whole tensors by name


class StepEngine(Protocol):
    """What one training step asks of a network with its optimizer. All ranks must call every method."""

    network: nn.Module
    """What training calls: its gradients are exchanged across ranks."""
    bare: nn.Module
    """The module without any hooks."""

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Entered around forward and backward of one micro-batch; `last` is the last one of the step."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this rank's loss. The ranks' gradients are averaged by the end of the last micro-batch."""

    def step(self, learning_rate: float) -> Tensor:
        """Updates the network unless its gradients are not finite, and forgets them. Returns their norm before clipping.
        Buffers that are not finite, or belong to a step without an update, are as before the step.

        All ranks decide alike.
        """


class Engine(StepEngine, Protocol):
    """A network with its optimizer under one backend. EngineState has whole tensors by parameter name, so a run may change its
    backend and its number of ranks when it resumes. All ranks must call every method."""

    skipped: Tensor
    """Updates in a row that were skipped, on the device: reading it waits for the device."""
    skipped_total: Tensor
    """All updates that were skipped."""
    buffers: Buffers
    """A step that was skipped has left no trace in them."""

    def size_of(self, parameter: nn.Parameter) -> int:
        """The number of values in a whole parameter, also where a rank has only its partition."""

    def local_weights(self) -> list[Tensor]:
        """The weights that this rank keeps between steps; a partition of each parameter under ZeRO-3."""

    def without_padding(self, local: list[Tensor]) -> list[Tensor]:
        """Tensors like `local_weights()`, without the uninitialized memory in which a partition of ZeRO-3 may end."""

    def whole(self, local: list[Tensor]) -> list[Tensor]:
        """Tensors like `local_weights()` as whole parameters."""

    def state(self) -> EngineState:
        """Weights and optimizer state."""

    def load(self, state: EngineState) -> None:
        """Loads what `state` of any backend returned."""

    def load_weights(self, weights: dict[str, Tensor]) -> None: ...

    def scaler_state(self) -> dict[str, Any]:
        """The state of the gradient scaler, empty without one."""

    def load_scaler(self, state: dict[str, Any]) -> None: ...


def is_partitioned(engine: Engine) -> bool:
    """Whether this rank has only parts of the parameters between passes, as under ZeRO-3."""
    return any(engine.size_of(parameter) != parameter.numel() for parameter in engine.bare.parameters())
