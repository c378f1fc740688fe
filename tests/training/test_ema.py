import pytest
import torch
from torch import nn

from sr_dist.training.ema import Ema
from sr_dist.training.flat import Joined, joined


class Engine:
    """The part of an engine that the average uses, with whole weights."""

    def __init__(self, network):
        self.bare = network

    def local_weights(self):
        return list(self.bare.parameters())

    skipped = torch.zeros(())

    def whole(self, local):
        return local


def following(network, decay):
    ema = Ema(network, decay)
    ema.follow(Engine(network))
    return ema


class Network(nn.Module):
    def __init__(self, value=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), value))
        self.norm = nn.BatchNorm2d(2)

    def set(self, value):
        with torch.no_grad():
            self.weight.fill_(value)
        return self


def test_the_first_updates_forget_the_initial_weights():
    """Decays (1 + n) / (10 + n): 2/11, 3/12, 4/13. Starting at 1 and averaging zeros leaves their product."""
    network = Network(1.0)
    ema = following(network, 0.999)
    network.set(0.0)
    left = 1.0
    for decay in (2 / 11, 3 / 12, 4 / 13):
        ema.update()
        left *= decay
        assert ema.network.weight.tolist() == pytest.approx([left] * 3, rel=1e-6)
    assert ema.updates == 3


def test_the_decay_rises_to_its_value():
    network = Network(1.0)
    ema = following(network, 0.2)
    network.set(0.0)
    for left in (2 / 11, 2 / 11 * 0.2, 2 / 11 * 0.2**2):
        ema.update()
        assert ema.network.weight.tolist() == pytest.approx([left] * 3, rel=1e-6)


def test_it_is_the_weighted_mean_of_all_weights():
    network = Network(5.0)
    ema = following(network, 0.999)
    network.set(2.0)  # 2/11 of 5, 9/11 of 2
    ema.update()
    network.set(-1.0)  # 3/12 of that, 9/12 of -1
    ema.update()
    assert ema.network.weight[0].item() == pytest.approx(0.25 * (2 / 11 * 5 + 9 / 11 * 2) - 0.75, rel=1e-6)


def test_without_decay_it_equals_the_network():
    network = Network()
    ema = following(network, 0.0)
    network.set(0.123)
    ema.update()
    assert torch.equal(ema.network.weight, network.weight)


def test_a_slow_average_needs_fp32():
    """In bf16 an average with decay 0.999 would stand still."""
    network = Network(1.0)
    ema = following(network, 0.999)
    ema.updates = 10**6
    network.set(1.01)
    ema.update()
    assert ema.network.weight[0].item() == pytest.approx(1.00001, abs=2e-7)
    assert ema.network.weight[0] > 1


def test_buffers_are_copied_whole_numbers_too():
    network = Network()
    ema = following(network, 0.999)
    network.norm(torch.rand(4, 2, 3, 3) + 5)
    ema.update()
    assert torch.equal(ema.network.norm.running_mean, network.norm.running_mean) and network.norm.running_mean.min() > 0.4
    assert ema.network.norm.num_batches_tracked == 1 and ema.network.norm.num_batches_tracked.dtype == torch.int64
    network.norm(torch.rand(4, 2, 3, 3))
    assert ema.network.norm.num_batches_tracked == 1  # a copy, not the same tensor


def test_the_average_lies_in_memory_as_the_weights_do():
    """A kernel pairs the numbers of both in the order of the memory; in another order it would take a kernel per tensor."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 5))
    ema = Ema(network, 0.5)  # as in training, where the copy is made before the layout is changed
    network.to(memory_format=torch.channels_last)
    ema.follow(Engine(network))
    assert [p.stride() for p in ema.network.parameters()] == [p.stride() for p in network.parameters()]
    start = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight.add_(torch.rand(4, 3, 3, 3))
    ema.update()
    torch.testing.assert_close(ema.network[0].weight, start + 9 / 11 * (network[0].weight - start))
    again = Ema(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 5)), 0.5)
    again.follow(Engine(network))
    again.load({name: value.contiguous() for name, value in ema.network.state_dict().items()}, 1)
    ema.update(), again.update()
    assert all(p.equal(q) for p, q in zip(ema.network.parameters(), again.gather().parameters(), strict=True))


def test_partitions_are_averaged_like_whole_weights():
    """Under ZeRO-3 a rank has a piece of each weight, in one dimension."""
    network = Network(1.0)
    whole = following(network, 0.999)

    class Partitioned(Engine):
        def __init__(self, bare):
            super().__init__(bare)
            self.pieces = [p.detach().flatten()[: (p.numel() + 1) // 2].clone() for p in bare.parameters()]

        def local_weights(self):
            return self.pieces

    engine = Partitioned(network)
    ema = Ema(network, 0.999)
    ema.follow(engine)
    network.set(0.25)
    for piece, p in zip(engine.pieces, network.parameters(), strict=True):
        piece.copy_(p.detach().flatten()[: len(piece)])
    whole.update(), ema.update()
    for piece, average in zip(ema.averages, whole.averages, strict=True):
        assert piece.equal(average.flatten()[: len(piece)])


def test_the_average_shares_no_memory_with_the_network():
    network = Network(1.0).train()
    ema = following(network, 0.999)
    network.set(7.0)
    assert ema.network.weight.tolist() == [1, 1, 1]
    assert not ema.network.training and not any(p.requires_grad for p in ema.network.parameters())
    ema.update()
    assert network.weight.tolist() == [7, 7, 7] and network.weight.requires_grad and network.training


def test_a_loaded_average_continues():
    network = Network(1.0)
    whole, first = following(network, 0.999), following(network, 0.999)
    values = [0.5, -2.0, 3.0, 0.25]
    for value in values[:2]:
        network.set(value), whole.update(), first.update()
    second = following(network, 0.999)
    second.load({key: value.clone() for key, value in first.network.state_dict().items()}, first.updates)
    for value in values[2:]:
        network.set(value), whole.update(), second.update()
    assert all(torch.equal(value, second.network.state_dict()[key]) for key, value in whole.network.state_dict().items())
    assert whole.updates == second.updates == 4


def test_a_weight_that_a_backend_puts_elsewhere_is_still_averaged():
    """As ZeRO does: `parameter.data = ...`. The average looks at the new place, not at the one it remembers."""
    network = Network(1.0)
    ema = following(network, 0.5)
    ema.update()
    network.weight.data = torch.full((3,), 5.0)
    ema.update()  # 3/12 of 1, 9/12 of 5
    assert ema.network.weight.tolist() == pytest.approx([4.0] * 3)
    network.set(8.0)
    ema.update()  # 4/13 of 4, 9/13 of 8
    assert ema.network.weight.tolist() == pytest.approx([(4 * 4 + 9 * 8) / 13] * 3)


@pytest.mark.parametrize("tensor", [torch.arange(6.0).view(2, 3)[:, :2], torch.ones(1).expand(3), torch.rand(1, 2, 3, 4).mT])
def test_joined_numbers_are_those_of_now_in_any_layout(tensor):
    tensors = [torch.zeros(2), tensor]
    now = Joined(tensors)
    assert torch.equal(now(), joined(tensors))
    tensors[0].fill_(7)
    tensors[1].mul_(2) if tensor.stride() != (0,) else None
    assert torch.equal(now(), joined(tensors)) and now()[0] == 7
