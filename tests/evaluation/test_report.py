import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from sr_dist.core.files import sha256
from sr_dist.data.degradations import bicubic
from sr_dist.data.folder_images import FolderImages
from sr_dist.data.images import Batches
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.contact_sheet import to_pil
from sr_dist.evaluation.distances.extractor import Extractor, torchscript
from sr_dist.evaluation.distances.reference_cache import References
from sr_dist.evaluation.intervals import differences
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.evaluation.partial_results import Abandoned, Parts
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.report import report
from sr_dist.evaluation.report.drawings import HEIGHT, LABELS, MARGIN, WIDTH, trade_offs
from sr_dist.evaluation.report.page import extremes, page, pictures
from sr_dist.evaluation.report.report import Report
from sr_dist.evaluation.scoring import Scores, score

BASELINES = ("nearest", "bilinear", "bicubic")
HOSTILE = '<script>alert("x")</script> & co'
CPU = torch.device("cpu")
METRICS = open_metrics(["psnr", "ssim"], CPU)
COLUMNS = list(METRICS.better)


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


def reported(folder, *others, scale=2, metrics=METRICS):
    batches, methods, rules = batches_of(folder, scale), methods_for(scale, *others), protocol("matlab-y", scale)
    scores = score(methods, batches, rules, CPU, metrics)
    sources = {name: {"weights": "runs/a/x.safetensors", "sha256": "0" * 64, "step": 7, "parameters": 12345} for name in others}
    found = Report(rules, "a folder", batches.images.names, list(methods), scores, sources, metrics, batches.notes())
    return found, batches, methods


def write(out, found, batches, methods):
    report.write(out, found, page(found, pictures(found, batches, methods, CPU)))


def table(**methods):
    """A report of one image, with these values of each method."""
    rows = [{"image": "i", "method": name, **values} for name, values in methods.items()]
    scores = Scores(rows, METRICS.better, {}, {})
    return Report(protocol("matlab-y", 2), "d", ["i"], list(methods), scores, {}, METRICS, [])


@pytest.fixture
def written(tmp_path):
    for i in range(3):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    found, batches, methods = reported(tmp_path / "images", "mine")
    write(tmp_path / "out", found, batches, methods)
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
        for column in COLUMNS:
            values = [row[column] for row in rows if row["method"] == method]
            assert found.methods[method][column] == pytest.approx(sum(values) / 3)  # means of per-image values


def test_the_best_value_of_every_column_is_bold():
    low, high = dict.fromkeys(COLUMNS, 20.0), dict.fromkeys(COLUMNS, 30.0)
    low["ssim_y"], high["ssim_y"] = 0.91234, None
    lines = report.markdown(table(bicubic=low, mine=high)).splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    cells = {name: dict(zip(head, (c.strip() for c in line.strip("|").split("|")), strict=True)) for name, line in
             (("bicubic", lines[2]), ("mine", lines[3]))}  # fmt: skip
    assert (cells["bicubic"]["psnr_y"], cells["mine"]["psnr_y"]) == ("20.00", "**30.00**")
    assert (cells["bicubic"]["ssim_y"], cells["mine"]["ssim_y"]) == ("**0.9123**", "-")
    assert (cells["bicubic"]["ssim_rgb"], cells["mine"]["ssim_rgb"]) == ("20.0000", "**30.0000**")


def test_the_table_carries_its_conditions(written):
    last = (written[1] / "report.md").read_text().split("\n\n")[1]
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


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [("psnr_y", -0.004, "+0.00"), ("ssim_y", -0.00005001, "-0.0001"), ("ssim_y", -0.0, "+0.0000"), ("fid", 12.345, "+12.35")],
)
def test_what_rounds_to_nothing_has_no_minus(column, value, text):
    assert report.number(column, value, "+") == text


def test_equals_share_the_bold():
    values = dict.fromkeys(COLUMNS, 1.0)
    lines = report.markdown(table(a=values, b=values)).splitlines()
    assert lines[2].count("**") == lines[3].count("**") == 2 * len(COLUMNS)


