"""README and the pages in docs: they are short, their links lead somewhere, and every command in them is one that exists."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards import build
from shards.pixels import Preparation
from shards.source import load_source
from sr_dist.core import cli
from sr_dist.core.config import typed
from sr_dist.recipe import checks, shipped

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


def blocks(page: Path) -> Iterator[str]:
    """The code of a page that is for a shell."""
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if not kind and re.search(r"^(\w+=\S* )*(python|accelerate|bash|sbatch) ", text, re.MULTILINE):
            yield text


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command, with variables replaced: a loop stands for its first round."""
    variables: dict[str, str] = {}
    text = re.sub(r"\\\n", " ", re.sub(r"(^|\s)# .*", "", text, flags=re.MULTILINE))
    text = re.sub(r"\$\((.*?)\)", "runs/x", text)
    text = re.sub(r"for (\w+) in (\S+)[^;]*; do", lambda loop: f"\n{loop[1]}={loop[2]}\n", text)
    for line in re.split(r"\n|;(?![^{]*\})", text):
        line = re.sub(r"\$\{?(\w+)\}?", lambda name: variables.get(name[1], name[0]), line)
        words = shlex.split(line)
        if not words or words == ["done"]:
            continue
        if len(words) == 1 and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0], re.DOTALL)):
            variables[assigned[1]] = assigned[2]
            continue
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        words = words[: words.index(">")] if ">" in words else words
        yield words


EXAMPLES = ROOT / "docs" / "extend"  # files of one's own, which test_manual.py writes and runs
ALL = [(page, words) for page in PAGES if page.parent != EXAMPLES for words in commands("\n".join(blocks(page)))]


def test_the_readme_is_read_to_its_end():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 300


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [PAGES[0], *PAGES[2:-1]], ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    """Paths of the repository, recipes with and without their folder, and plug-in folders with NAME."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:configs|launch|tests|benchmarks|sr_dist|shards)/[\w/.-]+)`", text):
        name = path.replace("NAME.py", "").replace("NAME.yaml", "")
        assert (ROOT / name).exists() or list(ROOT.glob(f"{name}*")), f"{page.name}: {path}"


def test_the_table_of_systems_names_every_recipe():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if re.match(r"\| S\d+(, S\d+)? \|", line)]
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    recipes = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert {row.split(" | ")[0].removeprefix("| ") for row in rows} >= {"S0", "S12", "S14"} and len(rows) == 14
    others = {f"srgan_mse{name}_mnist_{form}" for name, form in (("", "x4"), ("_cnn", "x2"), ("_cnn", "x4"), ("_cnn", "x4_grey"))}
    assert recipes - named == others  # "srgan_mse_mnist_x2, ..."


def refused(words: list[str], monkeypatch) -> None:
    """Parses a command with the code that would run it; a mistake raises."""
    if words[0] == "accelerate":
        words = ["python", *words[words.index("-m") :]]
    if words[0] in ("bash", "sbatch"):
        scripts = [word for word in words if word.endswith((".sh", ".sbatch"))]
        assert scripts and all((ROOT / script).is_file() for script in scripts), words
        recipes = [word for word in words if word.startswith("configs/") or word in shipped.names()]
        overrides = cli.split([word for word in words if re.match(r"--\w+\.[\w.]+=", word)])[1]
        for recipe in recipes:
            checks.read_recipe(recipe, overrides)
        return
    if words[1] != "-m":
        assert (ROOT / words[1]).is_file(), words
        return
    module, words = words[2], words[3:]
    if module in ("sr_dist.train", "sr_dist.bench"):
        settings = {"sr_dist.train": "Train", "sr_dist.bench": "Bench"}[module]
        options = cli.parse(getattr(importlib.import_module(module), settings), *cli.split(words))
        if options.recipe and (options.recipe.startswith("configs/") or options.recipe in shipped.names()):
            checks.read_recipe(options.recipe, options.overrides)
    elif module == "shards.build":
        (source, *rest), options = cli.split(words)
        assert len(rest) == 2, words
        if source != "SOURCE":
            own = load_source(source).Config
            groups = build._by_class(source, options, own, Preparation, build.Build)
            typed(own, groups[0])
    else:
        monkeypatch.setattr(cli, "run", lambda settings, work, argv: cli.parse(settings, *cli.split(argv)))
        module = {"sr_dist": "sr_dist.__main__"}.get(module, module)
        monkeypatch.setattr(cli, "run_words", lambda work, make_help, argv: cli.split(argv))
        importlib.import_module(module).main(words)


@pytest.mark.parametrize(
    ("page", "words"), ALL, ids=lambda value: value.name if isinstance(value, Path) else " ".join(value)[:60]
)
def test_commands_have_the_words_and_options_of_the_program(page, words, monkeypatch):
    known = ("python", "accelerate", "bash", "sbatch", "pytest", ".", "$EDITOR", "pre-commit", "git", "pip", "tensorboard")
    assert words[0] in known, words
    monkeypatch.chdir(ROOT)
    if words[0] in known[:4] and "RECIPE" not in words and "SHARDS" not in " ".join(words):
        refused(words, monkeypatch)


def test_this_test_sees_a_command_that_does_not_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in (
        "python -m sr_dist.train configs/demo.yaml --data.bach=4",
        "python -m sr_dist.evaluate a --dat=b",
        "python -m shards.build folder in out --tyle=3",
        "python -m sr_dist.upscale a b",
        "bash launch/no.sh",
    ):
        with pytest.raises((ValueError, AssertionError)):
            refused(next(commands(line)), monkeypatch)
