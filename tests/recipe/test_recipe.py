from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from sr_dist import evaluate
from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.data import data_checks
from sr_dist.data.open_data import open_training_sets
from sr_dist.evaluate import Evaluate
from sr_dist.objectives import pixel
from sr_dist.recipe import checks, columns, resume_rules
from sr_dist.recipe.sections import Recipe
from sr_dist.training import needed_files

ROOT = Path(__file__).resolve().parents[2]
ACGAN = {"name": "acgan", "classes": "manifest"}


def load(path, **options):
    return data_checks.load(path, {key.replace("__", "."): value for key, value in options.items()})


@pytest.fixture
def refused(write_recipe):
    """The message with which a recipe with these options is refused."""

    def message(options: dict[str, str], **changes) -> str:
        with pytest.raises(UserError) as caught:
            data_checks.load(write_recipe(**changes), options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


def test_a_tiny_recipe_loads_with_its_defaults(write_recipe):
    loaded = load(write_recipe())
    assert (loaded.name, loaded.scale, loaded.data.batch, loaded.precision, loaded.keep.last) == ("tiny", 2, 4, "no", 3)
    assert loaded.folder == Path(loaded.runs) / "tiny"
    assert loaded.generator.options == {"widths": ["8", "8"], "num_blocks": "1", "num_dense_blocks": "1", "reduction": "2"}


@pytest.mark.parametrize(
    "key",
    [
        "data.crop", "data.validation", "data.validation_limit", "save_every", "validate_every", "optimizer.clip", "keep.every",
        "keep.best",
    ],
)  # fmt: skip
def test_none_is_understood_for_every_optional_key(write_recipe, key):
    value = load(write_recipe(), **{key: "none"})
    for name in key.split("."):
        value = getattr(value, name)
    assert value is None


def test_an_optional_section_can_be_none(write_recipe):
    assert load(write_recipe(discriminator=ACGAN), discriminator="none").discriminator is None


def test_the_resolved_recipe_is_read_back_as_itself(write_recipe, tmp_path):
    complete = checks.complete(load(write_recipe()))
    (tmp_path / "resolved.yaml").write_text(config.text(complete), encoding="utf-8")
    again = checks.complete(data_checks.load(tmp_path / "resolved.yaml", {}))
    assert config.text(again) == config.text(complete)
    assert complete.generator.options["widths"] == [8, 8]
    assert complete.generator.options["channels"] == 3  # a default of the part


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_understood(path):
    typed = config.typed(Recipe, config.read(path))
    assert typed.name == path.stem
    checks.check_names(typed)
    checks.check_batch(typed, 1)


# ---------------------------------------------------------------------------------------------------------- the classes


def test_manifest_as_a_count_of_classes_is_that_of_the_shards(write_recipe):
    assert load(write_recipe(discriminator=ACGAN)).discriminator.options["classes"] == 3
    assert load(write_recipe(discriminator={"name": "acgan", "classes": 3})).discriminator.options["classes"] == 3
    assert load(write_recipe(discriminator={"name": "acgan", "classes": "none"})).discriminator.options["classes"] == "none"


def test_a_count_of_classes_that_disagrees_with_the_shards_is_refused(refused):
    message = refused({}, discriminator={"name": "acgan", "classes": 5})
    assert message.startswith("discriminator.classes: 5, but the manifest of")
    assert " has 3; say manifest or 3" in message


def test_a_class_head_needs_shards_with_classes(refused, photos, tmp_path):
    from shards.build import build

    build("folder", str(photos), tmp_path / "plain", {})
    message = refused({"data.train": str(tmp_path / "plain")}, discriminator=ACGAN)
    assert message.startswith("discriminator.classes: ")
    assert "have no classes" in message


# ------------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize(("crop", "scale", "offer"), [("17", "2", "16 and 18"), ("30", "8", "24 and 32"), ("3", "4", "4")])
def test_a_crop_that_the_scale_does_not_divide_offers_its_neighbours(refused, crop, scale, offer):
    message = refused({"data.crop": crop, "scale": scale})
    assert message.startswith(f"data.crop: {crop} is not a multiple of scale {scale}")
    assert message.endswith(f" {offer}")


def test_a_crop_above_the_smallest_side_offers_what_fits(refused, write_recipe):
    message = refused({"data.crop": "34"})  # the smallest side of the made photographs is 32
    assert message.startswith("data.crop: 34 is more than the smallest side")
    assert "32" in message
    assert "data.small=replicate" in message
    assert load(write_recipe(), data__crop="32").data.crop == 32
    assert load(write_recipe(), data__crop="34", data__small="replicate").data.crop == 34


def test_a_crop_where_no_multiple_of_the_scale_fits_says_so(refused, make_photo, image_bytes, tmp_path):
    from shards.build import build

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(image_bytes(make_photo(0, 3, 5)))
    build("folder", str(tmp_path / "images"), tmp_path / "small", {})
    message = refused({"data.train": str(tmp_path / "small"), "data.crop": "8", "scale": "4"})
    assert ", 3; no multiple of scale 4 fits, and data.small=replicate repeats" in message


def test_a_missing_folder_of_shards_offers_its_neighbour(refused, photo_shards):
    wrong = str(photo_shards.with_name("photo"))
    assert refused({"data.train": wrong}) == f"data.train: no folder '{wrong}'; did you mean '{photo_shards}'?"
    refusal = refused({"data.validation": wrong})
    assert refusal.startswith(f"data.validation: no folder '{wrong}'; did you mean '{photo_shards}'?; --data.validation=none ")
    assert "--data.split=[0.9,0.1]" in refusal


def test_a_split_on_the_command_line_takes_the_place_of_the_recipes_validation(write_recipe, refused, capsys):
    """What only the file says gives way, also if it does not exist; what the command line or the file says twice does not."""
    recipe = write_recipe(data={"validation": "nowhere"})
    loaded = load(recipe, data__split="[0.75, 0.25]")
    assert (loaded.data.validation, loaded.data.split) == (None, (0.75, 0.25))
    assert capsys.readouterr().err == "note: data.split takes the place of the recipe's data.validation, 'nowhere'\n"
    for options in ({}, {"data.split": "[]"}, {"data.validation": "nowhere_else"}):
        assert "no folder" in refused(options, data={"validation": "nowhere"})
    both = {"data.split": "[0.75, 0.25]", "data.validation": "x"}
    assert refused(both).endswith("say --data.validation=none")
    assert refused({}, data={"split": [0.75, 0.25], "validation": "x"}).endswith("say --data.validation=none")
    assert capsys.readouterr().err == ""
    assert load(recipe, data__split="[0.75, 0.25]", data__validation="none").data.validation is None
    assert capsys.readouterr().err == ""


def test_a_shard_that_was_cut_short_is_refused_before_training(refused, photo_shards, tmp_path):
    shutil.copytree(photo_shards, tmp_path / "cut")
    path = tmp_path / "cut" / "photos-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    message = refused({"data.train": str(tmp_path / "cut")})
    assert "photos-000001.tar" in message
    assert "cut short" in message


def test_where_samples_may_be_replaced_a_shard_that_was_cut_short_is_let_through(write_recipe, photo_shards, tmp_path):
    shutil.copytree(photo_shards, tmp_path / "cut")
    (tmp_path / "cut" / "photos-000001.tar").unlink()
    options = {"data.train": str(tmp_path / "cut"), "data.on_corrupt": "substitute"}
    assert data_checks.load(write_recipe(), options).data.on_corrupt == "substitute"


@pytest.fixture
def other_shards(photos, tmp_path):
    """`other_shards("folder")`: the same photographs, without classes."""
    from shards.build import build

    def made(source: str, **options) -> str:
        folder = tmp_path / f"other-{source}"
        build(source, str(photos), folder, {"per_shard": "8", **options})
        return str(folder)

    return made


def test_data_sets_may_be_mixed_by_weights(write_recipe, photo_shards, other_shards):
    loaded = load(write_recipe(), data__train=f"{{{photo_shards}: 0.75, {other_shards('folder')}: 0.25}}")
    assert loaded.data.weights == (0.75, 0.25)
    assert len(open_training_sets(loaded.data)) == 2
    again = config.typed(Recipe, config.parse(config.text(loaded)))
    assert again.data.train == loaded.data.train


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("{a: 0}", "data.train: 'a': the weight 0 is not a number above 0"),
        ("{a: much}", "data.train: 'a': 'much' is not a weight (a number)"),
        ("{a: nan}", "data.train: 'a': the weight nan is not a number above 0"),
        ("{a: 1, b: 0.00001}", "data.train: weights in the proportion of whole numbers that add up to 100001 are too fine"),
        ("pipe:cat x", "data.train: 'pipe:cat x' has no {}"),
        ("", "data.train: is empty; name a folder of shards"),
        ("{'': 1}", "data.train: one of the data sets has no name"),
        ("[a, b]", "data.train: ['a', 'b'] is a list; several data sets need weights, such as {data/a: 3, data/b: 1}"),
    ],
)
def test_invalid_weights_and_commands_are_refused(refused, train, message):
    assert refused({"data.train": train}).startswith(message)


