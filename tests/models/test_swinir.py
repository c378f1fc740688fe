"""SwinIR's windows, shifts and positions, against the same said pixel by pixel, and the published sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.core.errors import UserError
from sr_dist.models.generators import swinir

SMALL = {"width": 12, "depths": (2,), "heads": 3, "window": 4}
counts = st.integers(1, 4)


def numbers(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("scale", "paper"), [(2, 878_000), (3, 886_000), (4, 897_000)])
def test_the_lightweight_network_has_the_papers_numbers(scale, paper):
    """The paper leaves out the tables of positions: 4 groups of 6 blocks with 15 x 15 differences and 6 heads."""
    config = swinir.Config(width=60, depths=(6,) * 4, enlarge="direct")
    assert numbers(swinir.build(config, scale)) - 24 * 15 * 15 * 6 == pytest.approx(paper, abs=500)


def test_swinir_m_has_the_papers_numbers():
    with torch.device("meta"):
        network = swinir.build(swinir.Config(), 4)
    assert numbers(network) == 11_900_199  # "11.9M"


@given(counts, counts, st.integers(2, 5))
def test_windows_hold_their_pixels_in_order_and_are_joined_again(rows, columns, side):
    height, width = rows * side, columns * side
    x = torch.arange(height * width).view(1, height, width, 1)
    parts = swinir.windows(x, side)
    assert parts.shape == (1, rows * columns, side * side, 1)
    for row in range(rows):
        for column in range(columns):
            expected = x[0, row * side : (row + 1) * side, column * side : (column + 1) * side].flatten()
            assert torch.equal(parts[0, row * columns + column, :, 0], expected)
    assert torch.equal(swinir.joined(parts, height, width), x)


@given(counts, counts, st.sampled_from([2, 3, 4, 5]))
def test_pixels_from_opposite_edges_do_not_see_each_other(rows, columns, side):
    """A shifted window may hold pixels of opposite edges: their distance on the image is not their distance in the window."""
    height, width, shift = rows * side, columns * side, side // 2
    apart = swinir.shifted_apart(height, width, side, torch.device("cpu"))
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1)
    rolled = swinir.windows(torch.roll(places, (-shift, -shift), (0, 1))[None], side)[0]  # (windows, N, 2)
    inside = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(1, -1, 2)
    torn = ((rolled[:, :, None] - rolled[:, None]) != (inside[:, :, None] - inside[:, None])).any(-1)
    assert torch.equal(apart == -math.inf, torn)
    assert (apart[~torn] == 0).all()


@pytest.mark.parametrize("positions", ["bias", "rotary"])
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_is_the_softmax_of_its_scores(positions, shifted):
    torch.manual_seed(0)
    attention = swinir.WindowAttention(swinir.Config(**SMALL, positions=positions))
    if attention.bias is not None:
        torch.nn.init.normal_(attention.bias)
    x = torch.randn(2, 4, 16, 12)
    apart = swinir.shifted_apart(8, 8, 4, x.device) if shifted else None
    expected = torch.empty_like(x)
    for image in range(2):
        for window in range(4):
            q, k, v = attention.qkv(x[image, window]).view(16, 3, 3, 4).permute(1, 2, 0, 3)  # heads, N, d
            if positions == "rotary":
                q, k = (turned(each) for each in (q, k))
            scores = q @ k.mT / math.sqrt(4)
            if attention.bias is not None:
                for i in range(16):
                    for j in range(16):
                        row, column = i // 4 - j // 4 + 3, i % 4 - j % 4 + 3
                        scores[:, i, j] += attention.bias[row * 7 + column]
            scores = scores if apart is None else scores + apart[window]
            expected[image, window] = attention.project((scores.softmax(-1) @ v).permute(1, 0, 2).reshape(16, 12))
    torch.testing.assert_close(attention(x, apart), expected, atol=1e-6, rtol=1e-5)


def turned(x):
    """As complex numbers: channels 0 and 2 turn with the row, 1 and 3 with the column; one frequency, 1."""
    places = torch.arange(16)
    rows, columns = torch.polar(torch.ones(16), places // 4 * 1.0), torch.polar(torch.ones(16), places % 4 * 1.0)
    down, across = torch.complex(x[..., 0], x[..., 2]) * rows, torch.complex(x[..., 1], x[..., 3]) * columns
    return torch.stack([down.real, across.real, down.imag, across.imag], -1)


def test_rotary_scores_depend_on_the_difference_of_places():
    attention = swinir.WindowAttention(swinir.Config(**{**SMALL, "width": 24}, positions="rotary"))
    q, k = torch.randn(1, 1, 1, 1, 8).expand(-1, -1, -1, 16, -1), torch.randn(1, 1, 1, 1, 8).expand(-1, -1, -1, 16, -1)
    scores = (swinir.rotated(q, attention.turns) @ swinir.rotated(k, attention.turns).mT)[0, 0, 0].view(4, 4, 4, 4)
    torch.testing.assert_close(scores[:3, :3, :3, :3], scores[1:, 1:, 1:, 1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores[0, 0], scores[0, 1])


@pytest.mark.parametrize(("positions", "tokens"), [("rotary", "pixels"), ("bias", "features"), ("rotary", "features")])
def test_the_variants_learn_and_reload(positions, tokens):
    options = {"positions": positions, "tokens": tokens}
    torch.manual_seed(0)
    network = swinir.build(swinir.Config(**SMALL, **options), 2)
    lr, hr = torch.rand(2, 3, 9, 10), torch.rand(2, 3, 18, 20)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (network(lr) - hr).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    again = swinir.build(swinir.Config(**SMALL, **options), 2)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(lr), network(lr))


@pytest.mark.parametrize(
    ("options", "scale", "message"),
    [
        ({"heads": 7}, 4, r"^generator\.heads: 7 heads do not divide a width of 180$"),
        ({"width": 12, "heads": 6, "positions": "rotary"}, 4, r"^generator\.heads: rotary positions need 4 channels"),
        ({"enlarge": "nearest"}, 3, r"^scale: with enlarge: nearest"),
        ({}, 5, r"^scale: the generator 'swinir' enlarges by 2, 3, 4 or 8, not 5$"),
    ],
)
def test_impossible_options_are_refused(options, scale, message):
    with pytest.raises(UserError, match=message):
        swinir.build(swinir.Config(**options), scale)
