"""Exported files give the same function: in our reader, in plain torch and in the readers of other projects."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.export import Export
from sr_dist.export import export as command
from sr_dist.models import export, onnx_outputs, trained
from sr_dist.models.metadata import generator_metadata

SECTIONS = {
    "rrdb": ({"name": "rrdb", "num_blocks": 1, "width": 8, "growth": 32}, 4),
    "rrdb x2": ({"name": "rrdb", "num_blocks": 1, "width": 8, "growth": 32}, 2),
    "rrdb x2 without unshuffle": ({"name": "rrdb", "num_blocks": 1, "width": 8, "growth": 32, "unshuffle": False}, 2),
    "msrresnet": ({"name": "msrresnet", "num_blocks": 2, "width": 6}, 4),
    "msrresnet of MMagic": ({"name": "msrresnet", "num_blocks": 2, "width": 6, "shuffle_activation": False}, 2),
    "srresnet": ({"name": "srresnet", "num_blocks": 2, "width": 6}, 4),
    "srresnet, tanh": ({"name": "srresnet", "num_blocks": 2, "width": 6, "output": "tanh"}, 2),
    "srcnn": ({"name": "srcnn", "widths": [8, 6]}, 3),
    "srcnn, grey, skip": ({"name": "srcnn", "widths": [8, 6], "channels": 1, "skip": "bicubic"}, 2),
    "srugan": (
        {"name": "srugan", "widths": [4, 6], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2, "skip": "bicubic"},
        2,
    ),
}
# Cases that the tensors alone describe; the others need metadata in the file.
SELF_EVIDENT = {"rrdb", "rrdb x2", "rrdb x2 without unshuffle", "msrresnet", "srresnet"}


def network(case, seed=0):
    torch.manual_seed(seed)
    section, scale = SECTIONS[case]
    built = trained.build(PACKAGES["generator"], section, scale, "generator")
    with torch.no_grad():
        for value in built.state_dict().values():
            if value.is_floating_point():
                value += 0.05 * (torch.rand_like(value) - 0.5)  # the statistics of batch normalization too
    return built.eval()


@pytest.fixture
def make_run(tmp_path):
    """`make_run(case)` -> (a run folder, its raw network, its EMA)."""

    def make(case, name="tried"):
        section, scale = SECTIONS[case]
        raw, ema = network(case, 1), network(case, 2)
        place = tmp_path / "runs" / name / "checkpoints" / "0000100"
        place.mkdir(parents=True)
        (place.parent.parent / "recipe.yaml").write_text(f"name: {name}\n")
        save_file(raw.state_dict(), place / "generator.safetensors")
        about = generator_metadata(trained.complete(section, "generator"), scale)
        save_file(ema.state_dict(), place / "generator.ema.safetensors", about)
        return place.parent.parent, raw, ema

    return make


def written(source, out):
    """The line that the command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command(Export(source=str(source), out=str(out)))
    return printed.getvalue().strip()


def images(case, *size):
    return torch.rand(1, SECTIONS[case][0].get("channels", 3), *size)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("case", SECTIONS)
@torch.no_grad()
def test_an_exported_file_is_read_back_as_the_same_network(case, suffix, make_run, tmp_path):
    run, _, ema = make_run(case)
    line = written(run, tmp_path / f"out{suffix}")
    assert line.startswith(f"{tmp_path / f'out{suffix}'}: {SECTIONS[case][0]['name']} x{SECTIONS[case][1]}, ")
    actual = trained.open_generator(str(tmp_path / f"out{suffix}"))
    lr = images(case, 7, 6)
    assert actual.scale == SECTIONS[case][1]
    assert torch.equal(actual.network(lr), ema(lr))


