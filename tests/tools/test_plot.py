"""Curves from a metrics.jsonl whose numbers are known; the page in a real browser."""

import json
import math
import re

import pytest
from matplotlib.figure import Figure
from PIL import Image

from sr_dist.core.errors import UserError
from sr_dist.plot import Plot, check, plot
from sr_dist.tools.plot import read_metrics, run_names, section_columns, smooth, summarize


def write_run(folder, rows=6, **changes):
    """A run of so many logged steps, with a validation at the end and one row that is still being written."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, rows + 1):
        row = {"step": step, "images": 8 * step, "learning_rate": 1e-4, "images_per_second": 10.0 + step, "data_wait": 0.1}
        row |= {"memory_gb": 2.0, "loss/l1": 1 / step, "grad_norm/generator": 2.0, "skipped/generator": 0}
        lines.append(row | changes)
    lines.append({"step": rows, "images": 8 * rows, "validation/psnr_y": 30.0, "validation/lpips_alex": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "ima')
    return str(folder)


def test_a_run_becomes_images_and_a_page_without_links(tmp_path, capsys):
    run = write_run(tmp_path / "mine")
    plot(Plot(runs=(run,)))
    out = tmp_path / "mine" / "curves"
    names = {"losses.png", "validation.png", "speed.png", "gradients.png", "curves.html"}
    assert {path.name for path in out.iterdir()} == names
    assert str(out) in capsys.readouterr().out
    for name in names - {"curves.html"}:
        with Image.open(out / name) as image:
            assert image.width > 500
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20, f"{name} is empty"
    page = (out / "curves.html").read_text()
    links = re.findall(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import""", page)
    assert not [link for link in links if "xmlns" not in link]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert {name for name in ids if name.endswith("--run0")} == {
        f"{column}--run0" for column in (
            "loss/l1", "validation/psnr_y", "validation/lpips_alex", "images_per_second", "data_wait", "memory_gb",
            "grad_norm/generator", "learning_rate",
        )
    }  # fmt: skip


