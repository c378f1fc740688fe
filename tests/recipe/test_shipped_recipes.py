"""Every recipe in configs/ is read, and trains: thin networks, small crops, the same code."""

from __future__ import annotations

import fnmatch
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import data_kinds
import pytest
import torchvision
from thin_recipes import for_few_images, read, small_classifiers, twin

from sr_dist.core import plugins
from sr_dist.core.plugins import PACKAGES
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.training import needed_files

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
LARGE = [path for path in RECIPES if path.stem.endswith("_large")]
CLASSES = 2


@pytest.fixture(scope="module")
def shards_of(tmp_path_factory) -> Callable[[Path], Path]:
    """Recipe -> shards of the kind of data that it names: photographs, digits, faces or pairs."""
    folder = tmp_path_factory.mktemp("kinds")
    return lambda path: data_kinds.build(path, folder)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory) -> dict[str, str]:
    return small_classifiers(tmp_path_factory.mktemp("classifiers"))


@pytest.fixture(scope="module")
def one_vgg() -> Iterator[None]:
    """All twins share one VGG19 with random weights: to fill its 144 million parameters takes longer than to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "vgg19", functools.cache(torchvision.models.vgg19))
        yield


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_with_its_own_numbers(path, shards_of):
    """Only the paths of the data and the counts of a selection differ. The published weights of the losses are not needed."""
    loaded = data_checks.load(path, {"data.train": str(shards_of(path)), "data.validation": "none", **for_few_images(path)})
    assert loaded.name == path.stem
    recipe = checks.complete(loaded)
    assert recipe.discriminator is None or recipe.discriminator.options.get("classes", CLASSES) == CLASSES
    assert path.read_text().startswith("# ")  # a line that describes it


@pytest.mark.parametrize("path", [p for p in RECIPES if "discriminator:" in p.read_text()], ids=lambda path: path.stem)
def test_every_gan_names_its_first_stage(path):
    """The header names the recipe whose weights it starts from, or states that there is none."""
    header = path.read_text().split("\nname:")[0]
    start = read(path).init.generator
    if start is None:
        assert "there is no first stage" in header or path.stem == "demo"
    else:
        assert f"First stage: {Path(start).name}" in header and "LR" in header
        first = ROOT / "configs" / f"{Path(start).name}.yaml"
        assert read(first).generator == read(path).generator  # or its weights would not fit
        assert read(first).scale == read(path).scale


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_large_recipes_follow_the_rule_that_they_state(path):
    """The learning rate of the small recipe times the square root of the ratio of the batches."""
    small = read(
        ROOT / "configs" / {"imagenet_srugan_x2_large": "srugan_x2.yaml", "imagenet_esrgan_x4_large": "esrgan_x4.yaml"}[path.stem]
    )
    large, header = read(path), path.read_text().split("\nname:")[0]
    rule = small.optimizer.learning_rate * (large.data.batch / small.data.batch) ** 0.5
    assert large.data.batch >= 256
    assert large.optimizer.learning_rate == pytest.approx(rule, rel=0.02)
    assert large.schedule.warmup > 0 and "warm-up" in header and "sqrt" in header
    assert (large.generator, large.discriminator) == (small.generator, small.discriminator)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_twin_of_every_recipe_learns_one_batch(path, shards_of, classifiers, one_vgg, tmp_path):
    """On data of the recipe's kind: its first batch again and again, and then its second."""
    from sr_dist.training.build import set_up
    from sr_dist.training.loop import advance

    thin = checks.complete(data_checks.load(path, twin(path, shards_of(path), tmp_path, classifiers)))
    needed_files.find_weights(thin)
    thin.folder.mkdir(parents=True)
    steps = 6 if thin.classifier or "vgg" in thin.objective.options.get("content", {}) else 12  # costly ones learn fast
    steps = {"esrgan_x2": 10, "esrgan_16to64": 5, "r3gan_x4": 4}.get(
        path.stem, steps
    )  # discriminators are ahead at first, or soon
    run = set_up(thin)
    try:
        (_, batches), (_, second) = itertools.islice(run.loader.steps(1), 2)
        rows = [advance(run, step, batches)[0] for step in range(1, steps + 1)]
        advance(run, steps + 1, second)
    finally:
        run.stop.close()
        run.log.close()
        run.loader.close()
    watched = ["cross_entropy"] if thin.classifier else list(run.objective.content.weights)
    content = [sum(row[name].item() for name in watched) for row in rows]
    assert content[-1] < 0.995 * content[0]
    assert sum(int(engine.skipped_total) for engine in run.engines.values()) == 0
    if run.recipe.discriminator is not None:
        own = ("paired",) if thin.objective.name == "r3gan" else ("real", "fake")
        assert {"adversarial", *own} <= set(rows[0])
        assert rows[-1][own[0]] != rows[0][own[0]]


def test_fine_tuning_trains_the_trunk_alone():
    recipe = read(ROOT / "configs" / "esrgan_finetune_pairs.yaml")
    module, options = plugins.resolve(PACKAGES["generator"], "rrdb", {"num_blocks": "2"}, "generator")
    names = [name for name, _ in module.build(options, 4).named_parameters()]
    frozen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in recipe.init.freeze)]
    assert set(names) - set(frozen) == {name for name in names if name.startswith("body.")}
    assert frozen


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.startswith("classifier_")], ids=lambda path: path.stem)
def test_a_recipe_with_a_classifier_in_its_loss_never_trains_on_its_test_images(path):
    """Splits use one hash, so they are nested: the test part of the generator lies in the test part of the classifier."""
    users = [p for p in RECIPES if f"runs/{path.stem}" in p.read_text().split("objective:")[-1] and "split" in p.read_text()]
    assert users or path.stem in ("classifier_male_smiling", "classifier_beard")  # no generator listens to them
    for user in users:
        assert read(user).data.split[-1] <= read(path).data.split[-1]
