"""Constants are copied to a device once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sr_dist.core import constants, plugins, ranks
from sr_dist.core.colour import luma
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.resize import imresize
from sr_dist.models.imagenet import as_imagenet


class Copies(TorchDispatchMode):
    """Counts tensors that are made from numbers of Python, and matrices of float64 that are converted."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name()
        matrix = name == "aten::_to_copy" and (args[0].ndim, args[0].dtype) == (2, torch.float64)
        if name == "aten::lift_fresh" or (matrix and kwargs.get("dtype") == torch.float32):
            self.count[name] += 1
        return operation(*args, **(kwargs or {}))


def degrade(name):
    module, options = plugins.resolve(PACKAGES["degradation"], name, {}, "data.degradation")
    return lambda images: module.build(options, 2)(images, torch.arange(len(images)))


def mean_over_two_ranks(images):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "size", lambda: 2)
        patch.setattr(ranks, "all_reduce_sum", lambda values: values.clone())
        return ranks.global_mean(images)


WORK = {
    "bicubic": degrade("bicubic"), "gaussian": degrade("gaussian"), "real": degrade("real"), "skip": lambda x: imresize(x, 2),
    "frozen classifier": as_imagenet, "luma": luma, "global mean": mean_over_two_ranks,
}  # fmt: skip


@pytest.mark.parametrize("name", WORK)
def test_a_second_call_copies_no_constant(name):
    images = torch.rand(2, 3, 32, 32)
    with Copies() as first:
        expected = WORK[name](images)
    with Copies() as second:
        assert WORK[name](images).equal(expected)
    assert not second.count, (first.count, second.count)


@pytest.fixture
def graphs():
    """torch.compile with a backend that counts graphs."""
    torch.compiler.reset()
    seen = []

    def backend(graph, inputs):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    yield seen, lambda function: torch.compile(function, backend=backend)
    torch.compiler.reset()


@pytest.mark.parametrize("function", [lambda x: imresize(x, 2) + 1, lambda x: as_imagenet(x) + 1], ids=["skip", "classifier"])
def test_compiled_code_has_constants_in_it(function, graphs, monkeypatch):
    """One graph, which does not compute the matrix again. Images of another size are right too."""
    seen, compiled = graphs
    for side in (16, 16, 24, 20):
        images = torch.rand(1, 3, side, side + 1)
        torch.testing.assert_close(compiled(function)(images), function(images))
        if side == 16:
            assert len(seen) == 1 and not [target for target in seen[0] if "scatter" in target or "arange" in target]


@pytest.mark.parametrize("size", [(16, 17), (300, 20), (16, 16)])
def test_a_compiled_network_may_add_to_the_bicubic_image(size):
    """With the differentiation of compiled training, which allows a source of constants once."""
    torch.compiler.reset()
    images = torch.rand(1, 3, *size, requires_grad=True)
    compiled = torch.compile(lambda x: imresize(x, 2) * x.mean(), backend="aot_eager", fullgraph=True)(images)
    torch.testing.assert_close(compiled, imresize(images, 2) * images.mean())
    compiled.sum().backward()


def test_a_constant_that_was_first_needed_in_inference_serves_training(monkeypatch):
    monkeypatch.setattr(constants, "_constants", {})
    with torch.inference_mode():
        as_imagenet(torch.rand(1, 3, 4, 4))
    images = torch.rand(1, 3, 4, 4, requires_grad=True)
    as_imagenet(images).sum().backward()
    assert images.grad.isfinite().all()


@pytest.fixture
def cached(monkeypatch):
    """Room for five tensors of ten numbers: -> asks for one of a name, and says which were made for it."""
    monkeypatch.setattr(constants, "_constants", {})
    monkeypatch.setattr(constants, "MOST", 5 * 40)
    made = []

    def ask(names, length=10):
        made.clear()
        for name in names:
            constants.once(
                name, lambda name=name: (made.append(name), torch.zeros(length))[1], torch.float32, torch.device("cpu")
            )
        return "".join(made)

    return ask


def test_those_that_were_used_last_stay(cached):
    assert cached("abcde") == "abcde" and cached("abcde") == ""
    assert cached("a") == "" and cached("f") == "f"  # in the place of b
    assert cached("acdef") == "" and cached("b") == "b" and cached("cdefb") == "" and cached("a") == "a"


def test_their_bytes_are_bounded(cached):
    cached("abcde")
    assert cached("l", length=30) == "l" and cached("de", length=10) == ""  # of 120 bytes, which leaves 80
    assert cached("a") == "a" and cached("l", length=30) == "l"
    assert cached("h", length=51) == "h" == cached("h", length=51)  # too large to stay
    assert sum(constant.nbytes for constant in constants._constants.values()) <= constants.MOST


def test_tensors_without_numbers_are_not_cached(monkeypatch):
    monkeypatch.setattr(constants, "_constants", {})
    assert constants.once("meta", lambda: torch.zeros(1), torch.float32, torch.device("meta")).is_meta
    assert not constants._constants