def test_mixed_data_sets_must_have_the_same_kind_of_samples(write_recipe, photo_shards, other_shards):
    mixed = {"data.train": f"{{{photo_shards}: 1, {other_shards('folder')}: 1}}"}
    with pytest.raises(UserError, match=r"^data\.train: .* have different classes, and a discriminator learns them$"):
        data_checks.load(write_recipe(discriminator=ACGAN), mixed)
    with pytest.raises(UserError, match=r"^data\.select: selects from one data set"):
        data_checks.load(write_recipe(), {**mixed, "data.select.cats": "2"})


def test_a_missing_folder_in_a_mix_is_named(refused, photo_shards):
    assert "no folder '/nowhere'" in refused({"data.train": f"{{{photo_shards}: 1, /nowhere: 2}}"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data.select": "{cat: 2}"}, "data.select.cat: no class or attribute of that name; did you mean 'cats'?"),
        ({"data.select": "{cats: 200}"}, "data.select.cats: 200 samples wanted, but there are 8; 'at most 200' takes these"),
        ({"data.balance": "{Hat: [2, 2]}"}, "data.balance.Hat: no class or attribute of that name"),
    ],
)
def test_a_selection_of_missing_samples_is_refused_with_the_recipe(refused, options, message):
    assert refused(options).startswith(message)


