import base64
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sr_dist.core.files import sha256
from sr_dist.data.degradations import bicubic
from sr_dist.data.folder_images import FolderImages
from sr_dist.data.image_pairs import Batches
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.contact_sheet import to_pil
from sr_dist.evaluation.distances.extractor import Extractor, torchscript
from sr_dist.evaluation.distances.reference_cache import References
from sr_dist.evaluation.intervals import differences
from sr_dist.evaluation.metric_set import Metrics, import_metrics, open_metrics
from sr_dist.evaluation.partial_results import Abandoned, PartialResults
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.report import report
from sr_dist.evaluation.report.drawings import HEIGHT, LABELS, MARGIN, WIDTH, trade_offs
from sr_dist.evaluation.report.markdown import markdown
from sr_dist.evaluation.report.page import Beside, example_images, extremes, page
from sr_dist.evaluation.report.report import Report
from sr_dist.evaluation.scoring import Scores, Scoring, score

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
    baselines = {name: baseline(name, scale) for name in BASELINES}
    return {**baselines, **{name: lambda lr: 0.9 * baseline("bicubic", scale)(lr) + 0.05 for name in others}}


def reported(folder, *others, scale=2, metrics=METRICS):
    batches, methods, rules = batches_of(folder, scale), methods_for(scale, *others), protocol("matlab-y", scale)
    scores = score(methods, batches, Scoring(rules, metrics, CPU))
    sources = {name: {"weights": "runs/a/x.safetensors", "sha256": "0" * 64, "step": 7, "parameters": 12345} for name in others}
    finished = Report(rules, "a folder", batches.images.names, list(methods), scores, sources, metrics, batches.notes())
    return finished, batches, methods


def write(out, finished, batches, methods):
    report.write(out, finished, markdown(finished), page(finished, example_images(finished, batches, methods, CPU)))


def table(**methods):
    """A report of one image, with these values of each method."""
    rows = [{"image": "i", "method": name, **values} for name, values in methods.items()]
    scores = Scores(rows, METRICS.better, {}, {})
    return Report(protocol("matlab-y", 2), "d", ["i"], list(methods), scores, {}, METRICS, [])


@pytest.mark.parametrize("budget", [400_000, 100_000])
def test_the_images_of_a_page_keep_within_its_bytes(tmp_path, budget):
    """Noise, which no format makes small: 14 examples of six methods, 100 KB each as PNG."""
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(14):
        Image.fromarray(draw.integers(0, 256, (160, 200, 3), dtype=np.uint8)).save(tmp_path / "images" / f"noise{i:02d}.png")
    finished, batches, methods = reported(tmp_path / "images", "other", "third", "mine", metrics=open_metrics(["psnr"], CPU))
    examples = example_images(finished, batches, methods, CPU, Beside(tmp_path, budget=budget))
    assert len(examples) >= 12
    embedded = [base64.b64decode(view["data"].partition(",")[2]) for example in examples for view in example["views"]]
    assert 0.1 * budget < sum(map(len, embedded)) <= budget
    assert all(min(Image.open(io.BytesIO(content)).size) >= 16 for content in embedded)
    assert {(example["width"], example["height"]) for example in examples} == {(200, 160)}
    whole, without = (len(page(finished, some).encode()) for some in (examples, []))
    assert whole - without < 4 / 3 * budget + 2000 * len(examples)
    assert len(list((tmp_path / "report_pictures" / "mine").iterdir())) == len(examples), "in full size beside the page"


def test_no_two_of_many_methods_look_alike_in_plots(tmp_path):
    """18 methods: the signs of the legend differ, and each method's line and dot are drawn as its sign."""
    for i in range(3):
        store(tmp_path / f"tile{i}.png", seed=i)
    finished, *_ = reported(tmp_path, *(f"method{i}" for i in range(15)), metrics=open_metrics(["psnr"], CPU))
    text = page(finished, [])
    key, rest = text[text.index('<p class="key"') :].split("</p>", 1)
    lines, dots = (re.findall(f'<{tag} class="(?:dot )?([^"]*)"', key) for tag in ("polyline", "rect"))
    assert lines == dots and len(set(lines)) == 18
    assert re.findall('<polyline class="([^"]*)"', rest)[:18] == lines
    assert all(rule in text for rule in ("polyline.d1 {", "polyline.d2 {", ".dot.d1 {"))


