"""Every recipe in configs/ is read, and trains: thin networks, small crops, the same code."""

from __future__ import annotations

import fnmatch
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import data_kinds
import pytest
import torchvision
from finished import finished

from sr_dist.core import config, plugins
from sr_dist.core.plugins import PACKAGES
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.recipe.labels import Labels
from sr_dist.recipe.sections import Recipe
from sr_dist.training import needed_files

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
LARGE = [path for path in RECIPES if path.stem.endswith("_large")]
CLASSES = 2

# The options that shrink a network, by its name: the same layers, few channels.
THIN = {
    "srcnn": {"widths": "[16, 8]"},
    "srresnet": {"num_blocks": "2", "width": "16"},
    "rrdb": {"num_blocks": "1", "width": "16", "growth": "8"},
    "srugan": {"widths": "[8, 12]", "num_blocks": "1", "num_dense_blocks": "1", "reduction": "4"},
    "swinir": {"width": "12", "depths": "[2]", "heads": "3", "window": "4"},
    "srgan_vgg": {"width": "8", "features": "16", "crop": "32"},
    "unet_sn": {"width": "8"},
    "acgan": {"widths": "[8, 12]", "features": "16"},
    "patch": {"widths": "[8, 12]"},
    "resnet18": {"stem": "imagenet"},  # it halves the image five times; this stem leaves the same layers few pixels
    "digit_cnn": {"widths": "[8, 12, 16]", "features": "[16, 16]", "dropout": "0"},
}


@pytest.fixture(scope="module")
def shards_of(tmp_path_factory) -> Callable[[Path], Path]:
    """Recipe -> shards of the kind of data that it names: photographs, digits, faces or pairs."""
    folder = tmp_path_factory.mktemp("kinds")
    return lambda path: data_kinds.build(path, folder)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory) -> dict[str, str]:
    """Tiny classifiers instead of those that the losses of recipes use, by the names of their runs."""
    folder = tmp_path_factory.mktemp("classifiers")
    labels_by_run = {
        "classifier_digits": Labels("class", tuple("0123456789")),
        "classifier_eyeglasses": Labels("attributes", ("Eyeglasses",)),
        "classifier_gender": Labels("attributes", ("Male",)),
        "classifier_hat": Labels("attributes", ("Wearing_Hat",)),
    }
    sizes = {"classifier_digits": 28}
    return {
        name: finished(folder / f"{name}.safetensors", labels, size=sizes.get(name, 32)) for name, labels in labels_by_run.items()
    }


@pytest.fixture(scope="module")
def one_vgg() -> Iterator[None]:
    """All twins share one VGG19 with random weights: to fill its 144 million parameters takes longer than to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "vgg19", functools.cache(torchvision.models.vgg19))
        yield


def read(path: Path) -> Recipe:
    return config.typed(Recipe, config.read(path))


def fewer(counts: object) -> object:
    """A thousandth of every count; "at most 10000" stays, because that is what it is for."""
    if str(counts).isdigit():
        return max(int(str(counts)) // 1000, 1)
    if isinstance(counts, Mapping):
        return {name: fewer(count) for name, count in counts.items()}
    return [fewer(count) for count in counts] if isinstance(counts, list | tuple) else counts


def for_few_images(path: Path) -> dict[str, str]:
    """Overrides for dozens of images instead of the thousands that a recipe selects."""
    data = config.read(path)["data"]
    return {f"data.{key}": json.dumps(fewer(data[key])) for key in ("select", "balance") if key in data}


def twin(path: Path, shards: Path, runs: Path, classifiers: dict[str, str]) -> dict[str, str]:
    """Overrides under which the recipe trains in seconds."""
    recipe = read(path)
    options = {
        "data.train": str(shards), "data.validation": "none", "runs": str(runs), "data.batch": "4",
        "data.workers": "0", "optimizer.learning_rate": "2e-3", "schedule": "{name: constant}", "precision": "no",
        "init.generator": "none", "init.classifier": "none", "log.wandb": "off", **for_few_images(path),
        "data.crop": "28" if data_kinds.kind(recipe.data.train) == "mnist" else "32",
    }  # fmt: skip
    parts = {"generator": recipe.generator, "discriminator": recipe.discriminator, "classifier": recipe.classifier}
    for section, part in parts.items():
        for key, value in THIN.get(part.name, {}).items() if part else ():
            options[f"{section}.{key}"] = value
    if recipe.classifier:
        options |= {"data.augment": "{}", "data.flip": "false"}  # the batch never changes
    if "classifier" in recipe.objective.options.get("content", {}):
        runs_of = recipe.objective.options["content"]["classifier"]["runs"]
        options["objective.content.classifier.runs"] = ",".join(classifiers[Path(run).name] for run in runs_of)
    if recipe.generator and recipe.generator.options.get("skip") == "bicubic":
        options["optimizer.learning_rate"] = "2e-5"  # the bicubic image is already good
    if "vgg" in recipe.objective.options.get("content", {}):
        options["objective.content.vgg.weights"] = "random"
        if recipe.objective.options["content"]["vgg"]["distance"] == "mse":  # random features are small, their squares smaller
            options["objective.content.vgg.weight"] = "1e4"
    return options


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
