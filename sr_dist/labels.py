"""What a classifier tells apart: the classes of its shards (a softmax), or some of their attributes (a yes or no each)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sr_dist.data.format import Shards
from sr_dist.errors import UserError, nearest

CLASS: Literal["class"] = "class"  # the word for all classes, where else attributes are named
SCORES = ("accuracy", "balanced_accuracy")  # by which the best checkpoint of a classifier is chosen; more is better


@dataclass(frozen=True)
class Labels:
    kind: Literal["class", "attributes"]
    names: tuple[str, ...]  # in the order of the network's outputs

    @property
    def wanted(self) -> tuple[str, ...]:
        """The words with which a recipe asks for them."""
        return (CLASS,) if self.kind == CLASS else self.names

    def __str__(self) -> str:
        return f"{len(self.names)} classes" if self.kind == CLASS else ", ".join(self.names)


def labels_of(wanted: Sequence[str], shards: Shards, key: str) -> Labels:
    """`class`, or names of attributes, as the shards have them; `key` names what asks for them in errors."""
    if tuple(wanted) == (CLASS,):
        if not shards.manifest.classes:
            raise UserError(f"{key}: class, but the shards in '{shards.folder}' have no classes{_attributes(shards)}")
        return Labels(CLASS, shards.manifest.classes)
    if not wanted:
        raise UserError(f"{key}: names nothing; say class, or attributes of the shards")
    for name in wanted:
        if name not in shards.manifest.attributes:
            there = nearest(name, shards.manifest.attributes) or "; they have none at all"
            raise UserError(f"{key}: the shards in '{shards.folder}' have no attribute '{name}'{there}")
    return Labels("attributes", tuple(wanted))


def check_fits(labels: Labels, shards: Shards, key: str) -> None:
    """The shards have what a finished classifier was trained to tell apart."""
    found = labels_of(labels.wanted, shards, key)
    if found != labels:
        ours, theirs = (", ".join(one.names[:4]) + (", ..." if len(one.names) > 4 else "") for one in (labels, found))
        raise UserError(f"{key}: it tells apart {len(labels.names)} classes ({ours}), the shards in '{shards.folder}' "
                        f"have {len(found.names)} ({theirs})")  # fmt: skip


def _attributes(shards: Shards) -> str:
    names = shards.manifest.attributes
    return f"; name attributes, such as {names[0]}" if names else ""
