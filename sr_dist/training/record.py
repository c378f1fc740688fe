"""The columns of metrics.jsonl. TERM, COLUMN and NETWORK stand for the names of a recipe."""

from __future__ import annotations

import re

COLUMNS = {
    "step": "the step, counted from 1; 0 in the row of `validate_first`",
    "images": "the images seen by all ranks, from the beginning of the run",
    "epoch": "`images` over the number of training samples",
    "learning_rate": "of the first network",
    "images_per_second": "of all ranks, since the row before; validation and saving do not count",
    "data_wait": "the part of that time in which the first rank waited for images",
    "step_time_spread": "the slowest rank's own time (data wait, forward passes) over the mean of all ranks; only with several",
    "memory_gb": "the most that the first rank's device (without one: its process) has held",
    "tflops": "products and convolutions of one rank, forward and backward, per second, in 1e12; counted from the recipe",
    "mfu": "`tflops` over what the device's maker states for this precision, where the device is known",
    "loss/real": "the discriminator's loss on HR",
    "loss/fake": "the discriminator's loss on SR; both near 0: the discriminator has won",
    "loss/adversarial": "the generator's adversarial loss times `objective.adversarial_weight`",
    "loss/paired": "the discriminator's loss on pairs of HR and SR (`r3gan`); near 0: the discriminator has won",
    "loss/r1": "the R1 penalty times `objective.r1_weight` and `r1_every`; absent in steps without it",
    "loss/r2": "the R2 penalty, on SR, in the same way",
    "loss/class_real": "the class loss of the discriminator on HR times `objective.class_weight`",
    "loss/class_fake": "the same on SR",
    "loss/class": "the class loss of the generator times `objective.generator_class_weight`",
    "loss/cross_entropy": "the loss of a classifier",
    "loss/TERM": "a content term times its weight in `objective.content`",
    "reading/NAME": "a measurement beside the losses, without a weight: nothing is trained on it",
    "grad_norm/NETWORK": "the norm of the gradients, before clipping",
    "skipped/NETWORK": "updates left out so far, because gradients were not finite",
    "data/substituted": "unreadable samples replaced so far (`data.on_corrupt: substitute`)",
    "validation/COLUMN": "a validation metric; such rows have only `step`, `images` and bicubic's numbers besides. With several "
    "validation sets their mean, and `validation/SET/COLUMN` of each",
    "bicubic/COLUMN": "the same metric of bicubic on the same images (restoration only)",
}  # fmt: skip


def described(column: str) -> str | None:
    """The entry of COLUMNS that describes a column, or None."""
    if column in COLUMNS:
        return column
    general = (entry for entry in COLUMNS if re.fullmatch(re.sub("[A-Z]+$", ".+", entry), column))
    return next(general, None)
