"""The manual's commands are run as its pages have them, its examples are whole, and its site has no broken link."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import processes
import pytest
from photographs import made_photo
from PIL import Image
from test_docs import ROOT, blocks, commands

DOCS = ROOT / "docs"
SHORT = [
    "--steps=2",
    "--data.batch=4",
    "--data.workers=0",
    "--save_every=2",
    "--validate_every=2",
    "--log_every=1",
    "--log.wandb=off",
]
PUBLISHED = "RealESRGAN_x4plus_anime_6B.pth"


def commands_of(*pages: Path) -> list[list[str]]:
    """The modules and words of the pages' Python commands, without a launcher, each once."""
    all_words = [words for page in pages for words in commands("\n".join(blocks(page)))]
    python = [words[words.index("-m") + 1 :] for words in all_words if words[0] in ("python", "accelerate")]
    return [list(words) for words in dict.fromkeys(map(tuple, python))]


# ------------------------------------------------------------------------------------------------- the walk of a new user


def shortened(module: str, words: list[str]) -> list[str]:
    """The same command with a tiny network and two steps; VGG's weights are on no test machine."""
    if module != "sr_dist.train":
        return words
    recipe, own = words[0], any(word.startswith("--generator=auto") for word in words)
    words = [*words, *SHORT, "--data.crop=32"]
    if not own:
        words += ["--generator.num_blocks=1", "--generator.width=8", "--generator.growth=4"]
    if "gan" in recipe:
        words += ["--objective.content={l1: 1.0}", "--discriminator.width=8"]
    if recipe == "esrgan_x4":
        words += ["--discriminator.crop=32", "--discriminator.features=8"]
    return words


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory) -> Path:
    """A folder with photographs and a published file, here of a smaller RRDB."""
    import torch

    from sr_dist.models.generators import rrdb

    folder = tmp_path_factory.mktemp("user")
    for number in range(24):
        path = folder / ("small" if number < 2 else "photos") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made_photo(number, 132, 128 if number else 40)).save(path)
    network = rrdb.build(rrdb.Config(num_blocks=2, width=8, growth=4), 4)
    torch.save({"params_ema": network.state_dict()}, folder / PUBLISHED)
    return folder


@pytest.mark.slow
def test_a_new_user_trains_tunes_evaluates_and_enlarges(users_folder):
    """Start, then Fine-tune, command by command; README has no other."""
    walk = commands_of(DOCS / "start.md", DOCS / "finetune.md")
    readme = [words for words in commands_of(ROOT / "README.md") if words[0] != "sr_dist"]
    assert [words for words in readme if words not in walk] == []
    told = [words for words in walk if words[0] in ("shards.build", "sr_dist.train", "sr_dist.evaluate", "sr_dist.upscale")]
    assert len(told) <= 14
    for module, *words in walk:
        processes.run(0, module, *shortened(module, words), cwd=users_folder)
    runs = {path.parent.name for path in (users_folder / "runs").glob("*/DONE")}
    assert runs == {"rrdb_psnr_x4", "esrgan_x4", "try_pixel", "try_gan", "tuned_pixel", "tuned"}
    report = json.loads(next((users_folder / PUBLISHED).parent.glob("**/report.json")).read_text())
    assert report["n"] > 0 and (users_folder / "tuned.pth").is_file()
    assert {Image.open(path).size for path in (users_folder / "after").rglob("*.png")} == {(160, 528), (512, 528)}


# ------------------------------------------------------------------------------------------------------ examples of parts

PAGES_OF_PARTS = sorted((DOCS / "extend").glob("*.md"))


