"""What the parts of a recipe must be: one Protocol per kind of plug-in, checked by mypy where the package uses them.

A plug-in file has `Config(Settings)` and `build(...)` (an objective: the class `Objective`), and may have

    check(config, recipe)             what it asks of the rest of the recipe; raises UserError
    refuses(config, launch)           why it cannot run under a launch, or None
    files(config)                     published weights files that it needs
    check_labels(config, available)   what it asks of the classes and attributes of the shards; raises UserError
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn

from sr_dist.core.batch import Batch, DiscriminatorOutput, Terms


class Generator(Protocol):
    """Built by `build(config, scale)` of models/generators/NAME.py."""

    def __call__(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale), not clipped."""


class Discriminator(Protocol):
    """Built by `build(config, scale)` of models/discriminators/NAME.py."""

    def __call__(self, images: Tensor) -> DiscriminatorOutput:
        """(B, C, H, W) in [0, 1] -> logits."""


class Classifier(Protocol):
    """Built by `build(config)` of models/classifiers/NAME.py."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits (B, outputs)."""


class ContentTerm(Protocol):
    """Built by `build(config)` of losses/content/NAME.py."""

    def __call__(self, sr: Tensor, batch: Batch) -> Tensor | tuple[Tensor, Terms]:
        """A scalar, or a scalar and readings by name. `batch.step` counts the steps of the run."""


class Degradation(Protocol):
    """Built by `build(config, scale)` of data/degradations/NAME.py."""

    def __call__(self, hr: Tensor, seeds: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] and a seed per image -> LR (B, C, H / scale, W / scale), the same in any batch."""


class Objective(Protocol):
    """The class `Objective(config)` of objectives/NAME.py, an `nn.Module`: the equations of a paper.

    For each phase it has a method that returns named, already weighted terms:

        generator_loss(discriminator, batch, sr), discriminator_loss(discriminator, batch, sr), classifier_loss(None, batch, logits)

    It never holds a trained network, an optimizer or the accelerator. The generator's loss gets the bare discriminator with its
    parameters frozen, the discriminator's loss gets `sr` detached. A term that acts every k steps looks at `batch.step`.
    """

    phases: tuple[Literal["generator", "discriminator", "classifier"], ...]  # in the order in which they train
    validation: Literal["restoration", "classification"]

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """The output of the first phase's network: sr, or logits."""