def test_the_page_leads_nowhere_else(written):
    text = (written[1] / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<iframe|<script src", text)
    assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']  # or browsers would ask for one
    addresses = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'\s>]*)""", text)
    pictures = [address for address in addresses if address.startswith("data:image/png;base64,")]
    assert len(pictures) == 3 * (1 + 1 + 4)  # per image: HR, LR, four methods
    assert all(address.startswith(("data:", "#picture-")) for address in addresses)


def test_the_page_shows_every_picture_in_the_size_of_hr(written):
    import base64
    import io

    text = (written[1] / "report.html").read_text()
    found = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", text)]
    assert {image.size for image in found} == {(20, 24)}


def test_names_are_escaped(tmp_path):
    store(tmp_path / "images" / "a<b>&.png")
    found, batches, methods = reported(tmp_path / "images", HOSTILE)
    write(tmp_path / "out", found, batches, methods)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in text and "a<b>" not in text
    assert "&lt;script&gt;alert" in text and "a&lt;b&gt;&amp;" in text
    assert strict_json((tmp_path / "out" / "report.json").read_text())["methods"][HOSTILE]


def test_pictures_go_from_the_largest_to_the_smallest_gain(tmp_path):
    for i in range(15):
        store(tmp_path / "images" / f"tile{i:02d}.png", (16, 16), seed=i)
    found, batches, methods = reported(tmp_path / "images", "mine")
    shown = pictures(found, batches, methods, CPU)
    gains = [picture["gain"] for picture in shown]
    assert 12 <= len(shown) <= 15 and gains == sorted(gains, reverse=True)
    psnr = {(row["image"], row["method"]): row["psnr_y"] for row in found.scores.rows}
    assert shown[-1]["gain"] == min(psnr[name, "mine"] - psnr[name, "bicubic"] for name in found.names)
    assert shown[0]["gain"] == max(psnr[name, "mine"] - psnr[name, "bicubic"] for name in found.names)


def test_an_image_too_small_for_ssim_is_missing_not_wrong(tmp_path):
    store(tmp_path / "images" / "large.png", (24, 24))
    store(tmp_path / "images" / "small.png", (12, 12))
    found, batches, methods = reported(tmp_path / "images", "mine")
    small = [row for row in found.scores.rows if row["image"] == "small"]
    assert len(small) == 4 and all(
        row["ssim_y"] is None and row["ssim_rgb"] is None and row["psnr_y"] is not None for row in small
    )
    assert found.methods["mine"]["ssim_y"] is None and math.isfinite(found.methods["mine"]["psnr_y"])
    write(tmp_path / "out", found, batches, methods)
    tree = strict_json((tmp_path / "out" / "report.json").read_text())
    assert tree["methods"]["bicubic"]["ssim_y"] is None
    assert set(tree["missing"]) == {f"{m}/{c}" for m in (*BASELINES, "mine") for c in ("ssim_y", "ssim_rgb")}
    assert all(reason for reason in tree["missing"].values())
    assert "| mine |" in (text := (tmp_path / "out" / "report.md").read_text())
    assert text.split("\n\n")[0].count("| - | - |") == 4  # a column without a value stays, and says that there is none


def test_images_without_pixels_inside_the_border_are_reported_too(tmp_path):
    store(tmp_path / "images" / "dot.png", (4, 4))
    found, batches, methods = reported(tmp_path / "images", "mine")
    assert all(value is None for values in found.methods.values() for value in values.values())
    write(tmp_path / "out", found, batches, methods)
    assert strict_json((tmp_path / "out" / "report.json").read_text())["methods"]["mine"]["psnr_y"] is None


def test_images_stored_grey_are_scored_as_their_own_luma(tmp_path):
    store(tmp_path / "images" / "grey.png", mode="L")
    store(tmp_path / "images" / "rgb.png")
    Image.open(tmp_path / "images" / "grey.png").convert("RGB").save(tmp_path / "images" / "rgb.png")
    rows = {row["image"]: row for row in reported(tmp_path / "images")[0].scores.rows if row["method"] == "bicubic"}
    assert rows["grey"]["psnr_y"] == pytest.approx(rows["grey"]["psnr_rgb"])
    assert rows["rgb"]["psnr_y"] - rows["grey"]["psnr_y"] == pytest.approx(20 * math.log10(255 / 219), abs=0.2)


def test_a_mean_over_an_image_without_a_value_is_no_value():
    rows = [{"image": i, "method": "m", **dict.fromkeys(COLUMNS, value)} for i, value in (("a", 2.0), ("b", 4.0))]
    assert Scores(rows, METRICS.better, {}, {}).means("m") == dict.fromkeys(COLUMNS, 3.0)
    rows[1]["ssim_y"] = None
    assert Scores(rows, METRICS.better, {}, {}).means("m") == {**dict.fromkeys(COLUMNS, 3.0), "ssim_y": None}
    assert Scores(rows, METRICS.better, {}, {}).means("other") == dict.fromkeys(COLUMNS, None)


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
            METRICS,
            give_up=lambda: bool(asked.append(1)) or len(asked) > 1,
        )


