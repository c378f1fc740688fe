"""PSNR and SSIM beside scikit-image, and beside numbers worked out by hand."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring import batches
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.distances.extractor import torchscript
from sr_dist.evaluation.metric_set import ImageMetric, open_metrics
from sr_dist.evaluation.metrics import lpips, psnr, ssim
from sr_dist.evaluation.presets import PROTOCOLS
from sr_dist.evaluation.protocol import Protocol, inside_border, luma, protocol, stored_tiles
from sr_dist.evaluation.scoring import Scoring, score
from sr_dist.models import pretrained

FLOATS = Protocol("floats", 2, 0, eight_bit=False, rounded_luma=False)
MODULES = [importlib.import_module(f"sr_dist.evaluation.metrics.{name}") for name in plugins.names("sr_dist.evaluation.metrics")]
OF_IMAGES = [module for module in MODULES if isinstance(module, ImageMetric)]
BACKBONES = {"alexnet-owt-7be5be79.pth": "alexnet", "vgg16-397923af.pth": "vgg16"}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """The convolutions of AlexNet and VGG16 with seeded random weights, under the published names."""
    import torchvision

    folder = tmp_path_factory.mktemp("weights")
    for file, name in BACKBONES.items():
        torch.manual_seed(0)
        state = getattr(torchvision.models, name)(weights=None).features.state_dict()
        torch.save({f"features.{key}": value for key, value in state.items()}, folder / file)
    return folder


@pytest.fixture
def lpips_weights(backbones, monkeypatch):
    lpips._network.cache_clear()
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(backbones))
    monkeypatch.setattr(pretrained, "verified", lambda path, *_: path)
    yield backbones
    lpips._network.cache_clear()


def photo(size=(40, 52), seed=0, count=1):
    """Something smooth with an edge in it, stored as 8 bits."""
    draw = np.random.default_rng(seed)
    coarse = torch.tensor(draw.random((count, 3, 6, 7)))
    image = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    image[..., size[1] // 2 :] *= 0.6
    return (image * 255).round() / 255


def worsened(image, amount=0.05, seed=1):
    noise = torch.tensor(np.random.default_rng(seed).normal(0, amount, image.shape))
    return ((image + noise).clamp(0, 1) * 255).round() / 255


def levels(image):
    return (image[0].permute(1, 2, 0).numpy() * 255).round()


def matlab_y(image):
    return np.round(16 + levels(image) / 255 @ np.array([65.481, 128.553, 24.966]))


def reference_ssim(a, b, **options):
    """scikit-image averages the valid region, 5 pixels inside."""
    return structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, **options)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("amount", [0.01, 0.2])
def test_values_are_scikit_images(scale, amount):
    hr = photo()
    sr, rules = worsened(hr, amount), protocol("matlab-y", scale)
    cut = np.s_[scale:-scale, scale:-scale]
    y, x = matlab_y(hr)[cut], matlab_y(sr)[cut]
    values = psnr.per_image(sr, hr, rules, grey=False) | ssim.per_image(sr, hr, rules, grey=False)
    assert values["psnr_y"] == pytest.approx([peak_signal_noise_ratio(y, x, data_range=255)], abs=1e-9)
    assert values["ssim_y"] == pytest.approx([reference_ssim(y, x)], abs=1e-6)
    y, x = levels(hr)[cut], levels(sr)[cut]
    assert values["psnr_rgb"] == pytest.approx([peak_signal_noise_ratio(y, x, data_range=255)], abs=1e-9)
    assert values["ssim_rgb"] == pytest.approx([reference_ssim(y, x, channel_axis=2)], abs=1e-6)


@pytest.mark.parametrize("preset", PROTOCOLS)
@pytest.mark.parametrize("size", [(40, 52), (139, 300), (270, 19), (11 + 4, 15)])
def test_values_are_torchmetrics(preset, size):
    """The reference pads by reflection and convolves with the whole window; its valid positions have ours to 1e-9. Two of the
    images are larger than a tile in one or both directions."""
    from torchmetrics.functional.image import peak_signal_noise_ratio as psnr_reference
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim_reference

    hr, rules = photo(size, count=2), protocol(preset, 2)
    sr = worsened(hr, 0.1) + 0.2 / 255
    a, b = inside_border(sr, rules), inside_border(hr, rules)
    pairs = {"y": (luma(a, rules, False), luma(b, rules, False)), "rgb": (a * 255, b * 255)}
    values = ssim.per_image(sr, hr, rules, grey=False) | psnr.per_image(sr, hr, rules, grey=False)
    for channel, (x, y) in pairs.items():
        _, full = ssim_reference(x, y, sigma=1.5, data_range=255.0, reduction="none", return_full_image=True)
        assert values[f"ssim_{channel}"] == pytest.approx(full[..., 5:-5, 5:-5].mean((1, 2, 3)).tolist(), abs=1e-9)
        expected = psnr_reference(x, y, data_range=255.0, reduction="none", dim=(1, 2, 3))
        assert values[f"psnr_{channel}"] == pytest.approx(
            expected.flatten().tolist(), abs=5e-6
        )  # its 255 has a logarithm in fp32


LARGE = """
import resource, sys, torch
from sr_dist.evaluation.metrics import psnr, ssim
from sr_dist.evaluation.protocol import protocol