@pytest.mark.parametrize("case", SECTIONS)
def test_a_pth_holds_the_raw_weights_and_their_average(case, make_run, tmp_path):
    run, raw, ema = make_run(case)
    written(run, tmp_path / "out.pth")
    actual = torch.load(tmp_path / "out.pth", weights_only=True)
    assert actual.keys() - {"sr_dist"} == {"params", "params_ema"}
    assert ("sr_dist" not in actual) == (case in SELF_EVIDENT)
    for name, expected in (("params", raw), ("params_ema", ema)):
        assert all(torch.equal(actual[name][key], value) for key, value in expected.state_dict().items())
        assert actual[name].keys() == expected.state_dict().keys()


def test_a_weights_file_has_no_average_beside_it(make_run, tmp_path):
    run, _, ema = make_run("rrdb")
    written(run, tmp_path / "a.safetensors")
    written(tmp_path / "a.safetensors", tmp_path / "b.pth")
    actual = torch.load(tmp_path / "b.pth", weights_only=True)
    assert actual.keys() == {"params"}
    assert torch.equal(actual["params"]["conv_last.weight"], ema.conv_last.weight)


def test_a_safetensors_file_states_its_whole_generator_section(make_run, tmp_path):
    run, _, _ = make_run("rrdb")
    written(run, tmp_path / "deep" / "folder" / "out.safetensors")
    with safe_open(tmp_path / "deep" / "folder" / "out.safetensors", "pt") as opened:
        stated = json.loads(opened.metadata()["sr_dist"])
    assert stated["scale"] == 4 and stated["generator"]["growth"] == 32 and stated["generator"]["channels"] == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("case", ["rrdb", "rrdb x2", "rrdb x2 without unshuffle"])
