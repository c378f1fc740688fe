"""Commands end with one line, and lose nothing, on names that collide, full disks, hostile images and damaged records."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import processes
import pytest
from PIL import Image

from sr_dist import plot as plot_command
from sr_dist import upscale as upscale_command
from sr_dist.core.errors import UserError
from sr_dist.data.folder_images import FolderImages
from sr_dist.data.images import contents_of
from sr_dist.evaluation.report import folders
from sr_dist.models import image_files, upscaling
from sr_dist.tools.plot import SPANS, plot_runs, smooth

FILES = Path(__file__).resolve().parents[1] / "version_0_1"
WEIGHTS = FILES / "runs/gan/checkpoints/0000003/generator.ema.safetensors"


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A disk of 100 KiB that is almost full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        (folder / "filling").write_bytes(bytes(96 << 10))
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def assert_one_line(answer, *texts: str) -> None:
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    assert [text for text in texts if text not in answer.err] == [], answer.err


def picture(path: Path, side: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG" if path.suffix == ".jpg" else "PNG")
    return path


# ---- upscale


@pytest.mark.parametrize(
    "names", [("a.png", "a.jpg", "a.png.png"), ("deep/b.tif", "deep/b.png/c.png"), ("a.jpg", "a.webp", "a.jpg.jpg", "x.png")]
)
def test_images_with_one_name_for_their_outputs_are_refused(tmp_path, names, capsys):
    for name in names:
        picture(tmp_path / "in" / name)
    assert upscale_command.main([str(WEIGHTS), str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: INPUT: ") and err.count("\n") == 1
    clash = {"a.png", "a.png.png"} if "a.png" in names else {"b.tif", "b.png/c.png"} if "deep/b.tif" in names else {"a.jpg"}
    assert all(f"{name}'" in err for name in clash), err
    assert not (tmp_path / "out").exists()


def test_outputs_on_a_full_disk_are_one_line(full_disk, tmp_path, run_commands):
    """The image, the weights, the curves and the report are absent, not half there; what was there stays."""
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", 60)
    (full_disk / "x.pth").touch()
    gan, on_disk = FILES / "runs/gan", str(full_disk)
    calls = [
        ("sr_dist.upscale", [str(WEIGHTS), str(tmp_path / "in"), f"{on_disk}/images"]),
        ("sr_dist.export", [str(gan), f"{on_disk}/x.safetensors"]),
        ("sr_dist.export", [str(gan), f"{on_disk}/x.pth"]),
        ("sr_dist.interpolate", [str(gan), str(gan), f"{on_disk}/y.safetensors", "--alpha=0.5"]),
        ("sr_dist.plot", [str(gan), f"--out={on_disk}/curves"]),
        ("sr_dist.evaluate", [str(WEIGHTS), f"--data={tmp_path / 'in'}", "--metrics=psnr", f"--out={on_disk}/report"]),
    ]
    keys = ("OUTPUT: ", "OUT: ", "OUT: ", "OUT: ", "out: ", "out: ")
    for key, answer in zip(keys, run_commands(calls), strict=True):
        assert_one_line(answer, f"error: {key}'{on_disk}/", "No space left on device")
    left = {path.name for path in full_disk.rglob("*") if path.is_file()}
    assert left - {"images.jsonl", "report.md"} == {"filling", "x.pth"}


# ---- evaluate


def png(width: int, height: int, *chunks: tuple[bytes, bytes], tail: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A grey PNG with further chunks before and after its pixels, of which only the first row is there."""
    data = zlib.compress(bytes(width + 1) * min(height, 12))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    everything = [(b"IHDR", header), *chunks, (b"IDAT", data), *tail, (b"IEND", b"")]
    parts = (struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in everything)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


LONG_TEXT = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20)))
JPEG = b"\xff\xd8\xff\xc0\x00\x0b\x08" + struct.pack(">HH", 65500, 65500) + b"\x01\x01\x11\x00\xff\xd9"


