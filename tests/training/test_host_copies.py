"""Copies for checkpoints: grouped, and to the byte what one copy of each tensor is."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from sr_dist.training import host_copies
from sr_dist.training.host_copies import grouped, on_host

TYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64)
LAYOUTS = ("plain", "channels_last", "transposed", "part", "expanded")


def laid_out(shape: list[int], layout: str, numbers: torch.Tensor) -> torch.Tensor:
    tensor = numbers.view(shape)
    if layout == "channels_last" and len(shape) == 4:
        return tensor.to(memory_format=torch.channels_last)
    if layout == "transposed" and len(shape) > 1:
        return tensor.transpose(0, 1)
    if layout == "part" and shape:
        return torch.cat([tensor, tensor], -1)[..., : shape[-1]]
    return tensor[:1].expand(3, *shape[1:]) if layout == "expanded" and shape and shape[0] else tensor


@st.composite
def tensors(draw) -> dict[str, torch.Tensor]:
    result = {}
    for number in range(draw(st.integers(1, 6))):
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        numbers = 100 * number + torch.arange(torch.Size(shape).numel())
        result[f"{draw(st.sampled_from('zyx'))}.{number}"] = laid_out(
            shape, draw(st.sampled_from(LAYOUTS)), numbers.to(draw(st.sampled_from(TYPES)))
        )
    return result


@settings(max_examples=150, deadline=None)
@given(tensors())
def test_the_saved_bytes_are_those_of_single_copies(named):
    single = save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in named.items()})
    for copies in (on_host(named), grouped(named, pinned=False)):
        assert save({name: copy.contiguous() for name, copy in copies.items()}) == single


def test_copies_keep_their_numbers_when_the_weights_change():
    weight = torch.arange(6.0, requires_grad=True)
    named = {"weight": weight.detach(), "tied": weight.detach()}
    several = [on_host({"weight": weight, "tied": weight}), grouped(named, pinned=False)]
    with torch.no_grad():
        weight.zero_()
    for copies in several:
        assert copies["weight"].tolist() == copies["tied"].tolist() == [0, 1, 2, 3, 4, 5]
        assert not copies["weight"].requires_grad


def test_parts_have_at_most_so_many_bytes_or_one_tensor(monkeypatch):
    monkeypatch.setattr(host_copies, "PART", 16)
    sizes = [[len(tensor) for tensor in part] for part in host_copies._parts([torch.zeros(n) for n in (2, 1, 1, 1, 7, 3)])]
    assert sizes == [[2, 1, 1], [1], [7], [3]]
