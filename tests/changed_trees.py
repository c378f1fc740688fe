"""Random changes to JSON-like trees and to texts, as strategies of hypothesis."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD_TEXT = st.sampled_from(
    ["", "\0", "\ud800", "a\nb", "a.b", "../x", "/", "none", "1e999", "-1", "9" * 30, "[", "{a: ", "é", "x" * 2000, "nan"]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**40, -(2**63)]),
    st.floats(), ODD_TEXT, st.text(max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(ODD_TEXT, inside, max_size=3), max_leaves=6
)


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one to three values replaced, removed, added or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        tree = _with_change(draw, tree)
    return tree


def _with_change(draw: st.DrawFn, tree: Any) -> Any:
    if not isinstance(tree, dict | list) or not tree or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    place = draw(st.sampled_from(list(tree) if isinstance(tree, dict) else range(len(tree))))
    if isinstance(tree[place], dict | list) and draw(st.booleans()):
        tree[place] = _with_change(draw, tree[place])
        return tree
    action = draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "replace":
        tree[place] = draw(VALUES)
    elif action == "remove":
        del tree[place]
    elif isinstance(tree, dict):
        tree[draw(ODD_TEXT)] = draw(VALUES)
    else:
        tree.insert(place, draw(VALUES))
    return tree


@st.composite
def spliced(draw: st.DrawFn, text: str) -> str:
    """The text with a piece replaced by other characters, perhaps many."""
    begin = draw(st.integers(0, len(text)))
    end = min(len(text), begin + draw(st.integers(0, 40)))
    piece = draw(st.text(max_size=6) | st.sampled_from(["[", "{", '"', "}", "*a", "&a [", "? ", "- ", "!!", "\0", "\t"]))
    return text[:begin] + piece * draw(st.sampled_from([1, 1, 1, 50, 5000])) + text[end:]