def test_hostile_images_are_named_in_one_line(tmp_path, run_commands):
    """Too many pixels, too much text, a JPEG of nothing but a header; as HR and as LR."""
    hostile = {
        "pixels.png": png(30_000, 30_000), "text.png": png(12, 12, LONG_TEXT), "tail.png": png(12, 12, tail=(LONG_TEXT,)),
        "header.jpg": JPEG,
    }  # fmt: skip
    calls = []
    for name, content in hostile.items():
        folder = tmp_path / Path(name).stem
        picture(folder / "hr" / "a.png"), picture(folder / "lr" / name, 6)
        (folder / "hr" / name).write_bytes(content)
        plain = ["bicubic", "--scale=2", "--metrics=psnr", f"--out={tmp_path / 'out'}"]
        calls.append(("sr_dist.evaluate", [*plain, f"--data={folder / 'hr'}"]))
        picture(folder / "hr2" / name), picture(folder / "lr2" / name)
        (folder / "lr2" / name).write_bytes(content)
        calls.append(("sr_dist.evaluate", [*plain, f"--data={folder / 'hr2'}", f"--lr={folder / 'lr2'}"]))
    for (_, words), answer in zip(calls, run_commands(calls), strict=True):
        (name,) = [name for name in hostile if f"/{Path(name).stem}/" in words[-1]]
        assert_one_line(answer, f"{name}' ")
    assert not (tmp_path / "out" / "report.json").exists()


def test_an_image_that_disappears_is_named(tmp_path):
    picture(tmp_path / "a.png")
    images = FolderImages(tmp_path, None, "data")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"^'.*a\.png' cannot be read: No such file or directory$"):
        contents_of(images)


@pytest.mark.slow
def test_file_names_that_are_no_utf8_are_evaluated_and_enlarged(tmp_path):
    """Names of an old archive in Latin-1. A terminal with a strict encoding shows them with a backslash."""
    folder = tmp_path / os.fsdecode(b"b\xfccher")
    image = picture(folder / os.fsdecode(b"caf\xe9.png"))
    picture(folder / "plain.png")
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    report = tmp_path / os.fsdecode(b"a\xfcs")
    words = [str(WEIGHTS), f"--data={folder}", "--metrics=psnr", f"--out={report}"]
    out, _ = processes.finish_with(0, processes.launch(0, "sr_dist.evaluate", *words, **strict))
    assert "\\udcfcs/report.html" in out
    rows = [json.loads(line) for line in (report / "images.jsonl").read_text().splitlines()]
    assert {row["image"] for row in rows} == {image.stem, "plain"}  # the exact names
    (folder / os.fsdecode(b"bad\xe9.png")).write_bytes(b"")
    words = [str(WEIGHTS), str(folder), str(tmp_path / "big")]
    out, _ = processes.finish_with(1, processes.launch(0, "sr_dist.upscale", *words, **strict))
    assert "bad\\udce9.png" in out and "2 of 3 images" in out
    assert (tmp_path / "big" / image.name).is_file()


# ---- plot


def record(folder: Path, *lines: bytes | dict) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "metrics.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    return str(folder)