hr = torch.rand(3, 3, 1356, 2040)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for metric in (psnr, ssim):
    metric.per_image(hr.flip(0), hr, protocol("matlab-y", 4), grey=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


@pytest.mark.slow
def test_a_batch_of_large_images_needs_megabytes():
    """Three images of DIV2K; a whole window in float64 over the whole batch needed 40 GB."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1000  # of which 100 are the flipped images; about 170 are used


def test_tiles_have_every_pixel_and_every_position_of_a_window_once(monkeypatch):
    monkeypatch.setattr("sr_dist.evaluation.protocol.TILE", 7)
    image = torch.arange(20 * 30.0).view(1, 1, 20, 30).expand(1, 3, -1, -1) / 600
    inside = inside_border(image, FLOATS)
    pixels = torch.cat([x[0, 0].flatten() for x, _ in stored_tiles(image, image, FLOATS)])
    assert torch.equal(pixels.sort().values, inside[0, 0].flatten())
    corners = torch.cat([x[0, 0, :-4, :-4].flatten() for x, _ in stored_tiles(image, image, FLOATS, overlap=4)])
    assert torch.equal(corners.sort().values, inside[0, 0, :-4, :-4].flatten())


@pytest.mark.parametrize("difference", [1, 10, 51])
def test_psnr_of_a_constant_difference(difference):
    """Error d everywhere is 20 log10(255 / d); Y's error is (65.481 + 128.553 + 24.966) / 255 = 219 / 255 of it."""
    hr = torch.full((1, 3, 16, 16), 100 / 255, dtype=torch.float64)
    values = psnr.per_image(hr + difference / 255, hr, FLOATS, grey=False)
    assert values["psnr_rgb"] == pytest.approx([20 * math.log10(255 / difference)])
    assert values["psnr_y"] == pytest.approx([20 * math.log10(255 / difference) + 20 * math.log10(255 / 219)])


@pytest.mark.parametrize("preset", PROTOCOLS)
def test_identical_images_have_the_best_value(preset):
    image = photo()
    assert psnr.per_image(image, image, protocol(preset, 2), grey=False) == {"psnr_y": [100.0], "psnr_rgb": [100.0]}
    result = ssim.per_image(image, image, protocol(preset, 2), grey=False)
    assert result["ssim_y"] == pytest.approx([1.0]) and result["ssim_rgb"] == pytest.approx([1.0])


def test_a_batch_is_not_pooled():
    hr = photo(count=3)
    sr = torch.cat([worsened(hr[:1], 0.01), worsened(hr[1:2], 0.1), hr[2:]])
    rules = protocol("matlab-y", 2)
    for metric in (psnr, ssim):
        together = metric.per_image(sr, hr, rules, grey=False)
        alone = [metric.per_image(sr[i : i + 1], hr[i : i + 1], rules, grey=False) for i in range(3)]
        for column, values in together.items():
            assert values == pytest.approx([one[column][0] for one in alone], abs=1e-9)
            assert values[0] > values[1] + 0.01 and values[2] > values[0]


def test_the_border_is_left_out():
    hr = photo()
    sr = hr.clone()
    sr[..., :4, :], sr[..., -4:, :], sr[..., :4], sr[..., -4:] = 0, 0, 0, 0
    assert psnr.per_image(sr, hr, protocol("matlab-y", 4), grey=False)["psnr_y"] == [100.0]
    assert ssim.per_image(sr, hr, protocol("matlab-y", 4), grey=False)["ssim_y"] == pytest.approx([1.0])
    assert psnr.per_image(sr, hr, protocol("matlab-y", 3), grey=False)["psnr_y"][0] < 40
    assert psnr.per_image(sr, hr, protocol("rgb-float", 4), grey=False)["psnr_rgb"][0] < 20


def test_an_image_stored_grey_is_its_own_y():
    hr = photo()[:, :1].repeat(1, 3, 1, 1)
    sr = worsened(hr[:, :1]).repeat(1, 3, 1, 1)
    rules = protocol("matlab-y", 2)
    y, x = levels(hr)[2:-2, 2:-2, 0], levels(sr)[2:-2, 2:-2, 0]
    values = psnr.per_image(sr, hr, rules, grey=True)
    assert values["psnr_y"] == pytest.approx([peak_signal_noise_ratio(y, x, data_range=255)])
    assert values["psnr_y"] == pytest.approx(values["psnr_rgb"])
    assert ssim.per_image(sr, hr, rules, grey=True)["ssim_y"] == pytest.approx([reference_ssim(y, x)], abs=1e-6)
    through_bt601 = psnr.per_image(sr, hr, rules, grey=False)["psnr_y"][0]
    assert through_bt601 - values["psnr_y"][0] == pytest.approx(20 * math.log10(255 / 219), abs=0.1)  # 1.32 dB


@pytest.mark.parametrize(
    ("preset", "psnr_rgb"), [("matlab-y", 100.0), ("basicsr", 100.0), ("rgb-float", 20 * math.log10(255 / 0.25))]
)
def test_8_bit_presets_round_before_they_compare(preset, psnr_rgb):
    hr = torch.full((1, 3, 24, 24), 100 / 255, dtype=torch.float64)
    assert psnr.per_image(hr + 0.25 / 255, hr, protocol(preset, 2), grey=False)["psnr_rgb"] == pytest.approx([psnr_rgb])


def test_values_outside_0_to_1_are_clipped():
    hr = torch.ones(1, 3, 24, 24, dtype=torch.float64)
    assert psnr.per_image(hr + 0.3, hr, protocol("rgb-float", 2), grey=False)["psnr_rgb"] == [100.0]


def test_fp32_and_half_precision_are_measured_in_float64():
    hr = photo()
    sr = worsened(hr)
    exact = psnr.per_image(sr, hr, protocol("matlab-y", 2), grey=False)["psnr_y"]
    assert psnr.per_image(sr.float(), hr.float(), protocol("matlab-y", 2), grey=False)["psnr_y"] == pytest.approx(exact, abs=1e-9)
    values = psnr.per_image(sr.bfloat16(), hr.float(), FLOATS, grey=False)["psnr_rgb"]
    assert values == pytest.approx(psnr.per_image(sr.bfloat16().double(), hr.float().double(), FLOATS, grey=False)["psnr_rgb"])


@pytest.mark.parametrize(("size", "exists"), [((15, 15), True), ((14, 30), False), ((30, 14), False), ((11, 11), False)])
def test_ssim_needs_eleven_pixels_inside_the_border(size, exists):
    image = photo(size)
    result = ssim.per_image(image, image, protocol("matlab-y", 2), grey=False)
    assert all(math.isfinite(values[0]) == exists for values in result.values())


def test_nothing_inside_the_border_is_nan():
    image = torch.rand(2, 3, 8, 8)
    assert all(
        math.isnan(v) for values in psnr.per_image(image, image, protocol("matlab-y", 4), grey=False).values() for v in values
    )
    assert all(len(values) == 2 for values in psnr.per_image(image, image, protocol("matlab-y", 4), grey=False).values())


@pytest.mark.parametrize("module", MODULES)
def test_every_metric_states_its_facts_as_literals(module):
    path = Path(module.__file__)
    assert plugins.literal(path, "BETTER") == module.BETTER
    assert plugins.literal(path, "NEEDS") == getattr(module, "NEEDS", None)
    assert plugins.literal(path, "VIEW") == getattr(module, "VIEW", None)
    assert set(module.BETTER.values()) <= {"higher", "lower"}


@pytest.mark.parametrize("module", OF_IMAGES)
@pytest.mark.parametrize("count", [1, 3])
def test_every_metric_gives_a_number_per_image_under_the_names_it_states(module, count, lpips_weights):
    hr = photo((64, 64), count=count)
    result = module.per_image(worsened(hr).float(), hr.float(), protocol("matlab-y", 2), grey=False)
    assert set(result) == set(module.BETTER)
    assert all(
        len(values) == count and all(isinstance(v, float) and math.isfinite(v) for v in values) for values in result.values()
    )


@pytest.mark.parametrize("module", OF_IMAGES)
def test_every_metric_prefers_less_noise(module, lpips_weights):
    hr = photo((64, 64))
    good, bad = (module.per_image(worsened(hr, amount), hr, protocol("matlab-y", 2), grey=False) for amount in (0.02, 0.2))
    for column, sense in module.BETTER.items():
        assert (good[column][0] > bad[column][0]) == (sense == "higher")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(PROTOCOLS)))
