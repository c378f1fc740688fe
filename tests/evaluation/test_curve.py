"""The perception-distortion curve of a small run made by hand: which way is better, what is refused first, and its cost."""

from __future__ import annotations

import gc
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run
from safetensors.torch import save_file
from scipy import stats

from sr_dist import curve
from sr_dist.core.plugins import PACKAGES
from sr_dist.evaluation import curve as curves
from sr_dist.evaluation import intervals
from sr_dist.models import trained
from sr_dist.models.generators.srcnn import SRCNN
from sr_dist.models.metadata import generator_metadata
from sr_dist.models.post_hoc_ema import SIGMAS, prefix

SECTION = {"name": "srcnn", "widths": [4, 2], "kernels": [3, 1, 3], "skip": "bicubic"}
DETAIL = """
BETTER = {"detail": "higher"}

def per_image(sr, hr, protocol, grey):
    return {"detail": [float((image[:, :, 1:] - image[:, :, :-1]).abs().mean()) for image in sr.double()]}
"""
NOTHING = (
    'BETTER = {"nothing": "lower"}\n\ndef per_image(sr, hr, protocol, grey):\n    return {"nothing": [float("nan")] * len(sr)}\n'
)


def weights(seed: int) -> dict[str, torch.Tensor]:
    network = trained.build(PACKAGES["generator"], SECTION, 2, "generator")
    draw = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(value.shape, generator=draw) for name, value in network.state_dict().items()}


@pytest.fixture
def place(tmp_path, monkeypatch, photographs) -> Path:
    """A run with snapshots of steps 10 and 20; its pixel stage is in the weights folder, under the name that its recipe has."""
    run = tmp_path / "gan"
    (run / "checkpoints" / "0000020").mkdir(parents=True)
    (run / "post_hoc").mkdir()
    (run / "recipe.yaml").write_text("init: {generator: pixel_stage}\n")
    facts = generator_metadata(SECTION, 2)
    save_file(weights(0), run / "checkpoints" / "0000020" / "generator.ema.safetensors", facts)
    for step in (10, 20):
        averages = [(sigma, weights(step + number)) for number, sigma in enumerate(SIGMAS)]
        tensors = {f"{prefix(sigma)}{name}": value for sigma, average in averages for name, value in average.items()}
        save_file(tensors, run / "post_hoc" / f"{step:07d}.safetensors")
    (tmp_path / "weights").mkdir()
    save_file(weights(1), tmp_path / "weights" / "pixel_stage.safetensors", facts)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "detail.py").write_text(DETAIL)
    (tmp_path / "own" / "nothing.py").write_text(NOTHING)
    photographs(2).rename(tmp_path / "images")
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(*words: str, metrics: str = "psnr,ssim") -> int:
    return curve.main(["gan", "--data=images", "--lengths=0.05,0.1", "--alphas=0,0.5,1", f"--metrics={metrics}", *words])


def test_a_column_of_which_more_is_better_stands_upside_up(place, capsys):
    """That of a plug-in says so itself. The point of the most detail is on the frontier and highest in the picture."""
    assert draw("--perception=detail", metrics="psnr,own.detail") == 0, capsys.readouterr().err
    tree = json.loads((place / "curve" / "curve.json").read_text())
    assert tree["better"] == "higher"
    values = {point["name"]: (point["psnr_y"]["value"], point["detail"]["value"]) for point in tree["points"]}
    best = {
        name for name, (x, y) in values.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in values.values())
    }  # fmt: skip
    assert {point["name"] for point in tree["points"] if point["on_frontier"]} == best
    marks = re.findall(
        r'class="mark" cx="[\d.]+" cy="([\d.]+)".*?<title>(\w[\w.]*):', (place / "curve" / "curve.html").read_text()
    )
    heights = {name: -float(y) for y, name in marks}
    assert sorted(heights, key=heights.__getitem__) == sorted(values, key=lambda name: values[name][1]) and len(heights) == 5


