"""Mistakes of somebody new, from outside: the answer is one line that says what to type."""

from __future__ import annotations

import pytest

from sr_dist.core.config import Positive, Settings, typed
from sr_dist.core.errors import UserError

PART = """from sr_dist.core.config import Settings
class Config(Settings):
    width: int = 3
def build(config, scale):
    pass
"""


@pytest.fixture(scope="module")
def results(run_commands, tmp_path_factory, photos):
    """The answers by name, and the folder: one process for all commands."""
    root = tmp_path_factory.mktemp("advice")
    (root / "runs" / "a b").mkdir(parents=True)
    (root / "runs" / "a b" / "recipe.yaml").write_text("name: old\n")
    for part in ("train", "val"):
        (root / "in" / part).mkdir(parents=True)
        for folder in photos.iterdir():
            (root / "in" / part / folder.name).symlink_to(folder)
    calls = {
        "folder": ("sr_dist.train", [str(root / "in")]),
        "run": ("sr_dist.train", [str(root / "runs" / "a b")]),
        "lr": ("sr_dist.train", ["esrgan_x4", "--lr=1e-3"]),
        "batch": ("sr_dist.train", ["esrgan_x4", "--batch=8"]),
        "plot": ("sr_dist.plot", ["runs/a", "runs/b"]),
        "parent": ("shards.build", ["class_folders", str(root / "in"), str(root / "both")]),
        "one": ("shards.build", ["class_folders", str(root / "in" / "train"), str(root / "train")]),
    }
    return root, dict(zip(calls, run_commands(list(calls.values())), strict=True))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("folder", "RECIPE: '{root}/in' is a folder; name a YAML file"),
        (
            "run",
            "RECIPE: '{root}/runs/a b' is a run folder; its recipe continues it: '{root}/runs/a b/recipe.yaml' "
            "--runs={root}/runs --name='a b'",
        ),
        ("lr", "lr: unknown key; did you mean 'optimizer.learning_rate'?"),
        ("batch", "batch: unknown key; did you mean 'data.batch'?"),
        ("plot", "'runs/b' is one word too many; RUN[,RUN]: separate several with commas, without spaces"),
    ],
)
def test_the_answer_says_what_to_type(results, name, line):
    root, answers = results
    assert (answers[name].code, answers[name].err.strip()) == (2, "error: " + line.format(root=root))


def test_classes_that_are_parts_of_a_data_set_are_noted(results):
    root, answers = results
    assert answers["parent"].code == answers["one"].code == 0
    note = f"note: the classes of '{root}/in' are train, val, which are parts of a data set; INPUT='{root}/in/train' has"
    assert note in answers["parent"].out
    assert "note: the classes" not in answers["one"].out


def test_whole_numbers_may_have_an_exponent():
    class Steps(Settings):
        steps: Positive

    for text, number in (("1e5", 100_000), ("2.5E3", 2500), ("3e+2", 300), ("7", 7)):
        assert typed(Steps, {"steps": text}).steps == number
    for text in ("1.5", "1.25e1", "1e-3", "0e5", "-1e5", "1e999", "e5"):
        with pytest.raises(UserError, match=r"^steps: "):
            typed(Steps, {"steps": text})


def test_a_network_of_ones_own_takes_the_place_of_the_section(tmp_path, monkeypatch):
    from sr_dist.recipe import checks

    (tmp_path / "toy_parts").mkdir()
    (tmp_path / "toy_parts" / "toy.py").write_text(PART)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as mistake:
        checks.read_recipe("esrgan_x4", {"generator.name": "toy_parts.toy"})
    text = "with num_blocks, growth; --generator='{name: toy_parts.toy}' takes the place of the whole section"
    assert str(mistake.value).endswith(text)
    section = str(mistake.value).split("--generator='")[1].split("'")[0]
    assert checks.read_recipe("esrgan_x4", {"generator": section}).generator.name == "toy_parts.toy"
