"""Buffers that a forward pass replaces, and tensors that do not fill their memory, in averages and in skipped steps."""

from __future__ import annotations

import pytest
import torch
from test_ema import following
from torch import nn

from sr_dist.core.errors import UserError
from sr_dist.training.buffers import Buffers
from sr_dist.training.flat import FlatAverage, is_dense, joined, pieces


class Replacing(nn.Module):
    """Assigns its running mean anew, as one writes it who does not think of copies."""

    def __init__(self, start=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(2) if start is None else start)

    def forward(self, x):
        self.mean = 0.5 * self.mean + (0.5 * self.weight * x.mean(0)).detach()
        return self.weight * (x - self.mean)


def inside(network):
    """The network as a part of another: -> both."""
    return nn.Sequential(nn.Linear(2, 2), network), network


@pytest.mark.parametrize("start", [None, torch.zeros(1).expand(2), torch.zeros(2, 3)[:, 0]], ids=["dense", "expanded", "part"])
def test_a_buffer_that_is_assigned_anew_counts(start):
    """Good steps stay; a skipped one, and one whose mean is infinite, are taken back; the average follows."""
    network, part = inside(Replacing(start))
    buffers, ema = Buffers(network), following(network, 0.5)
    for value, skipped, expected in ((4.0, 0.0, 2.0), (8.0, 1.0, 2.0), (float("inf"), 0.0, 2.0), (6.0, 0.0, 4.0)):
        network[1](torch.full((3, 2), value))
        buffers.settle(torch.tensor(skipped))
        ema.update()
        assert network.state_dict()["1.mean"].tolist() == part.mean.tolist() == [expected] * 2
        assert ema.network.state_dict()["1.mean"].tolist() == [expected] * 2
    network[1](torch.full((3, 2), float("inf")))
    buffers.settle(torch.zeros(()))
    assert int(buffers.refused) == 1 and buffers.broken() == ["1.mean"]


def test_loaded_buffers_are_those_to_which_a_skipped_step_returns():
    network = Replacing()
    buffers = Buffers(network)
    network(torch.ones(3, 2))
    network.load_state_dict({"weight": torch.ones(2), "mean": torch.full((2,), 7.0)})
    buffers.remember()
    network(torch.ones(3, 2))
    buffers.settle(torch.ones(()))
    assert network.mean.tolist() == [7, 7]


def test_a_buffer_keeps_its_type_and_may_not_change_its_shape():
    network = Replacing()
    buffers = Buffers(network)
    network.mean = torch.full((2,), 3.0, dtype=torch.bfloat16)  # as under autocast
    buffers.settle(torch.zeros(()))
    assert network.mean.dtype == torch.float32 and network.mean.tolist() == [3, 3]
    network.mean = torch.ones(1)
    with pytest.raises(UserError, match=r"buffer 'mean': .* its shape from \(2,\) to \(1,\)"):
        buffers.settle(torch.zeros(()))


LAYOUTS = {
    "contiguous": (torch.rand(4, 3, 2, 2), True),
    "channels_last": (torch.rand(4, 3, 2, 2).to(memory_format=torch.channels_last), True),
    "transposed": (torch.rand(3, 5).T, True),
    "one channel": (torch.rand(4, 1, 3, 1).to(memory_format=torch.channels_last), True),
    "expanded": (torch.rand(3, 1).expand(3, 5), False),
    "a part": (torch.rand(6, 6)[1:4, 2:5], False),
    "every second": (torch.rand(9)[::2], False),
    "a number": (torch.rand(()), True),
    "empty": (torch.rand(0, 3), True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_numbers_of_any_layout_are_joined_and_taken_apart(name):
    tensor, dense = LAYOUTS[name]
    others = [torch.rand(2), tensor, torch.rand(3)]
    flat = joined(others)
    assert is_dense(tensor) == dense and len(flat) == 5 + tensor.numel()
    assert all(piece.equal(other) for piece, other in zip(pieces(flat, others), others, strict=True))
    assert pieces(flat, others)[1].stride() == (tensor.stride() if dense else tensor.contiguous().stride())


def test_an_average_takes_tensors_of_all_layouts_and_types():
    tensors = [tensor.clone() if dense else tensor for tensor, dense in LAYOUTS.values()] + [torch.ones(2).bfloat16()]
    average, single = FlatAverage(tensors), FlatAverage(tensors, torch.float32)
    starts = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        if is_dense(tensor):
            tensor.add_(1)
    average.update(0.25), single.update(torch.tensor(0.25))
    for value, other, tensor, start in zip(average.tensors, single.tensors, tensors, starts, strict=True):
        torch.testing.assert_close(value, torch.lerp(start, tensor, 0.25))
        assert value.dtype == tensor.dtype and other.dtype == torch.float32
    average.restart()
    assert all(value.equal(tensor) for value, tensor in zip(average.tensors, tensors, strict=True))


def test_the_average_of_a_part_of_a_larger_tensor():
    network = nn.Linear(2, 3)
    network.weight = nn.Parameter(torch.rand(3, 4)[:, :2])
    start = network.weight.detach().clone()
    ema = following(network, 0.0)
    with torch.no_grad():
        network.weight += 1
    ema.update()
    torch.testing.assert_close(ema.network.weight, start + 1)