@pytest.mark.parametrize(
    ("words", "metrics", "message"),
    [
        (["--perception=lpips_alex"], "psnr,ssim,lpips", "perception: 'lpips_alex' cannot be computed: "),
        (["--perception=lpips_alexx"], "psnr,ssim,lpips", "perception: no column 'lpips_alexx'; did you mean 'lpips_alex'?"),
        ([], "psnr,lpips", "perception: no perceptual column can be computed; "),
        (["--pixel=pixel_stege"], "psnr,ssim", "pixel: no run folder or weights file 'pixel_stege'"),
        ([], "psnr,own.detale", "metrics: "),
        ([], "psnr,pyiqa:musiq", "metrics: 'pyiqa:musiq' needs the package pyiqa; "),
    ],
)
def test_mistakes_are_reported_before_a_network_runs(place, words, metrics, message, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("an image was scored")

    monkeypatch.setattr(SRCNN, "forward", refuse)
    monkeypatch.setattr("sr_dist.evaluate.find_spec", lambda name: None)
    assert draw(*words, metrics=metrics) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("words", "metrics", "size", "message"),
    [
        (["--perception=nothing"], "psnr,own.nothing", 40, "perception: 'nothing' has no value"),
        (["--perception=detail"], "psnr,own.detail", 4, "perception: 'psnr_y' has no value"),  # the border takes all
    ],
)
def test_a_curve_without_points_is_one_line(place, photographs, words, metrics, size, message, capsys):
    data = photographs(3, size, size)
    assert draw(*words, f"--data={data}", metrics=metrics) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1, err


def test_intervals_end_where_their_metric_does(place, capsys):
    """Student's interval of two images reaches 12.7 standard errors to each side. That of a flat image is near 1."""
    Image.new("RGB", (48, 40), (90, 120, 150)).save(place / "images" / "01.png")
    assert draw() == 0, capsys.readouterr().err
    tree = json.loads((place / "curve" / "curve.json").read_text())
    ends = [(point["ssim_y"]["low"], point["ssim_y"]["value"], point["ssim_y"]["high"]) for point in tree["points"]]
    assert tree["perception"] == "ssim_y" and all(-1 <= low < value < high <= 1 for low, value, high in ends), ends
    assert any(high == 1 for *_, high in ends)


def test_the_last_line_is_a_command_that_exports_a_point_of_the_grid(place, capsys):
    """With the words that the user gave."""
    Path("gan").rename("a gan")
    pixel = "--pixel=weights/pixel_stage.safetensors"
    words = ["a gan", pixel, "--data=images", "--lengths=0.05", "--alphas=0,0.5,1", "--metrics=psnr,ssim"]
    assert curve.main(words) == 0, capsys.readouterr().err
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("To export a point: ")]
    assert line in (place / "curve" / "curve.md").read_text()
    command = shlex.split(line.removeprefix("To export a point: "))
    assert command[:5] == ["python", "-m", "sr_dist.curve", "a gan", pixel]
    names = {point["name"] for point in json.loads((place / "curve" / "curve.json").read_text())["points"]}
    assert f"ema{command[-2].removeprefix('--ema=')}_a{command[-1].removeprefix('--alpha=')}" in names
    assert curve.main(command[3:]) == 0, capsys.readouterr().err
    assert Path("point.safetensors").is_file()


def test_psnr_alone_is_refused_before_the_run_is_opened(place, monkeypatch, capsys):
    """Which takes as long as reading its weights."""
    monkeypatch.setattr(curves, "open_stages", lambda *_: pytest.fail("the run was opened"))
    assert draw(metrics="psnr") == 2
    assert "error: metrics: psnr alone" in capsys.readouterr().err


def test_the_pixel_stage_of_the_recipe_that_is_nowhere_is_one_line(place, capsys):
    (place / "weights" / "pixel_stage.safetensors").unlink()
    assert draw() == 2
    err = capsys.readouterr().err
    assert "pixel: no run folder or weights file 'pixel_stage'" in err and "--pixel=PATH" in err and err.count("\n") == 1


def test_a_grid_reads_snapshots_once_per_length_and_holds_a_network_per_length(place, monkeypatch, capsys):
    """Two lengths and five shares are nine points. Networks in memory while one runs: the pixel stage, the newest EMA, two
    averages, and the one into which points are mixed."""
    read, hashed, most = [], [], 0
    from sr_dist.models import weights_files

    open_file, digest, forward = weights_files.read, curves.sha256, SRCNN.forward

    def counted(path, key):
        read.append(path.name)
        return open_file(path, key)

    def digested(path):
        hashed.append(path.name)
        return digest(path)

    def watched(self, lr):
        nonlocal most
        most = max(most, sum(isinstance(one, SRCNN) for one in gc.get_objects()))
        return forward(self, lr)

    monkeypatch.setattr(weights_files, "read", counted)
    monkeypatch.setattr(curves, "sha256", digested)
    monkeypatch.setattr(SRCNN, "forward", watched)
    assert draw("--alphas=0,0.25,0.5,0.75,1") == 0, capsys.readouterr().err
    assert len(json.loads((place / "curve" / "curve.json").read_text())["points"]) == 9
    snapshots = ["0000010.safetensors", "0000020.safetensors"]
    assert sorted(name for name in read if name in snapshots) == sorted(2 * snapshots)
    assert sorted(hashed) == snapshots
    assert most == 5


