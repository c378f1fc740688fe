from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from sr_dist.core import cli
from sr_dist.core.cli import Overrides, Word
from sr_dist.core.config import Names, OptionalPositive, Positive, Settings
from sr_dist.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for package in ("sr_dist", "shards")
    for path in (ROOT / package).rglob("*.py")
    if "def main(argv" in path.read_text(encoding="utf-8")
)
HELP = """
import json, runpy, sys
sys.argv = [sys.argv[1], *sys.argv[2:]]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""
HEAVY = {"torch", "torchvision", "webdataset", "deepspeed", "accelerate", "wandb", "torchmetrics", "skimage", "transformers"}


class Paint(Settings):
    """Paints a wall. The wall must be dry.

    Paint dries in a day.
    """

    wall: Annotated[str, Word("WALL")]
    """The wall to paint."""
    corner: Annotated[str, Word("CORNER")] = "left"
    """Where to start."""
    colour: Literal["red", "green"] = "red"
    """The colour."""
    coats: Positive = 2
    """How often."""
    area: float
    """In square metres."""
    brush: OptionalPositive = None
    """The width of the brush."""
    dry: bool = False
    """Only show what would be painted."""
    helpers: Names = ("Ann", "Bob")
    """Who helps."""
    as_json: Annotated[bool, Field(alias="json")] = False
    """Print JSON."""


class Recipe(Settings):
    """Reads a recipe."""

    recipe: Annotated[str, Word("RECIPE")]
    """A file."""
    steps: Positive = 5
    """Steps of the command itself."""
    overrides: Annotated[dict[str, str], Overrides()] = {}
    """Any key of the recipe."""


def settings_of(module: str) -> type[Settings]:
    """The one settings class that a command defines."""
    (settings,) = [
        value
        for value in vars(importlib.import_module(module)).values()
        if isinstance(value, type) and issubclass(value, Settings) and value.__module__ == module
    ]
    return settings


# ---------------------------------------------------------------------------------------------------------------- help


def test_the_commands_are_detected():
    assert {
        "sr_dist.train",
        "sr_dist.evaluate",
        "sr_dist.bench",
        "shards.build",
        "shards.verify",
        "shards.show",
        "shards.index",
    } <= set(COMMANDS)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_lists_every_field_and_loads_nothing_heavy(module, tmp_path):
    line = [sys.executable, "-c", HELP, module, "no-such-word", "--no_such=1", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stderr.splitlines()[-1])) & HEAVY
    assert done.stdout.startswith(f"Usage: python -m {module} ")
    assert max(map(len, done.stdout.splitlines())) <= 130
    text = " ".join(done.stdout.split())
    for name, field in settings_of(module).model_fields.items():
        sentence = " ".join((field.description or "").split())
        assert len(sentence) > 10, name
        assert sentence.endswith("."), name
        option = "--KEY=VALUE" if Overrides() in field.metadata else f"--{field.alias or name}"
        words = [mark.name for mark in field.metadata if isinstance(mark, Word)]
        if words:
            assert f" {words[0]} {sentence} " in f"{text} "
            continue
        assert f" {option}=" in text or f" {option} {sentence}" in text
        if option != "--KEY=VALUE":
            assert f" {sentence} {'(required)' if field.is_required() else '[default: '}" in text


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_tells_its_purpose_in_its_first_line(module):
    first = (settings_of(module).__doc__ or "").splitlines()[0]
    assert first.endswith((".", ","))
    assert 30 < len(first) < 130


def test_help_shows_words_types_defaults_and_notes():
    assert cli.help_text(Paint, ("How to mix", Recipe)).splitlines() == [
        "Usage: python -m test_cli WALL [CORNER] [--key=value ...]",
        "",
        "Paints a wall. The wall must be dry.",
        "",
        "  WALL                     The wall to paint.",
        "  CORNER                   Where to start.",
        "",
        "Options:",
        "  --colour=red|green       The colour. [default: red]",
        "  --coats=INTEGER          How often. [default: 2]",
        "  --area=NUMBER            In square metres. (required)",
        "  --brush=INTEGER          The width of the brush. [default: none]",
        "  --dry                    Only show what would be painted. [default: false]",
        "  --helpers=A,B            Who helps. [default: Ann,Bob]",
        "  --json                   Print JSON. [default: false]",
        "",
        "How to mix:",
        "  --recipe=TEXT            A file. (required)",
        "  --steps=INTEGER          Steps of the command itself. [default: 5]",
        "  --KEY=VALUE              Any key of the recipe.",
        "",
        "Paint dries in a day.",
    ]


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["x", "--area=nothing", "--", "-h"]])
def test_help_comes_before_any_check(words, capsys):
    assert cli.run(Paint, pytest.fail, words) == 0
    assert capsys.readouterr().out.startswith("Usage: ")


# ------------------------------------------------------------------------------------------------------ words and options


def test_words_and_options_become_typed_settings():
    settings = cli.parse(Paint, ["north"], {"area": "1e1", "colour": "green", "dry": "true", "helpers": "Cid", "json": "true"})
    assert (settings.wall, settings.corner, settings.colour, settings.coats) == ("north", "left", "green", 2)
    assert (settings.area, settings.dry, settings.helpers, settings.as_json) == (10.0, True, ("Cid",), True)
    assert cli.parse(Paint, ["north", "right"], {"area": "1"}).corner == "right"


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {}, r"^WALL is missing; see --help$"),
        (["a", "b", "c"], {}, r"^'c' is one word too many \(options are written --key=value\); see --help$"),
        (["a"], {"wall": "b", "area": "1"}, r"^wall: this is a word of the command, not an option; see --help$"),
        (["a"], {"coat": "3", "area": "1"}, r"^coat: unknown option; did you mean 'coats'\?$"),
        (["a"], {"zzzz": "3"}, r"^zzzz: unknown option; choose from area, brush, coats, colour, dry, helpers, json$"),
        (["a"], {"as_json": "true", "area": "1"}, r"^as_json: unknown option; did you mean"),
        (["a"], {}, r"^area: this key is missing$"),
        (["a"], {"area": "wide"}, r"^area: .*valid number.*got 'wide'$"),
        (["a"], {"area": "1", "coats": "0"}, r"^coats: .*greater than 0; got '0'$"),
        (["a"], {"area": "1", "colour": "blue"}, r"^colour: .*'red' or 'green'; got 'blue'$"),
        (["a"], {"area": "1", "json": "perhaps"}, r"^json: .*valid boolean.*got 'perhaps'$"),
    ],
)
def test_a_mistake_names_the_word_or_option(words, options, message):
    with pytest.raises(UserError, match=message):
        cli.parse(Paint, words, options)


def test_options_that_are_not_fields_are_overrides():
    settings = cli.parse(Recipe, ["a.yaml"], {"steps": "3", "data.batch": "8", "overrides": "x", "seed": "1"})
    assert settings.steps == 3
    assert settings.overrides == {"data.batch": "8", "overrides": "x", "seed": "1"}


@pytest.mark.parametrize("text", ["true", "True", "yes", "1"])
def test_a_flag_may_have_a_value(text):
    assert cli.parse(Paint, ["a"], {"area": "1", "dry": text}).dry is True
    assert cli.parse(Paint, ["a"], {"area": "1", "dry": "no"}).dry is False


def test_the_exit_code_is_that_of_the_work():
    assert cli.run(Recipe, lambda settings: None, ["a"]) == 0
    assert cli.run(Recipe, lambda settings: settings.steps, ["a", "--steps=1"]) == 1


def test_mistakes_end_with_2_and_one_line_and_load_nothing_heavy(run_fresh, write_recipe, photo_shards, photos, tmp_path):
    gan = str(write_recipe("gan.yaml", discriminator={"name": "acgan", "classes": 7}))
    tiny = str(write_recipe())
    out, empty = str(tmp_path / "out"), str(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    mistakes = [
        ("sr_dist.train", [tiny, "--generator.nam=x"], ["generator.nam: unknown key", "'name'"]),
        ("sr_dist.train", [tiny, "--generator.name=srugun"], ["generator.name: ", "'srugan'"]),
        ("sr_dist.train", [tiny, "--data.train=" + str(photo_shards) + "s"], ["data.train: ", f"did you mean '{photo_shards}'?"]),
        ("sr_dist.train", [tiny, "--data.crop=31"], ["data.crop: 31 ", "30 and 32"]),
        ("sr_dist.train", [tiny, "--data.crop=64"], ["data.crop: 64 ", "32"]),
        ("sr_dist.train", [gan], ["discriminator.classes: 7", "3"]),
        ("sr_dist.train", [tiny, "--stepps=3"], ["stepps: unknown key", "'steps'"]),
        ("sr_dist.train", [tiny, "--steps"], ["steps: ", "'true'"]),
        ("sr_dist.train", [tiny, "--data.batch=0"], ["data.batch: ", "'0'"]),
        ("sr_dist.train", [tiny, "--steps=3.5"], ["steps: ", "'3.5'"]),
        ("sr_dist.train", [tiny, "--dry_run=perhaps"], ["dry_run: ", "'perhaps'"]),
        ("sr_dist.train", [tiny.replace("tiny.yaml", "tinny.yaml")], ["no recipe", "tiny.yaml'?"]),
        ("sr_dist.train", [], ["RECIPE is missing"]),
        ("sr_dist.train", [tiny, "8"], ["'8' is one word too many"]),
        ("sr_dist.train", [f"--recipe={tiny}"], ["RECIPE is missing"]),
        ("sr_dist.train", [tiny, f"--recipe={tiny}"], ["recipe: this is a word of the command"]),
        ("sr_dist.export", [tiny], ["OUT is missing"]),
        ("sr_dist.export", [tiny, "x.pth", "--scale=two"], ["scale: ", "'two'"]),
        ("sr_dist.upscale", [tiny, tiny, "x.png", "--tiel=8"], ["tiel: unknown option", "'tile'"]),
        ("sr_dist.interpolate", [tiny, tiny, "x.pth", "--alpha=2"], ["alpha: ", "'2'"]),
        ("sr_dist.interpolate", [tiny, tiny, "x.pth"], ["alpha: this key is missing"]),
        ("sr_dist.train", [tiny, "-s", "8"], ["'-s'", "two dashes"]),
        ("sr_dist.train", [tiny, "--", "--trace"], ["'--'"]),
        ("sr_dist.bench", ["date", tiny], ["BENCHMARK: ", "'date'", "choose from data, step, eval"]),
        ("sr_dist.bench", ["eval", "--image=8"], ["image: unknown option", "'images'"]),
        ("sr_dist.bench", ["eval", tiny], ["one word too many"]),
        ("sr_dist.evaluate", ["bicubic", "--data=.", "--scale=2", "--metrics=psnr,fif"], ["metrics: ", "'fid'"]),
        ("sr_dist.bench", ["step"], ["RECIPE is missing"]),
        ("sr_dist.bench", ["step", tiny, "--steps=0"], ["steps: ", "'0'"]),
        ("sr_dist.bench", ["data", tiny, "--memory"], ["memory: an option of `bench step --memory`", "takes --images, --rounds"]),
        ("sr_dist.bench", ["step", tiny, "--gpus=4"], ["gpus: an option of `bench step --memory`; `bench step` takes --steps"]),
        ("sr_dist.bench", ["data", tiny, "--steps=9"], ["steps: an option of `bench step`;", "--images, --rounds"]),
        ("sr_dist.bench", ["step", tiny, "--memory", "--steps=9"], ["steps: an option of `bench step`;", "--memory, --gpus"]),
        ("sr_dist.bench", ["eval", "--gpus=4"], ["gpus: an option of `bench step --memory`;", "--images, --rounds, --width"]),
        ("sr_dist.bench", ["step", tiny, "--memory", "--gpus=many"], ["gpus: ", "'many'"]),
        ("sr_dist.plot", [], ["RUN[,RUN] is missing"]),
        ("sr_dist.plot", [str(photo_shards) + "x"], ["RUN: nothing is at", "photos'?"]),
        ("sr_dist.plot", [str(photo_shards)], ["RUN: ", "no metrics.jsonl"]),
        ("sr_dist.plot", [tiny, "--uot=x"], ["uot: unknown option", "'out'"]),
        ("sr_dist.doctor", ["now"], ["'now' is one word too many"]),
        ("sr_dist.doctor", [f"--runs={tiny}"], ["runs: ", "is a file"]),
        ("sr_dist.dashboard", ["sr_dist"], ["ENTITY/PROJECT: 'sr_dist'"]),
        ("sr_dist.evaluate", ["bicubik", "--data=."], ["METHOD: ", "'bicubic'"]),
        ("sr_dist.evaluate", ["bicubic"], ["data: this key is missing"]),
        ("sr_dist.evaluate", ["bicubic", "--data=.", "--scael=2"], ["scael: unknown option", "'scale'"]),
        ("shards.build", ["class_folders", str(photos), out, "--per_shards=8"], ["per_shards: unknown option", "'per_shard'"]),
        ("shards.build", ["class_folders", str(photos), out, "--part=test"], ["part: unknown option of 'class_folders'"]),
        ("shards.build", ["class_folders", str(photos), out, "--per_shard=0"], ["per_shard: ", "'0'"]),
        ("shards.build", ["class_folders", str(photos), out, "--on_bad=stop"], ["on_bad: ", "'skip'"]),
        ("shards.build", ["class_folder", str(photos), out], ["SOURCE", "'class_folders'"]),
        ("shards.build", ["folder", str(tmp_path / "nowhere"), out], ["INPUT: no folder"]),
        ("shards.build", ["folder", empty, out], ["INPUT: no images"]),
        ("shards.build", ["sample_photos", "trian", out], ["INPUT: ", "'train'"]),
        ("shards.build", ["folder", str(photos), str(photo_shards)], ["OUT: ", "already holds shards"]),
        ("shards.build", ["folder", str(photos)], ["OUT is missing"]),
        ("shards.build", ["class_folders", str(photos), out, "--task=3/3"], ["task: ", "the first is 0"]),
        ("shards.build", ["pairs", str(photos), out], ["lr: ", "--lr=FOLDER"]),
        ("shards.index", [out, str(photo_shards) + "/photos-{000000..000009}.tar"], ["TARS: ", "photos-000003.tar"]),
        ("shards.index", [out, str(photo_shards) + "/photos-000000.tar", "--worker=2"], ["worker: ", "'workers'"]),
        ("shards.verify", [empty], ["OUT: ", "no manifest.json"]),
        ("shards.verify", [str(photo_shards), "--depp"], ["depp: unknown option", "'deep'"]),
        ("shards.verify", [str(photo_shards) + "/{photos-000000.tar"], ["OUT: ", "braces"]),
        ("shards.show", [str(photo_shards), "--nmu=3"], ["nmu: unknown option", "'num'"]),
        ("shards.show", [str(photo_shards), "--num=0"], ["num: ", "'0'"]),
    ]  # fmt: skip
    answers = run_fresh([(module, words) for module, words, _ in mistakes])
    wrong = []
    for (module, words, pieces), answer in zip(mistakes, answers, strict=True):
        one_line = answer.err.startswith("error: ") and answer.err.count("\n") == 1 and not answer.out
        if answer.code != 2 or not one_line or answer.heavy or not all(piece in answer.err for piece in pieces):
            wrong.append((module, words, pieces, answer))
    assert wrong == []
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_only_the_first_rank_of_a_node_prints_the_error(monkeypatch, capsys):
    def work(settings):
        raise UserError("two\nlines")

    assert cli.run(Recipe, work, ["a"]) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    assert cli.run(Recipe, work, ["a"]) == 2
    assert capsys.readouterr().err == ""


def test_an_error_of_ours_keeps_its_traceback():
    def work(settings):
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        cli.run(Recipe, work, ["a"])


def test_a_dry_run_prints_the_resolved_recipe_and_leaves_nothing(run_commands, write_recipe, tmp_path):
    (answer,) = run_commands([("sr_dist.train", [str(write_recipe()), "--dry_run", "--seed=5", "--name=2024_01"])])
    assert answer.code == 0, answer.err
    tree = yaml.safe_load(answer.out)
    assert (tree["name"], tree["seed"], tree["precision"], tree["generator"]["channels"]) == ("2024_01", 5, "no", 3)
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------------------------------------- splitting of words


def test_words_and_options_stay_text():
    assert cli.split(["RECIPE", "--data.batch=8", "--dry_run", "--name=2024_01", "--x=1e-4", "--init.generator=a=b"]) == (
        ["RECIPE"],
        {"data.batch": "8", "dry_run": "true", "name": "2024_01", "x": "1e-4", "init.generator": "a=b"},
    )


def test_a_flag_does_not_swallow_the_word_after_it():
    assert cli.split(["--dry_run", "RECIPE"]) == (["RECIPE"], {"dry_run": "true"})
    assert cli.split(["--dry-run"]) == ([], {"dry_run": "true"})


keys = st.from_regex(r"[a-z][a-z_0-9]{0,5}(\.[a-z][a-z_0-9]{0,5}){0,2}", fullmatch=True)
values = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
words = values.filter(lambda word: word and not word.startswith("-"))


@pytest.mark.parametrize("argv", [["RECIPE", "-", "keys"], ["-"], ["--=3"], ["--"], ["-x"], ["RECIPE", "--", "--trace"]])
def test_words_that_mean_something_to_fire_are_refused_as_a_users_mistake(argv, capsys):
    with pytest.raises(UserError):
        cli.split(argv)
    assert capsys.readouterr().err == ""


@given(st.lists(words, max_size=3), st.dictionaries(keys, values, max_size=4))
def test_any_words_and_values_arrive_as_they_were_written(positional, options):
    assert cli.split([*positional, *(f"--{key}={value}" for key, value in options.items())]) == (positional, options)
