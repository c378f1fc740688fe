"""What a classifier distinguishes: the classes of its shards (a softmax), or some of their attributes (one sigmoid each)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sr_dist.core.errors import UserError, nearest

CLASS: Literal["class"] = "class"  # the word in a recipe for all classes; other words name attributes


class LabelNames(NamedTuple):
    """The classes and attributes that a folder of shards has."""

    place: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Labels:
    kind: Literal["class", "attributes"]
    names: tuple[str, ...]  # in the order of the network's outputs

    @property
    def words(self) -> tuple[str, ...]:
        """The words with which a recipe asks for these labels."""
        return (CLASS,) if self.kind == CLASS else self.names

    def __str__(self) -> str:
        return f"{len(self.names)} classes" if self.kind == CLASS else ", ".join(self.names)


def labels_of(words: Sequence[str], available: LabelNames, key: str) -> Labels:
    """`class` or attribute names, checked against what the shards have. `key` names the recipe key in errors."""
    if tuple(words) == (CLASS,):
        if not available.classes:
            hint = f"; name attributes, such as {available.attributes[0]}" if available.attributes else ""
            raise UserError(f"{key}: class, but the shards in '{available.place}' have no classes{hint}")
        return Labels(CLASS, available.classes)
    if not words:
        raise UserError(f"{key}: names nothing; say class, or attributes of the shards")
    for name in words:
        if name not in available.attributes:
            hint = nearest(name, available.attributes) or "; they have none at all"
            raise UserError(f"{key}: the shards in '{available.place}' have no attribute '{name}'{hint}")
    return Labels("attributes", tuple(words))


def check_fits(labels: Labels, available: LabelNames, key: str) -> None:
    """The shards have the labels that a trained classifier distinguishes."""
    theirs = labels_of(labels.words, available, key)
    if theirs != labels:
        mine, other = (", ".join(one.names[:4]) + (", ..." if len(one.names) > 4 else "") for one in (labels, theirs))
        raise UserError(
            f"{key}: the classifier distinguishes {len(labels.names)} classes ({mine}), the shards in '{available.place}' "
            f"have {len(theirs.names)} ({other})"
        )