@pytest.mark.parametrize("count", ["-1", "0"])
def test_a_selection_of_nothing_is_refused(refused, count):
    assert refused({"data.select.cats": count}).startswith("data.select.cats: ")


def test_a_batch_below_one_image_per_rank_and_micro_batch_is_refused(write_recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert load(write_recipe(), data__batch="6", accumulate="2").accumulate == 2
    with pytest.raises(UserError, match=r"^data\.batch: 5 is less than ranks x accumulate = 3 x 2; use 6 or more$"):
        load(write_recipe(), data__batch="5", accumulate="2")
    with pytest.raises(UserError, match=r"^data\.batch: 8 whole images .* cannot be divided by 3 ranks$"):
        load(write_recipe(), data__batch="8", data__crop="none")


# ------------------------------------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ({"generator.name": "srugen"}, "generator.name: no 'srugen'", "did you mean 'srugan'?"),
        ({"generator.num_bloks": "2"}, "generator.num_bloks: unknown key", "did you mean 'num_blocks'?"),
        ({"generator.nam": "x"}, "generator.nam: unknown key", "did you mean 'name'?"),
        ({"objective.name": "pixl"}, "objective.name: no 'pixl'", "did you mean 'pixel'?"),
        ({"objective.content.l3": "1"}, "objective.content.l3.name: no 'l3'", "'l1'?"),
        ({"objective.content.l1": "much"}, "objective.content.l1: 'much' is not a weight", "(a number)"),
        ({"objective.content": "l1"}, "objective.content: ", "got 'l1'"),
        ({"data.degradation.name": "bicubi"}, "data.degradation.name: no 'bicubi'", "did you mean 'bicubic'?"),
        ({"data.bach": "2"}, "data.bach: unknown key", "batch'?"),
        ({"scale": "5"}, "scale: ", "got 5"),
        ({"schedule.name": "cosine"}, "schedule", "(steps)"),
        ({"name": "../up"}, "name: ", "run folder"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_key_and_the_nearest(refused, options, start, end):
    message = refused(options)
    assert message.startswith(start)
    assert message.endswith(end)


@pytest.mark.parametrize(
    ("stated", "launched", "expected"),
    [
        (None, None, "no"), (None, "no", "no"), (None, "bf16", "bf16"), (None, "fp16", "fp16"),
        ("bf16", None, "bf16"), ("bf16", "no", "bf16"), ("no", "no", "no"), ("bf16", "bf16", "bf16"),
        ("no", "bf16", "precision: no, but accelerate launch says --mixed_precision=bf16; leave one of them out"),
        ("bf16", "fp16", "precision: bf16, but accelerate launch says --mixed_precision=fp16; leave one of them out"),
        (None, "fp8", "precision: accelerate launch --mixed_precision=fp8 cannot be used; choose from no, bf16, fp16"),
    ],
)  # fmt: skip
def test_the_launchers_precision_is_taken_where_the_recipe_is_silent(write_recipe, monkeypatch, stated, launched, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    path = write_recipe(precision=stated)
    if expected in ("no", "bf16", "fp16"):
        assert load(path).precision == expected
    else:
        with pytest.raises(UserError) as refused:
            load(path)
        assert str(refused.value) == expected


@pytest.mark.parametrize("phases", [(), ("discriminator",), ("generator", "classifier"), ("classifier", "generator")])
def test_an_objective_has_a_generator_or_a_classifier_and_at_most_a_discriminator(write_recipe, monkeypatch, phases):
    monkeypatch.setattr(pixel.Objective, "phases", phases)
    with pytest.raises(UserError, match=r"^objective: 'pixel' has the phases .*at most a discriminator$"):
        checks.complete(load(write_recipe()))


def test_an_objective_and_a_discriminator_must_fit_each_other(write_recipe):
    with pytest.raises(UserError, match=r"^discriminator: the objective 'pixel' trains none"):
        checks.complete(load(write_recipe(discriminator=ACGAN)))
    gan = write_recipe(objective={"name": "srugan", "content": {"l1": 1}})
    with pytest.raises(UserError, match=r"^discriminator: the objective 'srugan' trains one"):
        checks.complete(load(gan))


def test_a_loss_without_its_weights_file_tells_where_it_belongs(write_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"^objective\.content\.vgg: the weights file 'vgg19-dcbb9e9d\.pth' is missing"):
        needed_files.find_weights(checks.complete(load(write_recipe(), **{"objective.content.vgg": "1"})))


# ----------------------------------------------------------------------------------------------------- what may change


def resolved(loaded) -> dict:
    """The recipe as text, as the run folder stores it."""
    return config.parse(config.text(loaded))


def refused_changes(before: dict, after) -> list[str]:
    """The changes that are refused."""
    changes = resume_rules.differences(before, after)
    return [changes[key] for key in resume_rules.forbidden_changes(changes, after.resume.allow)]


def test_nothing_has_changed_when_the_recipe_is_the_same(write_recipe):
    loaded = load(write_recipe(discriminator=ACGAN))
    assert refused_changes(resolved(loaded), loaded) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "9"), ("accumulate", "2"), ("precision", "bf16"), ("data.workers", "3"), ("data.trace", "true"),
        ("save_every", "none"), ("validate_every", "7"), ("log_every", "7"), ("keep", "5"), ("keep.last", "4"),
        ("log.wandb", "offline"), ("log.project", "p"), ("data.validation_limit", "3"), ("runs", "elsewhere"), ("name", "other"),
        ("resume.allow", "scale"), ("data.on_corrupt", "substitute"), ("data.cache", "elsewhere"), ("data.cache_gb", "7"),
        ("data.fetch_at_once", "2"), ("data.fetch_ahead", "9"),
    ],
)  # fmt: skip
def test_keys_that_may_change_on_resuming(write_recipe, key, value):
    path = write_recipe()
    assert refused_changes(resolved(load(path)), load(path, **{key: value})) == []


