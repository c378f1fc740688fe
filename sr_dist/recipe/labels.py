"""The labels of a classifier: the classes of its shards (a softmax), or some of their attributes (one sigmoid each)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sr_dist.core.errors import UserError, nearest

CLASS: Literal["class"] = "class"  # stands for all classes in a recipe; other words are names of attributes


class LabelNames(NamedTuple):
    """The classes and attributes of a folder of shards."""

    source: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Labels:
    kind: Literal["class", "attributes"]
    names: tuple[str, ...]  # in the order of the network's outputs

    @property
    def words(self) -> tuple[str, ...]:
        """The value of `objective.labels` that selects these labels."""
        return (CLASS,) if self.kind == CLASS else self.names

    def __str__(self) -> str:
        return f"{len(self.names)} classes" if self.kind == CLASS else ", ".join(self.names)


def labels_of(words: Sequence[str], available: LabelNames, key: str) -> Labels:
    """`class` or names of attributes -> labels that the shards have. `key` is the recipe key in errors."""
    if tuple(words) == (CLASS,):
        if not available.classes:
            hint = f"; name attributes, such as {available.attributes[0]}" if available.attributes else ""
            raise UserError(f"{key}: class, but the shards in '{available.source}' have no classes{hint}")
        return Labels(CLASS, available.classes)
    if not words:
        raise UserError(f"{key}: is empty; write class, or names of attributes of the shards")
    for name in words:
        if name not in available.attributes:
            hint = nearest(name, available.attributes) or "; they have no attributes"
            raise UserError(f"{key}: the shards in '{available.source}' have no attribute '{name}'{hint}")
    return Labels("attributes", tuple(words))


def check_fits(labels: Labels, available: LabelNames, key: str) -> None:
    """The shards have the labels of a trained classifier."""
    of_shards = labels_of(labels.words, available, key)
    if of_shards != labels:
        raise UserError(
            f"{key}: the classifier distinguishes {len(labels.names)} classes ({_first_names(labels)}), the shards in "
            f"'{available.source}' have {len(of_shards.names)} ({_first_names(of_shards)})"
        )


def _first_names(labels: Labels, most: int = 4) -> str:
    return ", ".join(labels.names[:most]) + (", ..." if len(labels.names) > most else "")