def test_validation_has_a_line_for_bicubic(tmp_path, figures):
    run = write_run(tmp_path / "mine", **{"bicubic/psnr_y": 28.5})
    plot(Plot(runs=(run,)))
    dotted = [line for figure in figures for axes in figure.axes for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert dotted and {tuple(line.get_ydata()) for line in dotted} == {(28.5, 28.5)}
    assert {line.axes.get_title(loc="left") for line in dotted} == {"psnr y"}


def test_several_runs_share_the_panels_of_the_columns_that_they_have(tmp_path):
    one, other = write_run(tmp_path / "a" / "gan"), write_run(tmp_path / "b" / "gan", **{"loss/adversarial": 0.1})
    plot(Plot(runs=(one, other), out=str(tmp_path / "out")))
    page = (tmp_path / "out" / "curves.html").read_text()
    assert 'id="loss/l1--run0"' in page
    assert 'id="loss/l1--run1"' in page
    assert 'id="loss/adversarial--run0"' not in page
    assert 'id="loss/adversarial--run1"' in page
    assert page.count('type="checkbox"') == 2
    assert not (tmp_path / "out" / "readings.png").exists()
    assert run_names((one, other)) == [one, other]  # the names of the folders are equal
    assert run_names((one, str(tmp_path / "out"))) == ["gan", "out"]


def test_readings_have_a_section_of_their_own(tmp_path):
    name = "reading/classifier_digits_accuracy"
    run = write_run(tmp_path / "guided", **{name: 0.9})
    plot(Plot(runs=(run,)))
    with Image.open(tmp_path / "guided" / "curves" / "readings.png") as image:
        assert image.width > 500
    assert f'id="{name}--run0"' in (tmp_path / "guided" / "curves" / "curves.html").read_text()


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn = []

    class RecordedFigure(Figure):
        def savefig(self, *words, **options):
            drawn.append(self)
            super().savefig(*words, **options)

    monkeypatch.setattr("sr_dist.tools.plot.Figure", RecordedFigure)
    return drawn


def test_the_legend_shows_names_unchanged(tmp_path, figures):
    """Matplotlib leaves out labels that begin with _ and reads text between two $ as a formula; a single { is then an error."""
    names = ["_mine", "cost$5$", "a$\\frac{$", "plain"]
    runs = [write_run(tmp_path / name) for name in names]
    plot(Plot(runs=tuple(runs), out=str(tmp_path / "out")))
    sheets = [figure for figure in figures if figure.legends]
    assert len(sheets) == 4
    for sheet in sheets:
        (legend,) = sheet.legends
        assert [text.get_text() for text in legend.get_texts()] == names
        assert not any(text.get_parse_math() for text in legend.get_texts())
        assert len({line.get_color() for line in legend.get_lines()}) == 4


def test_a_single_validation_is_a_point_with_its_value_and_runs_begin_at_their_own_zero(tmp_path, figures):
    one, other = write_run(tmp_path / "pixel"), write_run(tmp_path / "gan")
    plot(Plot(runs=(one,)))
    axes = next(axes for figure in figures for axes in figure.axes if axes.get_title(loc="left") == "psnr y")
    assert [text.get_text() for text in axes.texts] == ["30"]
    assert axes.get_lines()[0].get_markersize() == 6
    assert axes.get_xlabel() == "images seen"
    figures.clear()
    plot(Plot(runs=(one, other), out=str(tmp_path / "out")))
    labels = {axes.get_xlabel() for figure in figures for axes in figure.axes if axes.get_title(loc="left")}
    assert labels == {"images seen by each run, from its own 0"}


def test_a_constant_curve_is_not_cut_by_the_frame(tmp_path, figures):
    """Memory hardly changes. Its axis begins at 0 and has room above the curve."""
    folder = tmp_path / "mine"
    plot(Plot(runs=(write_run(folder), write_run(tmp_path / "other", memory_gb=2.01)), out=str(tmp_path / "out")))
    panels = [axes for figure in figures for axes in figure.axes if axes.get_title(loc="left") == "memory, GB"]
    assert len(panels) == 2  # in the PNG and on the page
    for low, high in (axes.get_ylim() for axes in panels):
        assert low == 0
        assert 2.01 * 1.05 < high < 2.01 * 1.2


def test_a_curve_has_the_points_of_the_file(tmp_path):
    """Values that were not finite are gaps. A row that is still being written is skipped."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "images": 4, "loss/l1": 0.5}\n{"step": 2, "images": 8, "loss/l1": null}\n'
        '{"step": 2, "images": 8, "validation/psnr_y": 30}\n{"st'
    )
    images, values = read_metrics(folder, "mine").curve("loss/l1")
    assert images == [4, 8]
    assert values[0] == 0.5
    assert math.isnan(values[1])


def test_counts_of_skipped_updates_are_shown_if_there_are_any(tmp_path):
    write_run(tmp_path / "stable")
    write_run(tmp_path / "unstable", **{"skipped/generator": 2})
    stable, unstable = (read_metrics(tmp_path / name, name) for name in ("stable", "unstable"))
    assert "skipped/generator" not in section_columns("gradients", [stable])
    assert "skipped/generator" in section_columns("gradients", [stable, unstable])


def test_the_table_has_the_best_and_the_last_value_of_each_metric(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [(1, 29.0, 0.9), (2, 31.0, 0.8), (3, 30.0, None)]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "images": s, "validation/psnr_y": p, "validation/ssim_y": q}) + "\n" for s, p, q in rows)
    )
    assert summarize(read_metrics(folder, "mine"))["scores"] == [
        {"name": "psnr_y", "best": 31.0, "step": 2, "last": 30.0}, {"name": "ssim_y", "best": 0.9, "step": 1, "last": 0.8},
    ]  # fmt: skip


def test_smoothing_has_no_delay_and_skips_gaps():
    """A straight line stays the same where it has neighbours on both sides. A gap becomes its neighbours' mean."""
    line = [float(i) for i in range(400)]
    assert smooth(line)[10:-10] == pytest.approx(line[10:-10])
    assert smooth([1.0, math.nan, 3.0])[1] == 2.0
    assert math.isnan(smooth([math.nan] * 3)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: None, "nothing is at"),
        (lambda run: run.mkdir(), "is not a run folder: it has no metrics.jsonl"),
        (lambda run: (run.mkdir(), (run / "metrics.jsonl").touch()), "no rows yet"),
    ],
)
def test_a_folder_without_rows_is_refused(tmp_path, make, message):
    make(tmp_path / "mine")
    with pytest.raises(UserError, match=message):
        check(Plot(runs=(str(tmp_path / "mine"),)))


def test_one_run_under_two_paths_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^RUN: '.*' names a run twice$"):
        check(Plot(runs=(f"{tmp_path}/mine", f"{tmp_path}/mine/")))


@pytest.mark.slow
def test_the_page_hides_a_run_and_shows_it_again(tmp_path, browser):
    runs = (write_run(tmp_path / "a", rows=150), write_run(tmp_path / "b", rows=6))
    plot(Plot(runs=runs, out=str(tmp_path / "out")))
    browser.get((tmp_path / "out" / "curves.html").as_uri())
    first, second = browser.find_elements("css selector", "[data-run]")

    def is_shown(name):
        return browser.find_element("id", name).value_of_css_property("display") != "none"

    curves = ("loss/l1--run0", "raw-loss/l1--run0", "loss/l1--run1")
    assert [is_shown(curve) for curve in curves] == [True, True, True]
    first.click()
    assert [is_shown(curve) for curve in curves] == [False, False, True]
    first.click(), second.click()
    assert [is_shown(curve) for curve in curves] == [True, True, False]
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("line", ['{"step": 7, "ima', "[1]"])
def test_a_damaged_row_is_named(tmp_path, line):
    run = write_run(tmp_path / "mine")
    with open(tmp_path / "mine" / "metrics.jsonl", "a") as file:
        file.write("\n" + line + "\n")
    with pytest.raises(UserError, match=r"^RUN: line 8 of '.*mine/metrics.jsonl' is not a row of metrics"):
        plot(Plot(runs=(run,)))


def test_the_check_reads_no_more_than_the_first_rows(tmp_path):
    """Of a file of 4 MB, by the kernel's count. The whole of it was read, and once more to draw."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "images": 8, "loss/l1": 0.5}\n' * 100_000)
    before = bytes_read()
    check(Plot(runs=(str(folder),)))
    assert bytes_read() - before < 1_000_000


def bytes_read():
    """What this process has read so far."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
