import pytest
import torch

from sr_dist.core.errors import UserError
from sr_dist.core.resize import rounded
from sr_dist.evaluation.presets import PROTOCOLS
from sr_dist.evaluation.protocol import as_stored, inside_border, luma, protocol

# MATLAB's rgb2ycbcr on uint8: Y of the corners of the colour cube.
CORNERS = {
    (0, 0, 0): 16, (255, 255, 255): 235, (255, 0, 0): 81, (0, 255, 0): 145,
    (0, 0, 255): 41, (255, 255, 0): 210, (255, 0, 255): 106, (0, 255, 255): 170,
}  # fmt: skip


def pixel(red, green, blue):
    return torch.tensor([red, green, blue], dtype=torch.float64).view(1, 3, 1, 1) / 255


@pytest.mark.parametrize(("colour", "y"), CORNERS.items())
def test_luma_is_matlabs(colour, y):
    result = luma(pixel(*colour), protocol("matlab-y", 2), grey=False)
    assert result.shape == (1, 1, 1, 1)
    assert result.item() == y


@pytest.mark.parametrize(("preset", "red"), [("matlab-y", 81.0), ("basicsr", 81.481), ("rgb-float", 81.481)])
def test_only_matlabs_luma_is_rounded(preset, red):
    assert luma(pixel(255, 0, 0), protocol(preset, 2), grey=False).item() == pytest.approx(red)


@pytest.mark.parametrize("preset", PROTOCOLS)
def test_grey_images_are_their_own_luma(preset):
    for level in (0, 1, 100, 254, 255):
        assert luma(pixel(level, level, level), protocol(preset, 2), grey=True).item() == pytest.approx(level, abs=1e-10)


@pytest.mark.parametrize(("preset", "border"), [("matlab-y", 4), ("basicsr", 4), ("rgb-float", 0)])
def test_borders_are_as_wide_as_the_scale(preset, border):
    assert protocol(preset, 4).border == border
    assert inside_border(torch.rand(2, 3, 20, 30), protocol(preset, 4)).shape == (2, 3, 20 - 2 * border, 30 - 2 * border)


def test_the_middle_stays():
    image = torch.arange(36, dtype=torch.float64).view(1, 1, 6, 6).repeat(1, 3, 1, 1) / 255
    expected = torch.tensor([[14.0, 15.0], [20.0, 21.0]], dtype=torch.float64) / 255
    torch.testing.assert_close(inside_border(image, protocol("matlab-y", 2))[0, 0], expected)


@pytest.mark.parametrize(("preset", "expected"), [("matlab-y", [0, 100, 101, 255]), ("basicsr", [0, 100, 101, 255])])
def test_8_bit_presets_round_and_clip(preset, expected):
    image = (
        torch.tensor([-20.0, 100.4, 100.6, 300.0], dtype=torch.float64).view(1, 1, 1, 4).expand(1, 3, 5, 4).repeat(1, 1, 1, 3)
        / 255
    )
    result = inside_border(image, protocol(preset, 1)) * 255
    assert result.round().unique().tolist() == expected
    torch.testing.assert_close(result, result.round())


def test_floats_are_clipped_but_not_rounded():
    image = torch.tensor([-20.0, 100.4, 300.0], dtype=torch.float64).view(1, 1, 1, 3).repeat(1, 3, 1, 1) / 255
    result = inside_border(image, protocol("rgb-float", 2))[0, 0, 0] * 255
    assert result.tolist() == pytest.approx([0, 100.4, 255])


def test_the_description_carries_every_condition():
    description = protocol("matlab-y", 3).describe()
    assert {"name": "matlab-y", "scale": 3, "border": 3, "eight_bit": True, "rounded_luma": True}.items() <= description.items()
    assert "Y" in description["channel"] and "100 dB" in description["mean"] and "11 x 11" in description["ssim"]


def test_unknown_protocols_get_the_nearest_name():
    with pytest.raises(UserError, match="protocol: no 'matlab'; did you mean 'matlab-y'"):
        protocol("matlab", 2)


def test_images_are_stored_as_imresize_rounds_them():
    image = torch.cat([torch.linspace(-0.1, 1.1, 4000, dtype=torch.float64), (torch.arange(256) + 0.5) / 255]).view(1, 1, 1, -1)
    assert torch.equal(as_stored(image, protocol("matlab-y", 2)), rounded(image.clamp(0, 1)))
    assert as_stored(torch.tensor([float("nan")]), protocol("matlab-y", 2)).isnan()
