"""A run resumes with the data that it began with. Other data are refused, with the difference."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.data.open_data import open_training_sets
from sr_dist.recipe.sections import Recipe
from sr_dist.training import build

TREE = {
    "name": "run", "scale": "2", "steps": "9", "data": {"crop": "16", "batch": "4"}, "generator": {"name": "srugan"},
    "objective": {"name": "pixel"}, "optimizer": {"learning_rate": "1e-4"},
}  # fmt: skip


@pytest.fixture
def begun(tmp_path, photo_shards):
    """A run began with {a: 1, b: 2}; `begun(train)` resumes it with other data."""
    for name in "ab":
        shutil.copytree(photo_shards, tmp_path / name)
    (tmp_path / "b" / "manifest.json").write_text(
        (tmp_path / "b" / "manifest.json").read_text().replace('"seed": 0', '"seed": 1')
    )

    def recipe_for(train: str, **options: str) -> Recipe:
        train = train.replace("a:", f"{tmp_path}/a:").replace("b:", f"{tmp_path}/b:")
        return config.typed(Recipe, config.override(TREE, {"runs": str(tmp_path), "data.train": train, **options}))

    first = recipe_for("{a: 1, b: 2}")
    first.folder.mkdir()
    (first.folder / "recipe.yaml").write_text(config.text(first))
    checkpoint = SimpleNamespace(state={"manifest": build.data_digest(first.data, open_training_sets(first.data))})

    def resumed(train: str, **options: str) -> None:
        recipe = recipe_for(train, **options)
        shards = open_training_sets(recipe.data)
        build.check_same_data(recipe, shards, build.data_digest(recipe.data, shards), checkpoint)

    return resumed


def test_the_same_data_are_accepted(begun):
    begun("{a: 1, b: 2}")
    begun("{a: 2, b: 4}")  # as many of each


@pytest.mark.parametrize("train", ["{a: 2, b: 1}", "{b: 2, a: 1}"])
def test_other_weights_or_another_order_are_refused(begun, train):
    with pytest.raises(
        UserError, match=r"^data\.train: the weights or the order of the data sets were \{.*/a': 1\.0, .*/b': 2\.0\}"
    ):
        begun(train)
    begun(train, **{"resume.allow": "data.train"})


def test_other_data_sets_are_refused(begun, tmp_path):
    with pytest.raises(
        UserError, match=r"^data\.train: \{.*/a': 1\.0\} holds other shards than \{.*/b': 2\.0\}, which the run was"
    ):
        begun("{a: 1}")
    with pytest.raises(
        UserError, match=r"^data\.train: /.*/b holds other shards than .*--resume\.allow=data\.train says that this"
    ):
        begun(f"{tmp_path}/b")


def test_rebuilt_shards_are_refused(begun, tmp_path):
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match=r"^data\.train: the shards in \{.*\} are not those that the run was trained on"):
        begun("{a: 1, b: 2}")