def test_differences_are_paired_and_have_intervals():
    """Of 1, 2, 6 the mean is 3, the standard error sqrt(7 / 3); Student's t with 2 degrees of freedom reaches 4.3027."""
    rows = [{"image": i, "method": "a", "psnr_y": 30.0 + i} for i in range(3)]
    rows += [{"image": i, "method": "b", "psnr_y": 30.0 + i + gain} for i, gain in enumerate((1, 2, 6))]
    found = differences(rows, ["a", "b"], ["psnr_y"])["b - a"]["psnr_y"]
    reach = 4.302653 * math.sqrt(7 / 3)
    assert found == {"mean": pytest.approx(3), "low": pytest.approx(3 - reach), "high": pytest.approx(3 + reach), "n": 3}
    rows[0]["psnr_y"] = None
    assert differences(rows, ["a", "b"], ["psnr_y"])["b - a"]["psnr_y"] is None
    assert differences(rows[1:2] + rows[4:5], ["a", "b"], ["psnr_y"])["b - a"]["psnr_y"] is None


def test_the_report_has_differences_of_every_two_methods_and_shows_those_of_trained_ones(written):
    found, out = written
    tree = strict_json((out / "report.json").read_text())
    pairs = [
        "bilinear - nearest",
        "bicubic - nearest",
        "mine - nearest",
        "bicubic - bilinear",
        "mine - bilinear",
        "mine - bicubic",
    ]
    assert list(tree["differences"]) == pairs
    values = {(row["image"], row["method"]): row["ssim_y"] for row in found.scores.rows}
    expected = sum(values[f"tile{i}", "mine"] - values[f"tile{i}", "bicubic"] for i in range(3)) / 3
    assert tree["differences"]["mine - bicubic"]["ssim_y"]["mean"] == pytest.approx(expected)
    text = (out / "report.md").read_text()
    assert text.count("| mine - ") == 3 and "bicubic - nearest" not in text
    assert f"| mine - bicubic | {report.interval('psnr_y', found.differences['mine - bicubic']['psnr_y'])} |" in text


@pytest.fixture
def with_features(tmp_path, stand_in):
    """A report with distances of a stand-in's features; one image has patches."""
    for i in range(5):
        store(tmp_path / "images" / f"tile{i}.png", (25, 20) if i else (600, 300), seed=i)
    metrics = open_metrics(["psnr", "fid", "kid", "patch_fid", "class_fid"], CPU, own=torchscript(stand_in, "clean", CPU))
    found, batches, methods = reported(tmp_path / "images", "mine", metrics=metrics)
    write(tmp_path / "out", found, batches, methods)
    return found, tmp_path / "out"


def test_distances_carry_their_conditions(with_features, stand_in):
    _, out = with_features
    tree = strict_json((out / "report.json").read_text())
    assert "fid" not in tree["protocol"] and "fid" not in tree["methods"]["mine"]
    assert tree["protocol"]["fd_toy"].items() >= {"extractor": "toy", "weights_sha256": sha256(stand_in), "n": 5}.items()
    assert tree["protocol"]["fd_toy"]["resize"].startswith("clean")
    told = tree["distances"]["fd_toy"]
    assert (told["width"], told["methods"]["mine"]["n"]) == (12, 5) and told["floor"] > 0
    assert told["methods"]["mine"]["low"] <= tree["methods"]["mine"]["fd_toy"] <= told["methods"]["mine"]["high"]
    assert tree["distances"]["kd_toy"]["methods"]["mine"]["standard_error"] > 0
    assert tree["distances"]["patch_fd_toy"]["methods"]["mine"]["n"] == 2
    assert tree["distances"]["patch_fd_toy"]["floor"] is None
    assert tree["methods"]["mine"]["class_fd_toy"] is None
    assert tree["missing"] == {"class_fd_toy": "the images have no classes"}
    assert tree["notes"] == ["4 of 5 images cropped at the right and below to a multiple of 2"]
    text = (out / "report.md").read_text()
    assert f"fd_toy (n 5, floor {told['floor']:.2f})" in text
    assert "Not computed: class_fd_toy (the images have no classes)" in text
    assert "4 of 5 images cropped" in text


def test_distances_are_those_of_the_features_of_files(with_features, stand_in, tmp_path):
    """Images written as files, through the same extractor one by one, numpy's covariances, scipy's root."""
    from test_frechet import naive

    found, _ = with_features
    extractor, features = torchscript(stand_in, "clean", CPU), {"HR": [], "mine": []}
    batches, method = batches_of(tmp_path / "images"), methods_for(2, "mine")["mine"]
    for number in range(len(batches)):
        for lr, hr in zip(batches[number].lr, batches[number].hr, strict=True):
            for name, image in (("HR", hr), ("mine", method(lr[None])[0])):
                to_pil(image).save(tmp_path / "kept.png")
                kept = torch.from_numpy(np.array(Image.open(tmp_path / "kept.png"))).permute(2, 0, 1)[None] / 255
                features[name] += list(extractor.whole(kept))
    expected = naive(*(np.array(rows, np.float64) for rows in features.values()))
    assert found.methods["mine"]["fd_toy"] == pytest.approx(expected, rel=1e-3)


