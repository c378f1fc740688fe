import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from sr_dist.data.degradations import bicubic
from sr_dist.data.validation import Batches, FolderImages
from sr_dist.eval import report
from sr_dist.eval.baselines import baseline
from sr_dist.eval.protocol import protocol
from sr_dist.eval.report import Report
from sr_dist.eval.run import Abandoned, better, means, score

BASELINES = ("nearest", "bilinear", "bicubic")
HOSTILE = '<script>alert("x")</script> & co'
CPU = torch.device("cpu")


def store(path, size=(24, 20), seed=0, mode="RGB"):
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC).convert(mode).save(path)


def batches_of(folder, scale=2):
    return Batches(FolderImages(folder, None, "data"), scale, bicubic.build(bicubic.Config(), scale), 4)


def methods_for(scale, *others):
    found = {name: baseline(name, scale) for name in BASELINES}
    return {**found, **{name: lambda lr: 0.9 * baseline("bicubic", scale)(lr) + 0.05 for name in others}}


def reported(folder, *others, scale=2):
    batches, methods, rules = batches_of(folder, scale), methods_for(scale, *others), protocol("matlab-y", scale)
    rows = score(methods, batches, rules, CPU)
    sources = {name: {"weights": "runs/a/x.safetensors", "sha256": "0" * 64, "step": 7, "parameters": 12345} for name in others}
    table = {name: means(rows, name) for name in methods}
    return Report(rules, "a folder", batches.images.names, table, sources, rows), batches, methods


@pytest.fixture
def written(tmp_path):
    for i in range(3):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    found, batches, methods = reported(tmp_path / "images", "mine")
    report.write(tmp_path / "out", found, batches, methods, CPU)
    return found, tmp_path / "out"