@torch.no_grad()
def test_spandrel_reads_exported_files(case, suffix, make_run, tmp_path):
    spandrel = pytest.importorskip("spandrel")
    run, _, ema = make_run(case)
    written(run, tmp_path / f"out{suffix}")
    reference = spandrel.ModelLoader().load_from_file(tmp_path / f"out{suffix}")
    lr = images(case, 8, 6)
    assert reference.scale == SECTIONS[case][1]
    torch.testing.assert_close(reference.model.eval()(lr), ema(lr), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", ["rrdb", "rrdb x2", "msrresnet", "srresnet", "srcnn", "srcnn, grey, skip", "srugan"])
@torch.no_grad()
def test_onnx_takes_images_of_any_size(case, make_run, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run, _, ema = make_run(case)
    assert "of torch in onnxruntime at 3 sizes" in written(run, tmp_path / "out.onnx")
    session = ort.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    scale = SECTIONS[case][1]
    assert session.get_inputs()[0].shape[::2] == ["batch", "height"] and session.get_inputs()[0].shape[3] == "width"
    assert [str(side) for side in session.get_outputs()[0].shape[2:]] == [f"{scale}*height", f"{scale}*width"]
    for size in ((5, 7), (16, 12), (1, 1), (40, 3)):
        lr = images(case, *size)
        (actual,) = session.run(["sr"], {"lr": lr.numpy()})
        torch.testing.assert_close(torch.from_numpy(actual), ema(lr), atol=1e-5, rtol=1e-5)


class Reflecting(torch.nn.Module):
    """Decides by the size of its input, as many published networks do: the graph has the branch of the image that was traced."""

    def forward(self, lr):
        small = lr.shape[-1] < 3 or lr.shape[-2] < 3
        edge = torch.nn.functional.pad(lr, (2, 2, 2, 2), mode="replicate" if small else "reflect")
        large = torch.nn.functional.avg_pool2d(edge, 5, 1)
        return torch.nn.functional.interpolate(large, scale_factor=2, mode="nearest")


def test_a_graph_that_runs_at_one_size_only_is_refused_with_what_works(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    generator = trained.TrainedGenerator("made", None, 2, Reflecting().eval(), tmp_path / "a.pth", "", {"name": "reflecting"})
    message = (
        r"^OUT: onnxruntime cannot run the ONNX graph of 'reflecting' on 3 x 3 x 1 x 1 \(InvalidArgument\); "
        r"write a \.safetensors or \.pth$"
    )
    with pytest.raises(UserError, match=message):
        export.write(generator, None, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_graph_that_ends_the_process_of_onnxruntime_is_told_apart(tmp_path, monkeypatch):
    """As a graph of spandrel's OmniSR does, which divides by zero."""
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\ntouch $3/0.sr.npy; kill -FPE $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crash))
    with pytest.raises(onnx_outputs.GraphFailed, match=r"^SIGFPE$") as told:
        onnx_outputs.outputs(b"", [np.zeros((1, 3, 4, 4), np.float32)] * 2)
    assert told.value.done == 1


def test_the_error_about_onnx_names_the_packages_to_install(make_run, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else find_spec(name))
    run, _, _ = make_run("rrdb")
    with pytest.raises(
        UserError, match=r"^OUT: \.onnx needs onnx, onnxscript, onnxruntime: pip install onnx onnxscript onnxruntime, or"
    ):
        written(run, tmp_path / "out.onnx")


def test_a_file_is_not_overwritten_with_itself(make_run, tmp_path):
    run, _, _ = make_run("rrdb")
    written(run, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"^OUT: '.*a\.safetensors' is the file that is read"):
        written(tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_mistakes_are_reported_before_anything_heavy_is_loaded(run_fresh, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    a, out = str(tmp_path / "a.pth"), str(tmp_path / "out.pth")
    mistakes = [
        ("sr_dist.export", [a], "OUT is missing"),
        ("sr_dist.export", [str(tmp_path / "b.pth"), out], "RUN: no run folder or weights file"),
        ("sr_dist.export", [a, str(tmp_path / "out.ptl")], "does not end in .safetensors, .pth or .onnx"),
        ("sr_dist.export", [a, str(tmp_path / "folder.pth")], "is a folder"),
        ("sr_dist.export", [a, out, "--scal=2"], "scal: unknown option; did you mean 'scale'"),
        ("sr_dist.export", [a, out, "--out=x.pth"], "out: this is a word of the command"),
        ("sr_dist.interpolate", [a, a, out], "alpha: this key is missing"),
        ("sr_dist.interpolate", [a, a, out, "--alpha=1.5"], "alpha: "),
        ("sr_dist.interpolate", [a, str(tmp_path / "b.pth"), out, "--alpha=0.5"], "B: no run folder or weights file"),
        ("sr_dist.export", ["a_x4_that_no_folder_has", out], "nor is it in "),
        ("sr_dist.interpolate", [a, "a_x4_that_no_folder_has", out, "--alpha=0.5"], "nor is it in "),
        ("sr_dist.evaluate", ["a_x4_that_no_folder_has", "--data=."], "nor is it in "),
        ("sr_dist.upscale", ["a_x4_that_no_folder_has", a, "x.png"], "nor is it in "),
        ("sr_dist.upscale", [a, str(tmp_path / "no.png"), "x.png"], "INPUT: nothing is at"),
        ("sr_dist.upscale", [a, a, str(tmp_path / "x.gif")], "OUTPUT: "),
        ("sr_dist.upscale", [a, a, str(tmp_path / "x.png"), "--tile=0"], "tile: "),
        ("sr_dist.upscale", [a, a, str(tmp_path / "x.png"), "--format=bmp"], "format: "),
        ("sr_dist.upscale", [a, a, str(tmp_path / "x.png"), "--format=jpg"], "format: jpg, but OUTPUT is"),
        ("sr_dist.upscale", [a, str(tmp_path), a], "OUTPUT: "),
    ]
    answers = run_fresh([(module, words) for module, words, _ in mistakes])
    for (_, _, text), answer in zip(mistakes, answers, strict=True):
        assert answer.code == 2 and text in answer.err and answer.err.count("\n") == 1 and not answer.heavy, (text, answer)