def test_points_of_the_grid_are_the_networks_that_are_exported(place, capsys):
    """One by one, each alone in an evaluation of its own."""
    from sr_dist import evaluate

    assert draw() == 0, capsys.readouterr().err
    grid = json.loads((place / "curve" / "report.json").read_text())
    for length, alpha in ((0.05, 0.5), (0.1, 0.5), (0.1, 1)):
        assert export(f"--ema={length}", f"--alpha={alpha}", "--overwrite") == 0
        assert evaluate.main(["point.safetensors", "--data=images", "--metrics=psnr,ssim", "--out=alone"]) == 0
        own = json.loads((place / "alone" / "report.json").read_text())["methods"]["point"]
        assert own == grid["methods"][f"ema{length:g}_a{alpha:g}"]
    assert evaluate.main(["weights/pixel_stage.safetensors", "--data=images", "--metrics=psnr,ssim", "--out=alone"]) == 0
    own = json.loads((place / "alone" / "report.json").read_text())["methods"]["pixel_stage"]
    assert own == grid["methods"]["pixel"]
    sources = grid["sources"].values()
    assert len({source["sha256"] for source in sources}) == 5
    assert {source["parameters"] for source in sources} == {sum(value.numel() for value in weights(0).values())}


def export(*words: str) -> int:
    return curve.main(["gan", "--export=point.safetensors", *words])


def test_an_export_asks_before_it_replaces_a_file(place, capsys):
    """As export and interpolate do. The same point again is no other content."""
    assert [export("--ema=0.05"), export("--ema=0.05")] == [0, 0], capsys.readouterr().err
    first = Path("point.safetensors").read_bytes()
    assert export("--ema=0.2") == 2
    err = capsys.readouterr().err
    assert "export: 'point.safetensors' would be overwritten; say --overwrite" in err and err.count("\n") == 1, err
    assert Path("point.safetensors").read_bytes() == first
    assert export("--ema=0.2", "--overwrite") == 0
    assert Path("point.safetensors").read_bytes() != first
    assert export("--export=point.txt") == 2
    assert "export: 'point.txt' does not end in" in capsys.readouterr().err


def test_an_export_without_ema_and_alpha_is_the_gan_at_a_tenth(place, capsys):
    assert [export(), export("--ema=0.1", "--alpha=1")] == [0, 0], capsys.readouterr().err


@pytest.mark.parametrize("word", ["--ema=0.1", "--alpha=0", "--alpha=1", "--overwrite"])
def test_options_of_an_export_are_refused_without_one(place, word, capsys):
    assert draw(word) == 2
    err = capsys.readouterr().err
    assert f"error: {word[2:].split('=')[0]}: only --export uses it; " in err and err.count("\n") == 1, err
    assert not (place / "curve").exists()


@pytest.mark.slow
def test_of_two_ranks_one_exports(place):
    """The first writes the file and prints its line; both close the process group."""
    words = [str(place / "gan"), f"--pixel={place / 'weights' / 'pixel_stage.safetensors'}", "--alpha=0.5"]
    out, _ = run(2, "exporting", *words, f"--export={place / 'point.safetensors'}", cwd=Path(__file__).parent)
    assert sorted(line for line in out.splitlines() if line.startswith("code")) == [
        "code 0, written 0, ranks 1",
        "code 0, written 1, ranks 1",
    ]
    assert out.count(" -> ") == 1 and (place / "point.safetensors").is_file()


def test_the_interval_of_a_mean_is_students():
    values = [1.0, 2.0, 4.0, 8.0]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert intervals.mean_interval(values) == pytest.approx((np.mean(values), theirs.low, theirs.high))
    assert intervals.mean_interval([1.0]) is None