def examples(page: Path) -> list[tuple[str, str]]:
    """(file, code) of the whole files of a page; the text before a block names its file."""
    files = re.findall(r"`([\w/]+\.py)`(?:(?!```)[\s\S])*?```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert files, page
    return files


@pytest.mark.slow
def test_the_example_of_every_kind_of_part_runs_as_its_page_says(tmp_path, photos, photo_shards):
    import torch

    data = tmp_path / "data" / "sample_photos"
    shutil.copytree(photo_shards, data / "train")
    shutil.copytree(photos, data / "validation")
    lines = [f"{path}\t{path.parent.name}" for path in sorted(photos.rglob("*.*"))]
    (tmp_path / "list.txt").write_text("\n".join(["path\tclass", *lines]) + "\n")
    pooled = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
    torch.jit.trace(pooled.eval(), torch.rand(2, 3, 299, 299)).save(tmp_path / "features.pt")
    for page in PAGES_OF_PARTS:
        for name, code in examples(page):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(code)
    calls = []
    for module, *words in commands_of(*PAGES_OF_PARTS):
        calls.append(
            (module, [*words, *SHORT, "--data.crop=32", "--validate_every=none"] if module == "sr_dist.train" else words)
        )
    assert len(calls) == len(PAGES_OF_PARTS)  # one without (a tracker), one with two (metrics)
    path = f"{ROOT}:{ROOT / 'tests'}"
    out, _ = processes.run(0, "run_commands", json.dumps(calls), cwd=tmp_path, PYTHONPATH=path)
    answers = json.loads(out.splitlines()[-1])
    assert [(call, err[-2000:]) for call, (code, _, err, _) in zip(calls, answers, strict=True) if code] == []
    assert {run.parent.name for run in (tmp_path / "runs").glob("*/DONE")} == {
        "small", "critic", "pooled", "edges", "soft", "noisy", "adagrad",
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "runs" / "edges" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0].keys() >= {"loss/mine.edges", "reading/mine.edges_strength"}
    assert "mae" in answers[-3][1] and "means" in "".join(answer[1] for answer in answers)


def test_the_example_of_a_tracker_writes_what_it_is_told(tmp_path, write_recipe):
    from sr_dist.recipe import checks

    ((_, code),) = examples(DOCS / "extend" / "tracker.md")
    (tmp_path / "table.py").write_text(code)
    spec = importlib.util.spec_from_file_location("table", tmp_path / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = checks.read_recipe(write_recipe(), {})
    recipe.folder.mkdir(parents=True)
    lines: list[str] = []
    tracker = module.open_tracker(recipe, lines.append)
    tracker.row({"step": 2, "loss/l1": 0.5, "images": 8})
    for method, arguments in (("table", ("x", [], {})), ("image", ("x", tmp_path, {})), ("checkpoint", (tmp_path, 2, False))):
        getattr(tracker, method)(*arguments)
    tracker.preempted("stopped")
    tracker.close(0)
    assert lines and (recipe.folder / "losses.csv").read_text() == "2,l1,0.5\n"


# -------------------------------------------------------------------------------------------------------------- messages


def test_messages_of_the_page_of_troubles_are_those_of_the_program():
    """Each is between `...` in a string of the sources: those of torch are excepted."""
    sources = [path.read_text() for package in ("sr_dist", "shards") for path in (ROOT / package).rglob("*.py")]
    text = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    messages = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    parts = [part.strip(" ;") for message in messages for part in message.split("...")]
    assert len(messages) > 15
    assert [part for part in parts if part not in text and part not in ("CUDA out of memory", "data wait", "Not computed:")] == []


# ------------------------------------------------------------------------------------------------------------------ site


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name in ("id", "name") and value:
                self.ids.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    out = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out), strict=True))
    return out


@pytest.mark.slow
def test_the_site_is_built_strictly_and_has_no_broken_link(site):
    """From a disk: every link of every page is a file of the site, and its anchor exists."""
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}  # a server's
    assert len(pages) > 35
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            path, _, anchor = unquote(target).partition("#")
            if re.match(r"(https?|data|mailto):|//", path):
                continue
            place = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not place.exists() or (anchor and place in pages and anchor not in pages[place].ids):
                broken.append((page.name, target))
    assert broken == []


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site):
    outside = {
        (path.name, target)
        for path in site.rglob("*.html")
        for target in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="((?:https?:)?//[^"]+)"', path.read_text())
    }
    assert outside == set()


WIDEST = ("index", "reference/recipe", "reference/commands", "recipes/gan", "protocols", "basicsr", "extend/objective", "memory")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 420])
def test_no_page_is_wider_than_the_window(site, browser, width):
    """Tables and code scroll inside themselves."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    wide = []
    for page in WIDEST:
        browser.get((site / f"{page}.html").as_uri())
        if (needed := browser.execute_script("return document.documentElement.scrollWidth")) > width:
            wide.append((page, needed))
    assert wide == [] and browser.get_log("browser") == []


@pytest.mark.slow
def test_the_search_works_from_a_disk(site, browser):
    browser.get((site / "extend" / "tracker.html").as_uri())
    browser.execute_script("document.querySelector('#__search').click()")
    browser.find_element("css selector", "input.md-search__input").send_keys("relativistic")

    def titles() -> list[str]:
        script = "return [...document.querySelectorAll('.md-search-result__article h1')].map(title => title.textContent)"
        return browser.execute_script(script)

    processes.wait_for(titles)
    assert "An objective" in titles()