def test_exchanging_the_images_changes_nothing(seed, preset):
    a, b = photo((20, 24), seed), photo((20, 24), seed + 1)
    for metric in (psnr, ssim):
        one, other = (metric.per_image(*images, protocol(preset, 2), grey=False) for images in ((a, b), (b, a)))
        assert all(one[column] == pytest.approx(other[column]) for column in one)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_packages_own(net, lpips_weights):
    """On whole 8-bit images in [-1, 1]; the backbone is loaded into the package's own network."""
    from lpips import LPIPS

    file = next(file for file, name in BACKBONES.items() if name.startswith(net))
    state = torch.load(lpips_weights / file, weights_only=True)
    package = LPIPS(net=net, pnet_rand=True, verbose=False)
    for name, parameter in package.net.named_parameters():
        parameter.data = state["features." + name.split(".", 1)[1]]
    hr = photo((40, 44), count=2)
    sr = worsened(hr, 0.1) + 0.2 / 255  # rounded away
    with torch.no_grad():
        expected = package(2 * worsened(hr, 0.1).float() - 1, 2 * hr.float() - 1).flatten().tolist()
        values = lpips.per_image(sr, hr, protocol("matlab-y", 4), grey=False)[f"lpips_{net}"]
    assert values == pytest.approx(expected, rel=1e-5)
    assert min(values) > 1e-4