def test_what_is_not_finite_has_no_distance_and_the_others_have(tmp_path, stand_in):
    for i in range(4):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    batches, metrics = (
        batches_of(tmp_path / "images"),
        open_metrics(["psnr", "fid"], CPU, own=torchscript(stand_in, "clean", CPU)),
    )
    methods = {"bicubic": baseline("bicubic", 2), "broken": lambda lr: baseline("bicubic", 2)(lr) * float("nan")}
    scores = score(methods, batches, protocol("matlab-y", 2), CPU, metrics)
    assert scores.means("broken") == dict.fromkeys(metrics.better, None)
    assert scores.means("bicubic")["fd_toy"] > 0
    assert scores.missing == {"broken/fd_toy": "what the method made of an image is not finite"}


def test_hr_features_are_made_once_and_found_again(tmp_path, stand_in, monkeypatch):
    for i in range(4):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    batches, metrics = batches_of(tmp_path / "images"), open_metrics(["fid", "kid"], CPU, own=torchscript(stand_in, "clean", CPU))
    made, right = [], Extractor.whole
    monkeypatch.setattr(Extractor, "whole", lambda self, images: made.append(len(images)) or right(self, images))
    found = []
    for _ in range(2):
        made.clear()
        scores = score(methods_for(2), batches, protocol("matlab-y", 2), CPU, metrics, references=References(tmp_path / "c", {}))
        found.append((sum(made), [scores.means(name) for name in BASELINES]))
    assert found[0][0] == 4 * (3 + 1) and found[1][0] == 4 * 3
    assert found[0][1] == found[1][1]


def test_a_killed_evaluation_whose_cache_is_gone_makes_hr_features_where_they_are_owed(tmp_path, stand_in, capsys):
    """Begun with features of HR at hand, its batches hold none; without them they are done again, and the rest is not."""
    for i in range(8):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    batches, metrics = batches_of(tmp_path / "images"), open_metrics(["fid"], CPU, own=torchscript(stand_in, "clean", CPU))
    everything, cache = (methods_for(2), batches, protocol("matlab-y", 2), CPU, metrics), References(tmp_path / "cache", {})
    whole = score(*everything, references=cache)
    score(*everything, parts=Parts(tmp_path / "parts"), references=cache)
    (tmp_path / "parts" / "0000001.npz").unlink()
    assert "continuing" not in capsys.readouterr().out
    assert score(*everything, parts=Parts(tmp_path / "parts")).distances == whole.distances
    assert "continuing" not in capsys.readouterr().out  # nothing that is there is enough
    (tmp_path / "parts" / "0000000.npz").unlink()
    assert score(*everything, parts=Parts(tmp_path / "parts")).distances == whole.distances
    assert "continuing: 1 of 2 batches are there\n" in capsys.readouterr().out


def test_the_trade_off_puts_a_point_where_its_values_are():
    """Better is to the right and upwards: the least distance is at the top."""
    values = {"a": {"psnr_y": 30.0, "fid": 50.0}, "b": {"psnr_y": 32.0, "fid": 10.0}, "c": {"psnr_y": 31.0, "fid": None}}
    (plot,) = trade_offs(values, ["psnr_y", "fid"])
    assert [point["place"] for point in plot["points"]] == [0, 1]
    (a, b) = plot["points"]
    assert (a["x"], a["y"], b["x"], b["y"]) == (LABELS, HEIGHT - MARGIN, WIDTH - MARGIN, MARGIN)
    assert trade_offs(values, ["psnr_y"]) == trade_offs(values, ["fid"]) == []


def test_the_worst_and_best_images_of_every_metric_are_shown(written):
    found, out = written
    mine = {row["image"]: row["psnr_rgb"] for row in found.scores.rows if row["method"] == "mine"}
    ends = extremes(found)["psnr_rgb"]
    assert ends["worst"] == (min(mine, key=mine.get), min(mine.values()))
    assert ends["best"] == (max(mine, key=mine.get), max(mine.values()))
    text = (out / "report.html").read_text()
    for place in re.findall(r'href="#(picture-[0-9]+)"', text):
        assert f'id="{place}"' in text
