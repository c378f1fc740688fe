"""What the parts of a recipe must be: one Protocol per kind of plug-in, checked by mypy.

A plug-in file has `Config(Settings)` and `build(...)` (an objective: the class `Objective`). It may also have

    check(config, recipe)             what the part requires of the rest of the recipe; raises UserError
    refuses(config, launch)           why the part cannot run under a launch, or None
    from_scratch(config)              of a network: a line for the log of a training without starting weights, or None
    files(config)                     the published weights files that the part needs
    reads_average = True              of a content term that reads `batch.average`
    check_labels(config, available)   what the part requires of the shards' classes and attributes; raises UserError

Networks, content terms and objectives are `nn.Module`s. Their Protocols have `forward`: mypy cannot check calls of modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from torch import Tensor, nn

from sr_dist.core.batch import Batch, DiscriminatorOutput, Reading, Terms

Phase = Literal["generator", "discriminator", "classifier"]


class Generator(Protocol):
    """Built by `build(config, scale)` of models/generators/NAME.py."""

    def forward(self, lr: Tensor, /) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale), not clipped."""

    def __call__(self, lr: Tensor, /) -> Tensor: ...


class Discriminator(Protocol):
    """Built by `build(config, scale)` of models/discriminators/NAME.py."""

    def forward(self, images: Tensor, /) -> DiscriminatorOutput:
        """(B, C, H, W) in [0, 1] -> logits."""

    def __call__(self, images: Tensor, /) -> DiscriminatorOutput: ...


class Classifier(Protocol):
    """Built by `build(config)` of models/classifiers/NAME.py."""

    def forward(self, images: Tensor, /) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits (B, outputs)."""

    def __call__(self, images: Tensor, /) -> Tensor: ...


class ContentTerm(Protocol):
    """Built by `build(config)` of losses/content/NAME.py."""

    def forward(self, sr: Tensor, batch: Batch, /) -> Tensor | tuple[Tensor, Mapping[str, Reading]]:
        """A scalar, or a scalar and readings by name. `batch.step` is the step of the run, for terms that depend on it."""

    def __call__(self, sr: Tensor, batch: Batch, /) -> Tensor | tuple[Tensor, Mapping[str, Reading]]: ...


class Degradation(Protocol):
    """Built by `build(config, scale)` of data/degradations/NAME.py."""

    def __call__(self, hr: Tensor, seeds: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] and a seed per image -> LR (B, C, H / scale, W / scale), the same in any batch."""


class Objective(Protocol):
    """The class `Objective(config)` of objectives/NAME.py: the equations of a paper.

    It has a loss for each of its phases, as the three Protocols below say. A loss returns named, already weighted terms.
    An objective never holds a trained network, an optimizer or the accelerator. A term that acts every k steps uses `batch.step`.
    """

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The networks in the order in which they train."""

    @property
    def validation(self) -> Literal["restoration", "classification"]: ...

    def forward(self, network: nn.Module, batch: Batch, /) -> Tensor:
        """The output of the first phase's network: sr, or logits."""

    def __call__(self, network: nn.Module, batch: Batch, /) -> Tensor: ...


class ContentObjective(Objective, Protocol):
    """Trains a generator without a discriminator."""

    def generator_loss(self, discriminator: None, batch: Batch, sr: Tensor, /) -> Terms: ...


class GANObjective(Objective, Protocol):
    """Trains a generator and a discriminator."""

    def generator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor, /) -> Terms:
        """Gets the discriminator with frozen parameters; `sr` has a gradient."""

    def discriminator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor, /) -> Terms:
        """Gets the discriminator as it trains; `sr` is detached."""


class ClassifierObjective(Objective, Protocol):
    """Trains a classifier."""

    def classifier_loss(self, discriminator: None, batch: Batch, logits: Tensor, /) -> Terms: ...
