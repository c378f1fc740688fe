"""Every recipe in configs/ is understood, and trains: thin networks, small crops, the same code."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
from finished import finished
from PIL import Image

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
SIDE, CLASSES, STEPS = 256, 2, 12

# What a network shrinks to, by its name: the same layers, few channels.
THIN = {
    "srcnn": {"widths": "[16, 8]"},
    "srresnet": {"num_blocks": "2", "width": "16"},
    "rrdb": {"num_blocks": "1", "width": "16", "growth": "8"},
    "srugan": {"widths": "[8, 12]", "num_blocks": "1", "num_dense_blocks": "1", "reduction": "4"},
    "srgan_vgg": {"width": "8", "features": "16", "crop": "32"},
    "unet_sn": {"width": "8"},
    "acgan": {"widths": "[8, 12]", "features": "16"},
    "patch": {"widths": "[8, 12]"},
    "resnet18": {"stem": "imagenet"},  # which halves the image five times: the same layers on few pixels
    "digit_cnn": {"size": "32", "widths": "[8, 12, 16]", "features": "[16, 16]", "dropout": "0"},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Eight parts of two photographs, of 256 pixels, in two classes and with attributes that say nothing of them."""
    from skimage import data

    from shards.build import build

    root = tmp_path_factory.mktemp("large")
    for label, photo in enumerate((data.astronaut(), data.retina()[300:812, 300:812])):
        folder = root / "photos" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(4):
            top, left = number // 2 * SIDE, number % 2 * SIDE
            Image.fromarray(photo[top : top + SIDE, left : left + SIDE]).save(folder / f"{number}.png")
    build("made.attributed", str(root / "photos"), root / "shards", {"per_shard": "4"})
    return root / "shards"


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory) -> dict[str, str]:
    """Tiny classifiers in the place of those that recipes listen to, by the names of their runs."""
    folder = tmp_path_factory.mktemp("classifiers")
    told = {
        "classifier_digits": Labels("class", ("class0", "class1")),
        "classifier_eyeglasses": Labels("attributes", ("Eyeglasses",)),
        "classifier_gender": Labels("attributes", ("Male",)),
        "classifier_hat": Labels("attributes", ("Wearing_Hat",)),
    }
    return {name: finished(folder / f"{name}.safetensors", labels, size=32) for name, labels in told.items()}


def read(path: Path) -> Recipe:
    return config.typed(Recipe, config.read(path))


def few(whole: Recipe) -> dict[str, str]:
    """Eight photographs are not the thousands that a recipe selects and divides."""
    parts = {2: "[0.5, 0.5]", 3: "[0.5, 0.25, 0.25]"}
    return {
        "data.select": "{}",
        "data.balance": "{}",
        **({"data.split": parts[len(whole.data.split)]} if whole.data.split else {}),
    }


def twin(path: Path, shards: Path, runs: Path, classifiers: dict[str, str]) -> dict[str, str]:
    """Overrides under which the recipe trains in seconds."""
    whole = read(path)
    options = {
        "data.train": str(shards), "data.validation": "none", "runs": str(runs), "data.crop": "32", "data.batch": "4",
        "data.workers": "0", "optimizer.learning_rate": "2e-3", "schedule": "{name: constant}", "precision": "no",
        "init.generator": "none", "init.classifier": "none", "log.wandb": "off", **few(whole),
    }  # fmt: skip
    parts = {"generator": whole.generator, "discriminator": whole.discriminator, "classifier": whole.classifier}
    for section, part in parts.items():
        for key, value in THIN.get(part.name, {}).items() if part else ():
            options[f"{section}.{key}"] = value
    if whole.classifier:
        options |= {"data.augment": "{}", "data.flip": "false"}  # one batch is learned, and always the same
    if "classifier" in whole.objective.options.get("content", {}):
        runs_of = whole.objective.options["content"]["classifier"]["runs"]
        options["objective.content.classifier.runs"] = ",".join(classifiers[Path(run).name] for run in runs_of)
    if whole.generator and whole.generator.options.get("skip") == "bicubic":
        options["optimizer.learning_rate"] = "2e-5"  # it starts from an image that is good already
    if "vgg" in whole.objective.options.get("content", {}):
        options["objective.content.vgg.weights"] = "random"
        if whole.objective.options["content"]["vgg"]["distance"] == "mse":  # random features are small, and squared
            options["objective.content.vgg.weight"] = "1e4"
    return options


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_understood_with_its_own_numbers(path, shards, monkeypatch):
    """Only the paths of the data differ. The losses' published weights are not looked for."""
    monkeypatch.setattr(checks.pretrained, "find", lambda *_, **__: None)
    loaded = data_checks.load(path, {"data.train": str(shards), "data.validation": "none", **few(read(path))})
    assert loaded.name == path.stem
    whole = checks.complete(loaded)
    assert whole.discriminator is None or whole.discriminator.options.get("classes", CLASSES) == CLASSES
    assert path.read_text().startswith("# ")  # says what it is


@pytest.mark.parametrize("path", [p for p in RECIPES if "discriminator:" in p.read_text()], ids=lambda path: path.stem)
def test_every_gan_names_its_first_stage(path):
    """In its header, and where it starts from; or says that it has none."""
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
    """The learning rate of the small recipe times the root of the ratio of the batches."""
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
def test_the_twin_of_every_recipe_learns_one_batch(path, shards, classifiers, tmp_path):
    from sr_dist.training.build import set_up
    from sr_dist.training.loop import advance

    thin = checks.complete(data_checks.load(path, twin(path, shards, tmp_path, classifiers)))
    needed_files.find_weights(thin)
    thin.folder.mkdir(parents=True)
    run = set_up(thin)
    try:
        _, batches = next(iter(run.stream.steps(1)))
        found = [advance(run, step, batches)[0] for step in range(1, STEPS + 1)]
    finally:
        run.stop.close()
        run.log.close()
        run.stream.close()
    watched = ["cross_entropy"] if thin.classifier else list(run.objective.content.weights)
    content = [sum(row[name].item() for name in watched) for row in found]
    assert content[-1] < 0.995 * content[0]
    assert sum(int(engine.skipped_in_all) for engine in run.phases.values()) == 0
    if run.recipe.discriminator is not None:
        assert {"adversarial", "real", "fake"} <= set(found[0])
        assert found[-1]["real"] != found[0]["real"]


def test_fine_tuning_trains_the_trunk_alone():
    chosen = read(ROOT / "configs" / "esrgan_finetune_pairs.yaml")
    module, options = plugins.resolve(PACKAGES["generator"], "rrdb", {"num_blocks": "2"}, "generator")
    names = [name for name, _ in module.build(options, 4).named_parameters()]
    frozen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in chosen.init.freeze)]
    assert set(names) - set(frozen) == {name for name in names if name.startswith("body.")}
    assert frozen


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.startswith("classifier_")], ids=lambda path: path.stem)
def test_a_recipe_that_listens_to_a_classifier_never_trains_on_what_it_is_tested_on(path):
    """Splits by one hash are nested: the last part of the generator's lies in the last part of the classifier's."""
    listeners = [p for p in RECIPES if f"runs/{path.stem}" in p.read_text().split("objective:")[-1] and "split" in p.read_text()]
    assert listeners or path.stem == "classifier_male_smiling"
    for listener in listeners:
        assert read(listener).data.split[-1] <= read(path).data.split[-1]