@pytest.mark.parametrize(("net", "size"), [("alex", (256, 250)), ("alex", (161, 385)), ("alex", (129, 33)), ("vgg", (150, 141))])
def test_lpips_in_tiles_is_that_of_the_whole_image(net, size, lpips_weights, monkeypatch):
    """Tiles of 64 pixels and 112 around them; the same with too little around them is another number."""
    hr = photo(size)
    x, y = (2 * images.float() - 1 for images in (worsened(hr, 0.2), hr))
    network = lpips._network(net, torch.device("cpu"))
    with torch.no_grad():
        whole = network(x, y).flatten().tolist()
        monkeypatch.setattr(lpips, "WHOLE", 1000)
        monkeypatch.setattr(lpips, "TILE", 64)
        assert lpips.distances(network, x, y) == pytest.approx(whole, rel=2e-6)
        monkeypatch.setattr(lpips, "HALO", 48)
        assert lpips.distances(network, x, y) != pytest.approx(whole, rel=2e-6)


def test_lpips_of_a_large_batch_is_that_of_each_image(lpips_weights, monkeypatch):
    hr = photo((64, 60), count=5)
    x, y = (2 * images.float() - 1 for images in (worsened(hr, 0.2), hr))
    network = lpips._network("alex", torch.device("cpu"))
    with torch.no_grad():
        together = network(x, y).flatten().tolist()
        monkeypatch.setattr(lpips, "WHOLE", 2 * 64 * 60)
        assert lpips.distances(network, x, y) == pytest.approx(together, rel=1e-6)


