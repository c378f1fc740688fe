from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.core import cli
from sr_dist.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DOORS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for package in ("sr_dist", "shards")
    for path in (ROOT / package).rglob("*.py")
    if "cli.run(main)" in path.read_text(encoding="utf-8")
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


def test_the_known_doors_are_found():
    assert {
        "sr_dist.train",
        "sr_dist.evaluate",
        "sr_dist.bench",
        "shards.build",
        "shards.verify",
        "shards.show",
        "shards.index",
    } <= set(DOORS)


@pytest.mark.parametrize("module", DOORS)
def test_help_is_the_docstring_and_loads_nothing_heavy(module, tmp_path):
    call = [sys.executable, "-c", HELP, module, "no-such-word", "--no_such=1", "--help"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not loaded & HEAVY
    text = inspect.getdoc(importlib.import_module(module))
    assert done.stdout.strip() == text
    assert f"python -m {module}" in text


@pytest.mark.parametrize("module", DOORS)
def test_every_door_says_what_it_does_in_its_first_line(module):
    first = importlib.import_module(module).__doc__.splitlines()[0]
    assert first.endswith(".")
    assert len(first) < 130


def test_mistakes_end_with_2_and_one_line_and_load_nothing_heavy(open_doors, write_recipe, photo_shards, photos, tmp_path):
    gan = str(write_recipe("gan.yaml", discriminator={"name": "acgan", "classes": 7}))
    tiny = str(write_recipe())
    out, empty = str(tmp_path / "out"), str(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    mistakes = [
        ("sr_dist.train", [tiny, "--generator.nam=x"], ["generator.nam: unknown key", "'name'"]),
        ("sr_dist.train", [tiny, "--generator.name=srugun"], ["generator.name: ", "'srugan'"]),
        ("sr_dist.train", [tiny, "--data.train=" + str(photo_shards) + "s"], ["data.train: ", "'photos'"]),
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
        ("sr_dist.train", [tiny, "-s", "8"], ["'-s'", "two dashes"]),
        ("sr_dist.train", [tiny, "--", "--trace"], ["'--'"]),
        ("sr_dist.bench", ["date", tiny], ["WHAT: 'date'", "there is: data, step, eval"]),
        ("sr_dist.bench", ["eval", "--image=8"], ["image: unknown option", "'images'"]),
        ("sr_dist.bench", ["eval", tiny], ["one word too many"]),
        ("sr_dist.evaluate", ["bicubic", "--data=.", "--scale=2", "--metrics=psnr,fif"], ["metrics: ", "'fid'"]),
        ("sr_dist.bench", ["step"], ["RECIPE is missing"]),
        ("sr_dist.bench", ["step", tiny, "--steps=0"], ["steps: '0'"]),
        ("sr_dist.bench", ["step", tiny, "--memory", "--gpus=many"], ["gpus: 'many'"]),
        ("sr_dist.plot", [], ["RUN is missing"]),
        ("sr_dist.plot", [str(photo_shards) + "x"], ["RUN: nothing is at", "photos'?"]),
        ("sr_dist.plot", [str(photo_shards)], ["RUN: ", "no metrics.jsonl"]),
        ("sr_dist.plot", [tiny, "--uot=x"], ["uot: unknown key", "'out'"]),
        ("sr_dist.doctor", ["now"], ["'now' is one word too many"]),
        ("sr_dist.doctor", [f"--runs={tiny}"], ["runs: ", "is a file"]),
        ("sr_dist.dashboard", ["sr_dist"], ["ENTITY/PROJECT: 'sr_dist'"]),
        ("sr_dist.evaluate", ["bicubik", "--data=."], ["METHOD: ", "'bicubic'"]),
        ("sr_dist.evaluate", ["bicubic"], ["data: this key is missing"]),
        ("sr_dist.evaluate", ["bicubic", "--data=.", "--scael=2"], ["scael: unknown key", "'scale'"]),
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
        ("shards.show", [str(photo_shards), "--nmu=3"], ["nmu: unknown key", "'num'"]),
        ("shards.show", [str(photo_shards), "--num=0"], ["num: ", "'0'"]),
    ]  # fmt: skip
    answers = open_doors([(module, words) for module, words, _ in mistakes])
    wrong = []
    for (module, words, said), answer in zip(mistakes, answers, strict=True):
        one_line = answer.err.startswith("error: ") and answer.err.count("\n") == 1 and not answer.out
        if answer.code != 2 or not one_line or answer.heavy or not all(piece in answer.err for piece in said):
            wrong.append((module, words, said, answer))
    assert wrong == []
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_only_the_first_rank_of_a_node_says_the_error(monkeypatch, capsys):
    def main(words, options):
        raise UserError("two\nlines")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main([]) == 2
    assert capsys.readouterr().err == ""


def test_what_is_not_a_users_mistake_keeps_its_traceback():
    def main(words, options):
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        main([])


def test_a_dry_run_prints_the_resolved_recipe_and_leaves_nothing(open_doors, write_recipe, tmp_path):
    (answer,) = open_doors([("sr_dist.train", [str(write_recipe()), "--dry_run", "--seed=5", "--name=2024_01"])])
    assert answer.code == 0, answer.err
    import yaml

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


@pytest.mark.parametrize("given", [["RECIPE", "-", "keys"], ["-"], ["--=3"], ["--"], ["-x"], ["RECIPE", "--", "--trace"]])
def test_words_that_mean_something_to_fire_are_refused_as_a_users_mistake(given, capsys):
    with pytest.raises(UserError):
        cli.split(given)
    assert capsys.readouterr().err == ""


@given(st.lists(words, max_size=3), st.dictionaries(keys, values, max_size=4))
def test_any_words_and_values_arrive_as_they_were_written(positional, options):
    assert cli.split([*positional, *(f"--{key}={value}" for key, value in options.items())]) == (positional, options)


@pytest.mark.parametrize("text", ["true", "True", "yes", "1"])
def test_a_flag_is_taken_out_of_the_options(text):
    options = {"deep": text, "other": "1"}
    assert cli.flag(options, "deep") is True
    assert options == {"other": "1"}
    assert cli.flag(options, "deep") is False
    assert cli.flag({"deep": "no"}, "deep") is False