@pytest.mark.parametrize(
    ("key", "value", "change"),
    [
        ("seed", "1", "seed: was 0, is 1"),
        ("data.batch", "8", "data.batch: was 4, is 8"),
        ("data.crop", "32", "data.crop: was 16, is 32"),
        ("ema.decay", "0.5", "ema.decay: was 0.999, is 0.5"),
        ("generator.num_blocks", "2", "generator.num_blocks: was 1, is 2"),
    ],
)
def test_everything_else_is_refused_by_name_unless_it_is_allowed(write_recipe, key, value, change):
    path = write_recipe()
    before = resolved(load(path))
    assert refused_changes(before, load(path, **{key: value})) == [change]
    assert refused_changes(before, load(path, **{key: value, "resume.allow": f"scale,{key}"})) == []
    assert refused_changes(before, load(path, **{key: value, "resume.allow": key.split(".")[0]})) == []
    assert refused_changes(before, load(path, **{key: value, "resume.allow": key[:-1]})) == [change]


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"methods": "bicubik", "data": "."}, r"^METHOD: .*'bicubik'.*; did you mean 'bicubic'\?$"),
        ({"methods": "bicubic,bicubic", "data": "."}, r"^METHOD: .* twice$"),
        ({"methods": "", "data": "."}, r"^METHOD: "),
        ({"methods": "bicubic", "data": "no/such"}, r"^data: no folder 'no/such'"),
        ({"methods": "bicubic", "data": ".", "degradation": "bicubi"}, r"^degradation\.name: .*did you mean 'bicubic'\?$"),
        ({"methods": "bicubic", "data": ".", "scal": "2"}, r"^scal: unknown key; did you mean 'scale'\?$"),
    ],
)  # fmt: skip
def test_the_options_of_evaluate_are_checked_first(tree, message):
    with pytest.raises(UserError, match=message):
        evaluate.check(config.typed(Evaluate, tree))