def test_lpips_has_no_number_below_31_pixels(lpips_weights):
    result = lpips.per_image(photo((30, 64)), photo((30, 64)), protocol("matlab-y", 2), grey=False)
    assert all(math.isnan(values[0]) for values in result.values())


def test_a_metric_without_weights_is_missing_with_the_place_and_the_rest_is_measured(backbones, tmp_path, monkeypatch):
    lpips._network.cache_clear()
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr(pretrained, "verified", lambda path, *_: path)
    (tmp_path / "vgg16-397923af.pth").symlink_to(backbones / "vgg16-397923af.pth")
    metrics = open_metrics(["psnr", "lpips", "fid"], torch.device("cpu"))
    assert metrics.missing.keys() == {"lpips_alex", "fid"}
    assert f"put it at '{tmp_path / 'alexnet-owt-7be5be79.pth'}'" in metrics.missing["lpips_alex"]
    assert f"put it at '{tmp_path / 'inception-2015-12-05.pt'}'" in metrics.missing["fid"]
    assert metrics.extractor is None
    assert lpips.per_image(photo(), photo(), protocol("matlab-y", 2), grey=False).keys() == {"lpips_vgg"}


def test_other_features_never_bear_the_name_of_the_inception(stand_in):
    own = torchscript(stand_in, "clean", torch.device("cpu"))
    metrics = open_metrics(["psnr", "fid", "kid", "patch_fid", "class_fid"], torch.device("cpu"), extractor=own)
    names = ["psnr_y", "psnr_rgb", "fd_toy", "kd_toy", "patch_fd_toy", "class_fd_toy"]
    assert list(metrics.better) == names
    assert metrics.missing == {}


def test_a_file_without_the_functions_of_a_metric_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own_metrics").mkdir()
    (tmp_path / "own_metrics" / "empty.py").write_text('BETTER = {"empty": "lower"}\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^metrics: '.*empty\.py' has neither BETTER and per_image, as a metric of images, nor "):
        open_metrics(["own_metrics.empty"], torch.device("cpu"))


OWN = """
BETTER = {"own": "lower"}


def per_image(sr, hr, protocol, grey):
    return {"%s": [1.0] * %s}
"""


@pytest.fixture
def own_metric(tmp_path, monkeypatch):
    """`own_metric("twin", text)` -> the dotted name of a file of the user's own."""
    package = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / package).mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / package / f"{name}.py").write_text(text)
        return f"{package}.{name}"

    return write


def test_a_column_of_two_metrics_is_refused(own_metric):
    twin = own_metric("twin", OWN.replace('"own"', '"psnr_y"') % ("psnr_y", 1))
    with pytest.raises(
        UserError, match=r"^metrics: the column 'psnr_y' of 'twin' is that of 'psnr', too; rename it in its BETTER$"
    ):
        open_metrics(["psnr", twin], torch.device("cpu"))
    assert len(open_metrics(["psnr", "psnr"], torch.device("cpu")).modules) == 1
    name = own_metric("name", OWN.replace('"own"', '"image"') % ("image", 1))
    with pytest.raises(UserError, match=r"^metrics: the column 'image' of 'name' is taken"):
        open_metrics([name], torch.device("cpu"))


@pytest.mark.parametrize(("column", "count", "stated"), [("own", "(len(sr) + 1)", 4), ("other", "len(sr)", 3), ("own", "0", 0)])
def test_a_metric_returns_one_value_per_image(own_metric, photographs, column, count, stated):
    name = own_metric("wrong", OWN % (column, count))
    scoring = Scoring(protocol("matlab-y", 2), open_metrics([name], torch.device("cpu")), torch.device("cpu"))
    message = (
        rf"^metrics: 'wrong' returns {stated} values of '{column}' for 3 images; it must return one per image, of the columns"
    )
    with pytest.raises(UserError, match=message):
        score({"bicubic": baseline("bicubic", 2)}, batches(photographs(3)), scoring)