@pytest.fixture
def written(tmp_path):
    for i in range(3):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    finished, batches, methods = reported(tmp_path / "images", "mine")
    write(tmp_path / "out", finished, batches, methods)
    return finished, tmp_path / "out"


def strict_json(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_four_files_and_nothing_aside(written):
    assert sorted(path.name for path in written[1].iterdir()) == ["images.jsonl", "report.html", "report.json", "report.md"]


def test_report_json_keeps_the_contract(written):
    finished, out = written
    tree = strict_json((out / "report.json").read_text())
    assert tree["format"] == 1 and tree["n"] == 3 and tree["images"] == "images.jsonl" and tree["data"] == "a folder"
    assert {"scale": 2, "border": 2, "name": "matlab-y"}.items() <= tree["protocol"].items() and "channel" in tree["protocol"]
    assert list(tree["methods"]) == [*BASELINES, "mine"]
    assert all({"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"} <= values.keys() for values in tree["methods"].values())
    assert tree["methods"]["mine"] == finished.methods["mine"]
    assert tree["missing"] == {}
    assert tree["sources"]["mine"]["step"] == 7


def test_images_jsonl_has_a_row_per_image_and_method(written):
    finished, out = written
    rows = [strict_json(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 4
    for method in (*BASELINES, "mine"):
        assert [row["image"] for row in rows if row["method"] == method] == ["tile0", "tile1", "tile2"]
        for column in COLUMNS:
            values = [row[column] for row in rows if row["method"] == method]
            assert finished.methods[method][column] == pytest.approx(sum(values) / 3)  # means of per-image values


def test_the_best_value_of_every_column_is_bold():
    low, high = dict.fromkeys(COLUMNS, 20.0), dict.fromkeys(COLUMNS, 30.0)
    low["ssim_y"], high["ssim_y"] = 0.91234, None
    lines = markdown(table(bicubic=low, mine=high)).splitlines()
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
def test_a_value_that_rounds_to_zero_has_no_minus(column, value, text):
    finished = replace(table(a={}), metrics=Metrics(import_metrics(["psnr", "ssim", "fid"])))
    assert finished.number(column, value, "+") == text


def test_equals_share_the_bold():
    values = dict.fromkeys(COLUMNS, 1.0)
    lines = markdown(table(a=values, b=values)).splitlines()
    assert lines[2].count("**") == lines[3].count("**") == 2 * len(COLUMNS)


def test_the_page_leads_nowhere_else(written):
    text = (written[1] / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<iframe|<script src", text)
    assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']  # or browsers would ask for one
    addresses = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'\s>]*)""", text)
    embedded = [address for address in addresses if address.startswith("data:image/png;base64,")]
    assert len(embedded) == 3 * (1 + 1 + 4)  # per image: HR, LR, four methods
    assert all(address.startswith(("data:", "#picture-")) for address in addresses)


def test_the_page_shows_every_image_in_the_size_of_hr(written):
    import base64
    import io

    text = (written[1] / "report.html").read_text()
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", text)]
    assert {image.size for image in images} == {(20, 24)}


def test_names_are_escaped(tmp_path):
    store(tmp_path / "images" / "a<b>&.png")
    finished, batches, methods = reported(tmp_path / "images", HOSTILE)
    write(tmp_path / "out", finished, batches, methods)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in text and "a<b>" not in text
    assert "&lt;script&gt;alert" in text and "a&lt;b&gt;&amp;" in text
    assert strict_json((tmp_path / "out" / "report.json").read_text())["methods"][HOSTILE]


def test_example_images_go_from_the_largest_to_the_smallest_gain(tmp_path):
    for i in range(15):
        store(tmp_path / "images" / f"tile{i:02d}.png", (16, 16), seed=i)
    finished, batches, methods = reported(tmp_path / "images", "mine")
    shown = example_images(finished, batches, methods, CPU)
    gains = [example["gain"] for example in shown]
    assert 12 <= len(shown) <= 15 and gains == sorted(gains, reverse=True)
    psnr = {(row["image"], row["method"]): row["psnr_y"] for row in finished.scores.rows}
    assert shown[-1]["gain"] == min(psnr[name, "mine"] - psnr[name, "bicubic"] for name in finished.names)
    assert shown[0]["gain"] == max(psnr[name, "mine"] - psnr[name, "bicubic"] for name in finished.names)


def test_an_image_too_small_for_ssim_is_missing_not_wrong(tmp_path):
    store(tmp_path / "images" / "large.png", (24, 24))
    store(tmp_path / "images" / "small.png", (12, 12))
    finished, batches, methods = reported(tmp_path / "images", "mine")
    small = [row for row in finished.scores.rows if row["image"] == "small"]
    assert len(small) == 4 and all(
        row["ssim_y"] is None and row["ssim_rgb"] is None and row["psnr_y"] is not None for row in small
    )
    assert finished.methods["mine"]["ssim_y"] is None and math.isfinite(finished.methods["mine"]["psnr_y"])
    write(tmp_path / "out", finished, batches, methods)
    tree = strict_json((tmp_path / "out" / "report.json").read_text())
    assert tree["methods"]["bicubic"]["ssim_y"] is None
    assert set(tree["missing"]) == {f"{m}/{c}" for m in (*BASELINES, "mine") for c in ("ssim_y", "ssim_rgb")}
    assert all(reason for reason in tree["missing"].values())
    assert "| mine |" in (text := (tmp_path / "out" / "report.md").read_text())
    assert text.split("\n\n")[0].count("| - | - |") == 4  # a column without a value stays, and says that there is none


def test_images_without_pixels_inside_the_border_are_reported_too(tmp_path):
    store(tmp_path / "images" / "dot.png", (4, 4))
    finished, batches, methods = reported(tmp_path / "images", "mine")
    assert all(value is None for values in finished.methods.values() for value in values.values())
    write(tmp_path / "out", finished, batches, methods)
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
    calls = []
    scoring = Scoring(protocol("matlab-y", 2), METRICS, CPU, give_up=lambda: bool(calls.append(1)) or len(calls) > 1)
    with pytest.raises(Abandoned):
        score(methods_for(2), batches_of(tmp_path), scoring)


def test_differences_are_paired_and_have_intervals():
    """Of 1, 2, 6 the mean is 3, the standard error sqrt(7 / 3); Student's t with 2 degrees of freedom reaches 4.3027."""
    rows = [{"image": i, "method": "a", "psnr_y": 30.0 + i} for i in range(3)]
    rows += [{"image": i, "method": "b", "psnr_y": 30.0 + i + gain} for i, gain in enumerate((1, 2, 6))]
    difference = differences(rows, ["a", "b"], ["psnr_y"])["b - a"]["psnr_y"]
    reach = 4.302653 * math.sqrt(7 / 3)
    assert difference == {"mean": pytest.approx(3), "low": pytest.approx(3 - reach), "high": pytest.approx(3 + reach), "n": 3}
    rows[0]["psnr_y"] = None
    assert differences(rows, ["a", "b"], ["psnr_y"])["b - a"]["psnr_y"] is None
    assert differences(rows[1:2] + rows[4:5], ["a", "b"], ["psnr_y"])["b - a"]["psnr_y"] is None


def test_the_report_has_differences_of_every_two_methods_and_shows_those_of_trained_ones(written):
    finished, out = written
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
    values = {(row["image"], row["method"]): row["ssim_y"] for row in finished.scores.rows}
    expected = sum(values[f"tile{i}", "mine"] - values[f"tile{i}", "bicubic"] for i in range(3)) / 3
    assert tree["differences"]["mine - bicubic"]["ssim_y"]["mean"] == pytest.approx(expected)
    text = (out / "report.md").read_text()
    assert text.count("| mine - ") == 3 and "bicubic - nearest" not in text
    assert f"| mine - bicubic | {finished.interval('psnr_y', finished.differences['mine - bicubic']['psnr_y'])} |" in text


@pytest.fixture
def with_features(tmp_path, stand_in):
    """A report with distances of a stand-in's features; one image has patches."""
    for i in range(5):
        store(tmp_path / "images" / f"tile{i}.png", (25, 20) if i else (600, 300), seed=i)
    metrics = open_metrics(["psnr", "fid", "kid", "patch_fid", "class_fid"], CPU, extractor=torchscript(stand_in, "clean", CPU))
    finished, batches, methods = reported(tmp_path / "images", "mine", metrics=metrics)
    write(tmp_path / "out", finished, batches, methods)
    return finished, tmp_path / "out"


def test_distances_carry_their_conditions(with_features, stand_in):
    _, out = with_features
    tree = strict_json((out / "report.json").read_text())
    assert "fid" not in tree["protocol"] and "fid" not in tree["methods"]["mine"]
    assert tree["protocol"]["fd_toy"].items() >= {"extractor": "toy", "weights_sha256": sha256(stand_in), "n": 5}.items()
    assert tree["protocol"]["fd_toy"]["resize"].startswith("clean")
    distance = tree["distances"]["fd_toy"]
    assert (distance["width"], distance["methods"]["mine"]["n"]) == (12, 5) and distance["floor"] > 0
    assert distance["methods"]["mine"]["low"] <= tree["methods"]["mine"]["fd_toy"] <= distance["methods"]["mine"]["high"]
    assert tree["distances"]["kd_toy"]["methods"]["mine"]["standard_error"] > 0
    assert tree["distances"]["patch_fd_toy"]["methods"]["mine"]["n"] == 2
    assert tree["distances"]["patch_fd_toy"]["floor"] is None
    assert tree["methods"]["mine"]["class_fd_toy"] is None
    assert tree["missing"] == {"class_fd_toy": "the images have no classes"}
    assert tree["notes"] == ["4 of 5 images cropped at the right and below to a multiple of 2"]
    text = (out / "report.md").read_text()
    assert f"fd_toy (n 5, floor {distance['floor']:.2f})" in text
    assert "Not computed: class_fd_toy (the images have no classes)" in text
    assert "4 of 5 images cropped" in text


OWN_METRIC = """
from sr_dist.evaluation.distances.features import Estimate

BETTER = {"mean_fid": "lower"}
DIGITS = {"mean_fid": 3}
VIEW = "whole"

def of_sets(sr, hr, labels):
    return Estimate(float(abs(sr.rows.mean() - hr.rows.mean())), len(hr.rows))

def floor(hr, labels):
    return 0.0
"""


def test_a_metric_of_sets_is_one_file(stand_in, tmp_path, monkeypatch):
    """Its file states its column, its decimals and its functions; tables and plots follow."""
    (tmp_path / "own_metrics").mkdir()
    (tmp_path / "own_metrics" / "mean_fid.py").write_text(OWN_METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    for i in range(3):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    names = ["psnr", "own_metrics.mean_fid"]
    metrics = open_metrics(names, CPU, extractor=torchscript(stand_in, "clean", CPU))
    finished, batches, methods = reported(tmp_path / "images", "mine", metrics=metrics)
    write(tmp_path / "out", finished, batches, methods)
    value = finished.methods["mine"]["mean_fd_toy"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"| mine | {value:.3f} |" in text and "mean_fd_toy (n 3, floor 0.000)" in text
    assert 'aria-label="mean_fd_toy against psnr_y"' in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "digits"), [("psnr", 2), ("ssim", 4), ("lpips", 4), ("fid", 2), ("kid", 5), ("patch_fid", 2), ("class_fid", 2)]
)
def test_columns_have_the_decimals_that_their_metric_states(name, digits):
    (metric,) = import_metrics([name])
    finished = replace(table(a={}), metrics=Metrics((metric,)))
    assert {finished.number(column, 1.0) for column in metric.BETTER} == {f"{1:.{digits}f}"}


def test_distances_are_those_of_the_features_of_files(with_features, stand_in, tmp_path):
    """Images written as files, through the same extractor one by one, numpy's covariances, scipy's root."""
    from test_frechet import naive

    finished, _ = with_features
    extractor, features = torchscript(stand_in, "clean", CPU), {"HR": [], "mine": []}
    batches, method = batches_of(tmp_path / "images"), methods_for(2, "mine")["mine"]
    for number in range(len(batches)):
        for lr, hr in zip(batches[number].lr, batches[number].hr, strict=True):
            for name, image in (("HR", hr), ("mine", method(lr[None])[0])):
                to_pil(image).save(tmp_path / "stored.png")
                stored = torch.from_numpy(np.array(Image.open(tmp_path / "stored.png"))).permute(2, 0, 1)[None] / 255
                features[name] += list(extractor.whole(stored))
    expected = naive(*(np.array(rows, np.float64) for rows in features.values()))
    assert finished.methods["mine"]["fd_toy"] == pytest.approx(expected, rel=1e-3)


def test_a_method_that_is_not_finite_has_no_distance_and_the_others_have(tmp_path, stand_in):
    for i in range(4):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    batches = batches_of(tmp_path / "images")
    metrics = open_metrics(["psnr", "fid"], CPU, extractor=torchscript(stand_in, "clean", CPU))
    methods = {"bicubic": baseline("bicubic", 2), "broken": lambda lr: baseline("bicubic", 2)(lr) * float("nan")}
    scores = score(methods, batches, Scoring(protocol("matlab-y", 2), metrics, CPU))
    assert scores.means("broken") == dict.fromkeys(metrics.better, None)
    assert scores.means("bicubic")["fd_toy"] > 0
    assert scores.missing == {"broken/fd_toy": "the method's output for an image is not finite"}


def test_hr_features_are_computed_once_and_cached(tmp_path, stand_in, monkeypatch):
    for i in range(4):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    batches = batches_of(tmp_path / "images")
    metrics = open_metrics(["fid", "kid"], CPU, extractor=torchscript(stand_in, "clean", CPU))
    computed, right = [], Extractor.features
    monkeypatch.setattr(Extractor, "features", lambda self, images: computed.append(len(images)) or right(self, images))
    runs = []
    for _ in range(2):
        computed.clear()
        scoring = Scoring(protocol("matlab-y", 2), metrics, CPU, references=References(tmp_path / "c", {}))
        scores = score(methods_for(2), batches, scoring)
        runs.append((sum(computed), [scores.means(name) for name in BASELINES]))
    assert runs[0][0] == 4 * (3 + 1) and runs[1][0] == 4 * 3
    assert runs[0][1] == runs[1][1]


def test_a_killed_evaluation_without_its_cache_computes_the_missing_hr_features(tmp_path, stand_in, capsys):
    """With a cache its batches hold no features of HR. Without the cache they are scored again, and complete ones are not."""
    for i in range(8):
        store(tmp_path / "images" / f"tile{i}.png", seed=i)
    batches = batches_of(tmp_path / "images")
    metrics = open_metrics(["fid"], CPU, extractor=torchscript(stand_in, "clean", CPU))
    cache = References(tmp_path / "cache", {})

    def run(**options):
        return score(methods_for(2), batches, Scoring(protocol("matlab-y", 2), metrics, CPU, **options))

    whole = run(references=cache)
    run(partial_results=PartialResults(tmp_path / "parts"), references=cache)
    (tmp_path / "parts" / "0000001.npz").unlink()
    assert "continuing" not in capsys.readouterr().out
    assert run(partial_results=PartialResults(tmp_path / "parts")).distances == whole.distances
    assert "continuing" not in capsys.readouterr().out  # no batch has the features of HR
    (tmp_path / "parts" / "0000000.npz").unlink()
    assert run(partial_results=PartialResults(tmp_path / "parts")).distances == whole.distances
    assert "continuing: 1 of 2 batches are done\n" in capsys.readouterr().out


def test_the_trade_off_puts_a_point_where_its_values_are():
    """Better is to the right and upwards: the smallest distance is at the top."""
    values = {"a": {"psnr_y": 30.0, "fid": 50.0}, "b": {"psnr_y": 32.0, "fid": 10.0}, "c": {"psnr_y": 31.0, "fid": None}}
    (plot,) = trade_offs(values, {"fid": "lower"})
    assert [point["place"] for point in plot["points"]] == [0, 1]
    (a, b) = plot["points"]
    assert (a["x"], a["y"], b["x"], b["y"]) == (LABELS, HEIGHT - MARGIN, WIDTH - MARGIN, MARGIN)
    without_psnr = {name: {"fid": row["fid"]} for name, row in values.items()}
    assert trade_offs(values, {}) == trade_offs(without_psnr, {"fid": "lower"}) == []
    (turned,) = trade_offs(values, {"fid": "higher"})
    assert [point["y"] for point in turned["points"]] == [MARGIN, HEIGHT - MARGIN]


def test_the_worst_and_best_images_of_every_metric_are_shown(written):
    finished, out = written
    mine = {row["image"]: row["psnr_rgb"] for row in finished.scores.rows if row["method"] == "mine"}
    ends = extremes(finished)["psnr_rgb"]
    assert ends["worst"] == (min(mine, key=mine.get), min(mine.values()))
    assert ends["best"] == (max(mine, key=mine.get), max(mine.values()))
    text = (out / "report.html").read_text()
    for anchor in re.findall(r'href="#(picture-[0-9]+)"', text):
        assert f'id="{anchor}"' in text