def strict_json(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_four_files_and_nothing_aside(written):
    assert sorted(path.name for path in written[1].iterdir()) == ["images.jsonl", "report.html", "report.json", "report.md"]


def test_report_json_keeps_the_contract(written):
    found, out = written
    tree = strict_json((out / "report.json").read_text())
    assert tree["n"] == 3 and tree["images"] == "images.jsonl" and tree["data"] == "a folder"
    assert {"scale": 2, "border": 2, "name": "matlab-y"}.items() <= tree["protocol"].items() and "channel" in tree["protocol"]
    assert list(tree["methods"]) == [*BASELINES, "mine"]
    assert all({"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"} <= values.keys() for values in tree["methods"].values())
    assert tree["methods"]["mine"] == found.methods["mine"]
    assert tree["missing"] == {}
    assert tree["sources"]["mine"]["step"] == 7


def test_images_jsonl_has_a_row_per_image_and_method(written):
    found, out = written
    rows = [strict_json(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 4
    for method in (*BASELINES, "mine"):
        assert [row["image"] for row in rows if row["method"] == method] == ["tile0", "tile1", "tile2"]
        for column in better():
            values = [row[column] for row in rows if row["method"] == method]
            assert found.methods[method][column] == pytest.approx(sum(values) / 3)  # means of per-image values


def test_the_best_value_of_every_column_is_bold():
    rules = protocol("matlab-y", 2)
    columns = list(better())
    low, high = dict.fromkeys(columns, 20.0), dict.fromkeys(columns, 30.0)
    low["ssim_y"], high["ssim_y"] = 0.91234, None
    lines = report.markdown(Report(rules, "d", ["i"], {"bicubic": low, "mine": high}, {}, [])).splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    cells = {name: dict(zip(head, (c.strip() for c in line.strip("|").split("|")), strict=True)) for name, line in
             (("bicubic", lines[2]), ("mine", lines[3]))}  # fmt: skip
    assert (cells["bicubic"]["psnr_y"], cells["mine"]["psnr_y"]) == ("20.00", "**30.00**")
    assert (cells["bicubic"]["ssim_y"], cells["mine"]["ssim_y"]) == ("**0.9123**", "-")
    assert (cells["bicubic"]["ssim_rgb"], cells["mine"]["ssim_rgb"]) == ("20.0000", "**30.0000**")


def test_the_table_carries_its_conditions(written):
    last = (written[1] / "report.md").read_text().strip().splitlines()[-1]
    for words in (
        "x2",
        "3 images of a folder",
        "protocol matlab-y",
        "rounded BT.601 Y",
        "border 2",
        "8-bit",
        "mean of per-image values",
    ):
        assert words in last


def test_equals_share_the_bold():
    values = dict.fromkeys(better(), 1.0)
    lines = report.markdown(Report(protocol("basicsr", 2), "d", ["i"], {"a": values, "b": dict(values)}, {}, [])).splitlines()
    assert lines[2].count("**") == lines[3].count("**") == 2 * len(better())


def test_the_page_leads_nowhere_else(written):
    page = (written[1] / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", page)
    addresses = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'\s>]*)""", page)
    assert len(addresses) == 3 * (1 + 1 + 4)  # per image: HR, LR, four methods
    assert all(address.startswith("data:image/png;base64,") for address in addresses)


def test_the_page_shows_every_picture_in_the_size_of_hr(written):
    import base64
    import io

    page = (written[1] / "report.html").read_text()
    found = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]
    assert {image.size for image in found} == {(20, 24)}


def test_names_are_escaped(tmp_path):
    store(tmp_path / "images" / "a<b>&.png")
    found, batches, methods = reported(tmp_path / "images", HOSTILE)
    report.write(tmp_path / "out", found, batches, methods, CPU)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page and "a<b>" not in page
    assert "&lt;script&gt;alert" in page and "a&lt;b&gt;&amp;" in page
    assert strict_json((tmp_path / "out" / "report.json").read_text())["methods"][HOSTILE]


def test_pictures_go_from_the_largest_to_the_smallest_gain(tmp_path):
    for i in range(15):
        store(tmp_path / "images" / f"tile{i:02d}.png", (16, 16), seed=i)
    found, batches, methods = reported(tmp_path / "images", "mine")
    shown = report.pictures(found, batches, methods, CPU)
    gains = [picture["gain"] for picture in shown]
    assert len(shown) == 12 and gains == sorted(gains, reverse=True)
    psnr = {(row["image"], row["method"]): row["psnr_y"] for row in found.rows}
    assert shown[-1]["gain"] == min(psnr[name, "mine"] - psnr[name, "bicubic"] for name in found.names)
    assert shown[0]["gain"] == max(psnr[name, "mine"] - psnr[name, "bicubic"] for name in found.names)


def test_an_image_too_small_for_ssim_is_missing_not_wrong(tmp_path):
    store(tmp_path / "images" / "large.png", (24, 24))
    store(tmp_path / "images" / "small.png", (12, 12))
    found, batches, methods = reported(tmp_path / "images", "mine")
    small = [row for row in found.rows if row["image"] == "small"]
    assert len(small) == 4 and all(
        row["ssim_y"] is None and row["ssim_rgb"] is None and row["psnr_y"] is not None for row in small
    )
    assert found.methods["mine"]["ssim_y"] is None and math.isfinite(found.methods["mine"]["psnr_y"])
    report.write(tmp_path / "out", found, batches, methods, CPU)
    tree = strict_json((tmp_path / "out" / "report.json").read_text())
    assert tree["methods"]["bicubic"]["ssim_y"] is None
    assert set(tree["missing"]) == {f"{m}/{c}" for m in (*BASELINES, "mine") for c in ("ssim_y", "ssim_rgb")}
    assert all(reason for reason in tree["missing"].values())
    assert "| mine |" in (text := (tmp_path / "out" / "report.md").read_text())
    assert text.count("| - | - |") == 4  # a column without a value stays, and says that there is none


def test_images_without_pixels_inside_the_border_are_reported_too(tmp_path):
    store(tmp_path / "images" / "dot.png", (4, 4))
    found, batches, methods = reported(tmp_path / "images", "mine")
    assert all(value is None for values in found.methods.values() for value in values.values())
    report.write(tmp_path / "out", found, batches, methods, CPU)
    assert strict_json((tmp_path / "out" / "report.json").read_text())["methods"]["mine"]["psnr_y"] is None


def test_images_stored_grey_are_scored_as_their_own_luma(tmp_path):
    store(tmp_path / "images" / "grey.png", mode="L")
    store(tmp_path / "images" / "rgb.png")
    Image.open(tmp_path / "images" / "grey.png").convert("RGB").save(tmp_path / "images" / "rgb.png")
    rows = {row["image"]: row for row in reported(tmp_path / "images")[0].rows if row["method"] == "bicubic"}
    assert rows["grey"]["psnr_y"] == pytest.approx(rows["grey"]["psnr_rgb"])
    assert rows["rgb"]["psnr_y"] - rows["grey"]["psnr_y"] == pytest.approx(20 * math.log10(255 / 219), abs=0.2)


def test_a_mean_over_an_image_without_a_value_is_no_value():
    rows = [
        {"image": "a", "method": "m", **dict.fromkeys(better(), 2.0)},
        {"image": "b", "method": "m", **dict.fromkeys(better(), 4.0)},
    ]
    assert means(rows, "m") == dict.fromkeys(better(), 3.0)
    rows[1]["ssim_y"] = None
    assert means(rows, "m") == {**dict.fromkeys(better(), 3.0), "ssim_y": None}
    assert means(rows, "other") == dict.fromkeys(better(), None)


def test_a_pass_can_be_given_up(tmp_path):
    for i in range(6):
        store(tmp_path / f"tile{i}.png", seed=i)
    asked = []
    with pytest.raises(Abandoned):
        score(
            methods_for(2),
            batches_of(tmp_path),
            protocol("matlab-y", 2),
            CPU,
            give_up=lambda: bool(asked.append(1)) or len(asked) > 1,
        )
