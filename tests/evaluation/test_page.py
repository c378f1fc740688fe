"""The report in a real browser, without a screen and without a network."""

from __future__ import annotations

import pytest
import torch
from test_attributes import with_answers
from test_report import reported, store, write

from sr_dist.evaluation import curve_page
from sr_dist.evaluation.distances.extractor import torchscript
from sr_dist.evaluation.metric_set import open_metrics

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory, stand_in):
    """A report of six images and two trained methods, with a classifier's answers to two, open in the browser."""
    root = tmp_path_factory.mktemp("page")
    for i in range(6):
        store(root / "images" / f"tile{i}.png", (64, 96), seed=i)
    metrics = open_metrics(["psnr", "ssim", "fid", "kid"], CPU, extractor=torchscript(stand_in, "clean", CPU))
    finished_report, batches, methods = reported(root / "images", "other", "mine", metrics=metrics)
    finished_report = with_answers(finished_report, "bicubic", "mine")
    write(root / "out", finished_report, batches, methods)
    browser.get((root / "out" / "report.html").as_uri())
    return finished_report, browser


def elements(browser, selector):
    return browser.find_elements("css selector", selector)


def rows_of(table):
    return table.find_elements("css selector", "tbody tr")


@pytest.mark.slow
def test_the_page_works_in_a_browser(opened):
    finished_report, browser = opened
    from selenium.webdriver import ActionChains

    # the slider follows a click and a drag
    stage = elements(browser, ".stage")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    for place in (0.25, 0.8):
        ActionChains(browser).move_to_element_with_offset(stage, int((place - 0.5) * stage.size["width"]), 0).click().perform()
        cut = float(stage.get_dom_attribute("style").split("--cut:")[1].strip(" ;%"))
        assert cut == pytest.approx(100 * place, abs=1)
    far = int(0.2 * stage.size["width"])
    ActionChains(browser).click_and_hold(stage).move_by_offset(far, 0).release().perform()
    assert float(stage.get_dom_attribute("style").split("--cut:")[1].strip(" ;%")) == pytest.approx(70, abs=1)

    # a button changes the method on the left
    figure = elements(browser, "figure")[0]
    assert [
        image.get_attribute("data-label") for image in figure.find_elements("css selector", ".over") if image.is_displayed()
    ] == ["mine"]
    next(button for button in figure.find_elements("css selector", ".choice button") if button.text == "LR").click()
    shown = [image for image in figure.find_elements("css selector", ".over") if image.is_displayed()]
    assert [image.get_attribute("data-label") for image in shown] == ["LR"]
    assert figure.find_element("css selector", ".tag.left").text == "LR, 48 x 32"
    assert all(image.get_property("naturalWidth") == 96 for image in figure.find_elements("css selector", "img"))

    # a column sorts, downwards and upwards
    head = [button.text for button in elements(browser, "#scores th button")]
    column = head.index("ssim_y")
    for reverse in (True, False):
        browser.execute_script("arguments[0].click()", elements(browser, "#scores th button")[column])
        names = [row.find_element("css selector", "td").text for row in elements(browser, "#scores tbody tr")]
        assert names == sorted(finished_report.order, key=lambda name: finished_report.methods[name]["ssim_y"], reverse=reverse)

    # the tables of classifiers sort independently
    tables = elements(browser, "table[data-name]")
    assert [table.get_dom_attribute("data-name") for table in tables] == ["ranking", "facts/Male", "facts/Smiling", "pairs"]
    lost = [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows_of(tables[0])]
    assert [row[0] for row in lost] == ["Male", "Smiling"] and lost[0][4].startswith("+25.00 [")
    true_positives = tables[1].find_elements("css selector", "th button")[1]
    for expected in (["3", "2", "1"], ["1", "2", "3"]):
        browser.execute_script("arguments[0].click()", true_positives)
        assert [row.find_elements("css selector", "td")[1].text for row in rows_of(tables[1])] == expected
    assert [row.find_element("css selector", "td").text for row in rows_of(tables[2])] == ["HR", "bicubic", "mine"]

    # the other plots and tables
    assert len(elements(browser, "#trade-offs .dot")) == 2 * len(finished_report.order)
    assert len(elements(browser, "#histograms svg")) == len(finished_report.image_columns)
    assert len(elements(browser, "#extremes tbody tr")) == len(finished_report.image_columns)
    assert len(elements(browser, "#differences tbody tr")) == 2  # of each trained method to bicubic; the others are folded
    assert len(elements(browser, "#other-differences tbody tr")) == 2 + 2 + 1
    assert "n" in [row.find_element("css selector", "td").text for row in elements(browser, "#distances tbody tr")]

    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [entry["message"] for entry in browser.get_log("performance") if 'Network.requestWillBeSent"' in entry["message"]]
    assert [message for message in requests if '"url":"http' in message] == []


def point(name, length, alpha, x, y):
    ends = {"psnr_y": (x, x - 0.4, x + 0.4), "lpips_alex": (y, y - 0.02, y + 0.02)}
    values = {column: dict(zip(("value", "low", "high"), numbers, strict=True)) for column, numbers in ends.items()}
    return {"name": name, "ema": length, "alpha": alpha, "on_frontier": True, **values}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 420])
def test_a_curve_is_read_on_a_wide_and_on_a_narrow_screen(browser, tmp_path, width):
    """All numbers of the axes are inside the page and of readable size, and a table that is cut says that it scrolls."""
    points = [point("pixel", None, 0.0, 28.4178, 0.2711), point("ema0.05_a0.5", 0.05, 0.5, 26.91, 0.1532)]
    about = {"distortion": "psnr_y", "perception": "lpips_alex", "better": "lower", "n": 9, "notes": []}
    (tmp_path / "curve.html").write_text(curve_page.page({**about, "points": points}))
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get((tmp_path / "curve.html").as_uri())
    numbers = elements(browser, ".plot span, svg text")
    assert len(numbers) >= 10
    for number in numbers:
        left, right, size = browser.execute_script(
            "const box = arguments[0].getBoundingClientRect(), own = arguments[0].closest('main').getBoundingClientRect();"
            "return [box.left - own.left, own.right - box.right, box.height]",
            number,
        )
        assert left > 0 and right > 0 and size > 10, (number.text, left, right, size)
    (table,), (hint,) = elements(browser, ".scroll"), elements(browser, ".hint")
    cut = browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", table)
    assert (cut, hint.is_displayed()) == ((True, True) if width == 420 else (False, False))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
