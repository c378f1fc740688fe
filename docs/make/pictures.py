"""Makes the pictures of the manual from the runs of the demo:  bash launch/demo.sh && python -m docs.make.pictures

Needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from docs.make.pages import ROOT
from sr_dist import evaluate, plot

OUT = ROOT / "docs" / "pictures"
RUNS = "runs/demo_pixel,runs/demo"
VALIDATION = "data/sample_photos/validation"
WIDTH, COLOURS = 1200, 128


def main() -> None:
    OUT.mkdir(exist_ok=True)
    write("samples", Image.open(max((ROOT / "runs" / "demo" / "samples").glob("*.png"))))
    with tempfile.TemporaryDirectory() as folder:
        evaluate.main([RUNS, f"--data={VALIDATION}", "--metrics=psnr,ssim", f"--out={folder}"])
        plot.main([RUNS, f"--out={folder}"])
        browser = open_browser()
        write("report", screenshot(browser, Path(folder) / "report.html"))
        write("runs", screenshot(browser, Path(folder) / "curves.html"))
        browser.quit()


def open_browser() -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={WIDTH},1000"):
        options.add_argument(word)
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def screenshot(browser: Any, page: Path) -> Image.Image:
    browser.get(page.as_uri())
    return Image.open(io.BytesIO(browser.get_screenshot_as_png()))


def write(name: str, image: Image.Image) -> None:
    """A small PNG. Photographs keep their colours."""
    image = image.convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, image.height * WIDTH // image.width), Image.Resampling.LANCZOS)
    if name != "samples":
        image = image.quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(OUT / f"{name}.png", optimize=True)
    print(OUT / f"{name}.png", image.size, (OUT / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