GOOD = {"step": 1, "images": 8, "loss/l1": 0.5, "images_per_second": 3.0}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"images": 8, "loss/l1": 0.5}, "it has no step"),
        ({**GOOD, "step": None}, "it has no step"),
        ({**GOOD, "step": "two"}, "step is 'two'"),
        ({**GOOD, "step": 10**400}, "step is "),
        ({**GOOD, "images": 1e308}, "images is "),
        ({**GOOD, "loss/l1": "low"}, "loss/l1 is 'low'"),
        ({**GOOD, "validation/psnr_y": [30]}, "validation/psnr_y is "),
        (json.dumps(GOOD).encode().replace(b"l1", b"l\xb1"), "can't decode byte"),
        (b"[" * 100_000, ""),
    ],
    ids=["no step", "null step", "text step", "large step", "large images", "text", "list", "flipped bit", "deep"],
)
def test_a_damaged_row_is_named_in_one_line(tmp_path, capsys, line, reason):
    run = record(tmp_path / "run", GOOD, line, {**GOOD, "step": 3})
    assert plot_command.main([run]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: RUN: line 2 of '{run}/metrics.jsonl' is not a row of metrics") and err.count("\n") == 1
    assert reason in err and err.rstrip().endswith("correct or delete it") and len(err) < 400


@pytest.mark.parametrize("value", [1e308, -1e308, 10**400, 1e999, 5e-324], ids=["+", "-", "whole", "inf", "tiny"])
def test_extreme_values_are_gaps_in_curves(tmp_path, value, recwarn):
    rows = [{**GOOD, "step": i, "images": i, "loss/l1": 0.5 if i % 3 else value, "images_per_second": 3.0} for i in range(1, 130)]
    rows += [{**GOOD, "step": 130, "images_per_second": value, "validation/psnr_y": value, "learning_rate": value}]
    run = record(tmp_path / "run", *(json.dumps(row).replace("Infinity", "1e999").encode() for row in rows))
    plot_runs([run], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"losses.png", "speed.png", "curves.html"}
    assert not [warning for warning in recwarn if "overflow" in str(warning.message)]


def test_a_row_without_a_speed_or_with_null_is_drawn(tmp_path):
    """In a run whose name is no UTF-8."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    run = record(folder, {**GOOD, "images_per_second": None}, {**GOOD, "step": 2}, {"step": 3, "loss/l1": 1.0})
    plot_runs([run], tmp_path / "out")
    assert "caf\\xe9" in (tmp_path / "out" / "curves.html").read_text()


def old_smooth(values: list[float]) -> list[float]:
    """The mean of each window on its own, as it was computed before."""
    reach, means = max(len(values) // (2 * SPANS), 1), []
    for i in range(len(values)):
        window = [value for value in values[max(i - reach, 0) : i + reach + 1] if math.isfinite(value)]
        means.append(math.fsum(window) / len(window) if window else math.nan)
    return means


@pytest.mark.parametrize("seed", range(4))
def test_smoothing_equals_the_mean_of_each_window(seed):
    """To rounding, also where a running sum in floats would lose everything: values of 30 orders of magnitude, and gaps."""
    draw = np.random.default_rng(seed)
    values = (draw.normal(size=1500) * 10.0 ** draw.integers(-15, 15, 1500)).tolist()
    for i in draw.integers(0, 1500, 100):
        values[i : i + seed * 20] = [math.nan] * len(values[i : i + seed * 20])
    values[700] = math.inf
    np.testing.assert_allclose(smooth(values), old_smooth(values), rtol=4e-16, atol=0)


def test_smoothing_of_few_extreme_and_whole_values():
    for values in ([], [1.0], [3, 5], [1e308] * 3, [math.nan, 2.0, math.nan, math.nan]):
        finite = [float(value) for value in values]
        expected = [1e308] * 3 if 1e308 in values else old_smooth(finite)
        np.testing.assert_array_equal(smooth(finite), expected)


def test_smoothing_takes_time_in_proportion_to_the_rows():
    """80,000 rows took 8.5 s. They take less than a quarter of them took then."""
    values = np.random.default_rng(0).normal(size=80_000).tolist()

    def seconds(work, rows) -> float:
        begin = time.process_time()
        work(rows)
        return time.process_time() - begin

    assert seconds(smooth, values) < seconds(old_smooth, values[:20_000])


# ---- folders that may not be read


def test_folders_that_may_not_be_read_are_one_line(tmp_path):
    """As another user: root may read everything."""
    if os.getuid() or subprocess.run(["setpriv", "--reuid=1000", "--clear-groups", "true"], capture_output=True).returncode:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        picture(folder / "locked" / "d" / "a.png")
        picture(folder / "in" / "a.png")
        shutil.copytree(FILES / "runs/gan", folder / "gan")
        (folder / "locked").chmod(0o700)
        folder.chmod(0o777)
        weights = "gan/checkpoints/0000003/generator.ema.safetensors"
        calls = [
            ("sr_dist.upscale", ["gan", "in", "locked/x"]),
            ("sr_dist.upscale", ["locked/x.pth", "in", "out"]),
            ("sr_dist.upscale", [weights, "locked", "out"]),
            ("sr_dist.plot", ["locked"]),
            ("sr_dist.evaluate", [weights, "--data=locked", "--metrics=psnr", "--cache=none"]),
            ("sr_dist.evaluate", [weights, "--data=in", "--metrics=psnr", "--cache=none", "--out=locked"]),
            ("shards.show", ["locked/d"]),
        ]
        path = os.pathsep.join([str(processes.ROOT), str(processes.ROOT / "tests")])
        line = ["setpriv", "--reuid=1000", "--clear-groups", processes.sys.executable, "-m", "run_commands", json.dumps(calls)]
        variables = processes.environment(PYTHONPATH=path, HOME=name)
        result = subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, timeout=processes.LONGEST)
        assert result.stdout, result.stderr
        for (module, words), (code, _, err, _) in zip(calls, json.loads(result.stdout.splitlines()[-1]), strict=True):
            assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (module, words, err)
            assert "locked" in err and "no images" not in err, (module, words, err)


# ---- what a third look found


def test_more_images_with_another_lr_do_not_replace_a_report():
    """`--limit=3 --lr=A`, then all images with `--lr=B`: B's report was written over A's."""
    planned = {"data": "d", "portion": None, "n": 4, "inputs": {"images": "b", "degradation": "bicubic", "lr": "B"},
               "protocol": {}, "methods": [], "columns": [], "digest_of_first": {3: "a"}.get}  # fmt: skip
    old = {"data": "d", "portion": None, "n": 3, "inputs": {"images": "a", "degradation": "bicubic", "lr": "A"},
           "protocol": {}, "methods": {}}  # fmt: skip
    assert not folders.covers(planned, old)
    assert folders.covers(planned, {**old, "inputs": {**old["inputs"], "lr": "B"}})


def test_images_whose_white_is_unknown_are_not_enlarged(tmp_path):
    Image.fromarray(np.full((4, 4), 2_000_000, np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(image_files.ImageFileError, match="32-bit integers have no known white level"):
        image_files.read(tmp_path / "deep.tif")


def test_a_profile_of_other_colours_is_dropped(tmp_path):
    profile = bytes(16) + b"CMYK" + bytes(108)
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg", icc_profile=profile)
    assert image_files.read(tmp_path / "a.jpg").profile is None
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg", icc_profile=bytes(16) + b"RGB " + bytes(108))
    assert image_files.read(tmp_path / "b.jpg").profile is not None


def test_outputs_and_hidden_files_below_the_input_are_no_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/.hidden.png", "in/up/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for out in (Path("in/up"), tmp_path / "in/up", Path("in/../in/up")):
        assert [source.name for source, _ in upscaling.targets(Path("in"), out, "png")] == ["a.png"]
        assert len(upscaling.targets(Path("in"), out, "png")) == 1


def test_a_last_row_without_its_end_is_drawn(tmp_path, run_commands):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "images": 8, "loss/l1": 0.5}')
    (tmp_path / "run" / "recipe.yaml").touch()
    (answer,) = run_commands([("sr_dist.plot", [str(tmp_path / "run"), f"--out={tmp_path / 'out'}"])])
    assert answer.code == 0 and (tmp_path / "out" / "losses.png").is_file(), answer
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "images": 8, "val": 0.5}\n')
    (answer,) = run_commands([("sr_dist.plot", [str(tmp_path / "run"), f"--out={tmp_path / 'other'}"])])
    assert answer.code == 2 and "has no column that is drawn yet" in answer.err, answer