def test_evaluate_takes_none_for_no_limit():
    assert config.typed(Evaluate, {"methods": "bicubic", "data": ".", "limit": "none"}).limit is None


# ---------------------------------------------------------------------------------------------------------- the metrics


def test_the_best_checkpoint_is_that_of_a_column_of_the_recipes_metrics(write_recipe, refused):
    assert load(write_recipe(), keep__best="ssim_rgb").keep.best == "ssim_rgb"
    assert load(write_recipe(), keep__best="lpips_alex", metrics="psnr,lpips").metrics == ("psnr", "lpips")
    assert refused({"keep.best": "psnr"}) == "keep.best: 'psnr' is not a column of the metrics psnr, ssim; did you mean 'psnr_y'?"
    assert "not a column of the metrics psnr" in refused({"keep.best": "ssim_y", "metrics": "psnr"})
    assert refused({"metrics": "psnr,ssin"}).endswith("did you mean 'ssim'?")


def test_validation_shards_that_do_not_fit_are_refused_before_training(write_recipe, photos, tmp_path, refused):
    from shards.build import build

    low = tmp_path / "low"
    for path in photos.rglob("*.png"):
        with Image.open(path) as image:
            (low / path.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
            image.resize((image.width // 4, image.height // 4)).save(low / path.relative_to(photos))
    build("pairs", str(photos), tmp_path / "pairs", {"lr": str(low), "resize": "32", "scale": "4"})
    assert refused({"data.validation": str(tmp_path / "pairs")}).endswith("is 4 times smaller, and scale is 2")


def test_an_extractor_gives_its_name_to_the_columns_of_sets(write_recipe, refused, photos, tmp_path):
    options = {"metrics": "psnr,fid,kid", "extractor": "runs/glasses"}
    assert load(write_recipe(), keep__best="kd_glasses", **options).extractor == "runs/glasses"
    assert load(write_recipe(), keep__best="fd_toy", metrics="fid", extractor="a/toy.pt").keep.best == "fd_toy"
    assert "not a column of the metrics psnr, fid, kid" in refused({"keep.best": "fid", **options})
    with pytest.raises(UserError, match=r"^extractor: nothing is at 'runs/glasses'"):
        needed_files.find_weights(load(write_recipe(), data__validation=str(photos), **options))
    present = {**options, "extractor": str(tmp_path / "glasses")}
    (tmp_path / "glasses").mkdir()
    with pytest.raises(UserError, match=r"^extractor: '.*glasses' is a folder, but no run of a classifier"):
        needed_files.find_weights(load(write_recipe(), data__validation=str(photos), **present))
    (tmp_path / "glasses" / "recipe.yaml").write_text("name: glasses\n")
    needed_files.find_weights(load(write_recipe(), data__validation=str(photos), **present))  # needs no published weights


@pytest.mark.parametrize(
    ("column", "better"),
    [("psnr_y", "higher"), ("fid", "lower"), ("fd_glasses", "lower"), ("patch_fd_x", "lower"), ("kd_a_b", "lower"), ("fd", None)],
)
def test_columns_of_any_extractor_have_a_better_direction(column, better):
    assert columns.better_direction(column) == better


def test_weights_that_a_metric_needs_are_searched_before_training(write_recipe, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    recipe = load(write_recipe(), metrics="psnr,fid", data__validation=str(photos))
    with pytest.raises(UserError, match=rf"^metrics: fid: .* put it at '{tmp_path}/inception-2015-12-05.pt'"):
        needed_files.find_weights(recipe)
    needed_files.find_weights(load(write_recipe(), metrics="psnr,fid"))  # without validation no metric is computed
