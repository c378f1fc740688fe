"""Option files in the form of BasicSR's, written here, become recipes; every option is taken over or listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from sr_dist import import_options as command
from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.data import data_checks
from sr_dist.models import trained
from sr_dist.recipe import checks, shipped
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.basicsr.recipe import import_options

PAIRS = {
    "name": "DIV2K", "type": "PairedImageDataset", "dataroot_gt": "datasets/HR", "dataroot_lq": "datasets/LR",
    "filename_tmpl": "{}",
    "io_backend": {"type": "disk"}, "gt_size": 128, "use_hflip": True, "use_rot": True, "num_worker_per_gpu": 6,
    "batch_size_per_gpu": 16, "dataset_enlarge_ratio": 100, "prefetch_mode": None, "use_shuffle": True,
    "meta_info_file": "lists/meta.txt", "num_prefetch_queue": 1, "color": "rgb", "mean": [0, 0, 0], "std": [1, 1, 1],
}  # fmt: skip
ADAM = {"type": "Adam", "lr": "1e-4", "weight_decay": 0, "betas": [0.9, 0.99]}
ESRGAN = {
    "name": "mine", "model_type": "ESRGANModel", "scale": 4, "num_gpu": 1, "manual_seed": 3, "find_unused_parameters": False,
    "datasets": {
        "train": PAIRS,
        "val": {"name": "Set14", "type": "PairedImageDataset", "dataroot_gt": "Set14/HR", "dataroot_lq": "Set14/LR",
                "io_backend": {"type": "disk"}},
        "val_2": {"name": "Set5", "dataroot_gt": "Set5/HR"},
    },
    "network_g": {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 23, "num_grow_ch": 32},
    "network_d": {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 64, "input_size": 128},
    "path": {"pretrain_network_g": "runs/rrdb_psnr_x4", "param_key_g": "params_ema", "strict_load_g": True, "resume_state": None,
             "pretrain_network_d": None, "param_key_d": "params", "strict_load_d": True, "ignore_resume_networks": "network_g"},
    "train": {
        "ema_decay": 0.999, "optim_g": ADAM, "optim_d": ADAM, "total_iter": 400000, "warmup_iter": -1,
        "scheduler": {"type": "MultiStepLR", "milestones": [50000, 100000, 200000, 300000], "gamma": 0.5},
        "pixel_opt": {"type": "L1Loss", "loss_weight": "1e-2", "reduction": "mean"},
        "perceptual_opt": {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_type": "vgg19", "use_input_norm": True,
                           "range_norm": False, "perceptual_weight": 1.0, "style_weight": 0, "criterion": "l1"},
        "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "real_label_val": 1.0, "fake_label_val": 0.0,
                    "loss_weight": "5e-3"},
        "ldl_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        "net_d_iters": 1, "net_d_init_iters": 0,
    },
    "val": {"val_freq": "5e3", "save_img": True, "pbar": False, "metrics": {
        "psnr": {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": False, "better": "higher"},
        "niqe": {"type": "calculate_niqe", "crop_border": 4},
    }},
    "logger": {"print_freq": 100, "save_checkpoint_freq": "5e3", "use_tb_logger": True,
               "wandb": {"project": None, "resume_id": None}},
    "dist_params": {"backend": "nccl", "port": 29500},
}  # fmt: skip
ROUND = {
    "resize_prob": [0.2, 0.7, 0.1], "resize_range": [0.15, 1.5], "gaussian_noise_prob": 0.5, "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3], "gray_noise_prob": 0.4, "jpeg_range": [30, 95],
}  # fmt: skip
KERNELS = {
    "kernel_list": ["iso", "plateau_iso"], "kernel_prob": [0.9, 0.1], "sinc_prob": 0.1, "blur_sigma": [0.2, 3],
    "betag_range": [0.5, 4], "betap_range": [1, 2], "blur_kernel_size": 21,
}  # fmt: skip
REAL = {
    **ESRGAN, "model_type": "RealESRGANModel", "l1_gt_usm": True, "percep_gt_usm": True, "gan_gt_usm": False, "gt_size": 256,
    "queue_size": 180, "second_blur_prob": 0.8, "num_gpu": "auto", "high_order_degradation": True,
    **ROUND, **{f"{key}2": value for key, value in ROUND.items()},
    "datasets": {"train": {
        "name": "DF2K", "type": "RealESRGANDataset", "dataroot_gt": "datasets/DF2K", "meta_info": "lists/meta.txt",
        **KERNELS, **{f"{key}2": value for key, value in KERNELS.items()}, "final_sinc_prob": 0.8, "gt_size": 256,
        "use_hflip": True, "use_rot": False, "batch_size_per_gpu": 12,
    }},
    "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 64, "skip_connection": True},
}  # fmt: skip


def changed(tree, **changes):
    """A copy with `section__option=value` set."""
    tree = yaml.safe_load(yaml.safe_dump(tree))
    for path, value in changes.items():
        *sections, last = path.split("__")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return tree


@pytest.fixture
def imported(tmp_path):
    def run(tree, gpus=None):
        path = tmp_path / "options.yml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return import_options(path, gpus)

    return run


def recipe_of(result) -> Recipe:
    return config.typed(Recipe, config.parse(config.tree_text(result.recipe)))


def test_esrgan_has_the_numbers_of_our_own_recipe(imported):
    """Rates, weights, milestones, sizes; only the betas, the halved losses and the local mean are BasicSR's own."""
    recipe, ours = recipe_of(imported(ESRGAN)), checks.read_recipe(shipped.locate("esrgan_x4"), {})
    for key in ("scale", "steps", "schedule", "init", "ema"):
        assert getattr(recipe, key) == getattr(ours, key), key
    assert (recipe.data.crop, recipe.data.batch) == (ours.data.crop, ours.data.batch) == (128, 16)
    assert recipe.optimizer.learning_rate == ours.optimizer.learning_rate == 1e-4 and recipe.optimizer.betas == (0.9, 0.99)
    whole, ours_whole = checks.with_defaults(recipe), checks.with_defaults(ours)
    assert whole.generator == ours_whole.generator and whole.discriminator == ours_whole.discriminator
    content = dict(whole.objective.options["content"])
    assert content.pop("ldl") == {"weight": 1.0}  # an option of our file that ESRGAN's own does not have
    assert whole.objective.with_options(halved=False, batch_mean="global", content=content) == ours_whole.objective
    assert recipe.seed == 3 and whole.objective.options["halved"] and whole.objective.options["batch_mean"] == "local"


def test_the_list_of_trainner_is_the_same_losses(imported):
    """Of traiNNer-redux: a list of types in lower case. A second pixel loss, and what has no equal, are named."""
    train = dict(ESRGAN["train"])
    perceptual = dict(train.pop("perceptual_opt"))
    losses = [
        {**train.pop("pixel_opt"), "type": "l1loss"},
        {**perceptual, "type": "perceptualloss", "loss_weight": perceptual.pop("perceptual_weight")},
        {**train.pop("gan_opt"), "type": "ganloss"},
        {"type": "mseloss", "loss_weight": 1.0}, {"type": "hsluvloss", "loss_weight": 1.0},
        {"type": "ffloss", "loss_weight": 0.5, "alpha": 2.0},
    ]  # fmt: skip
    losses[1].pop("perceptual_weight", None)
    result = imported({**ESRGAN, "train": {**train, "losses": losses}})
    objective, plain = recipe_of(result).objective, recipe_of(imported(ESRGAN)).objective
    content = dict(objective.options["content"])
    assert {key: str(value) for key, value in content.pop("focal_frequency").items()} == {"weight": "0.5", "alpha": "2.0"}
    assert objective.with_options(content=content) == plain
    assert not result.options.unknown()
    text = "\n".join(result.report())
    assert "mseloss (the first one of this kind is taken)" in text and "hsluvloss (there is no 'hsluvloss')" in text


@pytest.mark.parametrize("tree", [ESRGAN, REAL], ids=["esrgan", "real"])
def test_every_option_is_taken_over_or_listed(imported, tree):
    options = imported(tree).options
    assert not options.unknown()
    assert {*options.taken} | {*options.without} == {*options.leaves()} and not {*options.taken} & {*options.without}
    page = (Path(__file__).parents[2] / "docs" / "basicsr.md").read_text()
    names = {
        path.split(".")[-1].removesuffix("2") for path in options.leaves() if "val_" not in path and "layer_weights" not in path
    }
    assert not sorted(name for name in names if not re.search(rf"\b{name}\b", page))


def test_an_unknown_option_is_listed(imported):
    result = imported(changed(ESRGAN, train__colour_opt={"type": "X"}, network_g__extra=1))
    assert result.options.unknown() == ["network_g.extra", "train.colour_opt.type"]
    assert "  train.colour_opt.type: X" in result.report()


def test_real_esrgan_sharpens_and_degrades_as_its_authors(imported):
    result = imported(REAL, gpus=4)
    recipe = recipe_of(result)
    assert (recipe.data.batch, recipe.data.crop, recipe.data.rotate) == (48, 256, False)
    degradation = recipe.data.degradation.options
    assert degradation["sharpen"] == "true"
    assert degradation["first"]["kernel_weights"] == ["0.9", "0.0", "0.0", "0.0", "0.1", "0.0"]
    assert degradation["second"]["blur_probability"] == "0.8" and degradation["first"]["resize_range"] == ["0.15", "1.5"]
    content = checks.with_defaults(recipe).objective.options["content"]
    assert content["l1"]["sharpen"] and content["vgg"]["sharpen"]
    place = recipe.data.train
    assert re.fullmatch("data/datasets_df2k_[0-9a-f]{8}", place)
    assert result.commands == [f"python -m shards.build folder datasets/DF2K {place} --list=lists/meta.txt --min_side=256"]
    assert any("num_gpu: auto" in line for line in imported(REAL).options.checks)


SWINIR = {
    "type": "SwinIR", "embed_dim": 60, "depths": [2, 2], "num_heads": [6, 6], "window_size": 8, "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect", "img_size": 48, "img_range": 1.0, "resi_connection": "1conv",
}  # fmt: skip
COSINE = {"type": "CosineAnnealingRestartLR", "periods": [100000] * 4, "restart_weights": [1] * 4, "eta_min": "1e-7"}
MILESTONES = [50000, 100000, 200000, 300000]


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        (
            {"network_g": {"type": "MSRResNet", "num_feat": 32, "num_block": 8, "upscale": 4}},
            "generator", {"name": "msrresnet", "channels": 3, "width": 32, "num_blocks": 8},
        ),
        (
            {"network_g": {"type": "SRVGGNetCompact", "num_conv": 32, "act_type": "leakyrelu"}},
            "generator", {"name": "srvgg", "channels": 3, "width": 64, "num_blocks": 32, "activation": "leaky_relu"},
        ),
        (
            {"network_g": SWINIR},
            "generator",
            {"name": "swinir", "channels": 3, "width": 60, "depths": [2, 2], "heads": 6, "window": 8, "mlp_ratio": 2.0,
             "enlarge": "direct", "group_end": "1conv"},
        ),
        ({"train__scheduler": COSINE}, "schedule", {"name": "cosine", "period": 100000, "restart": True, "lowest": 1e-3}),
        ({"train__warmup_iter": 500}, "schedule", {"name": "milestones", "milestones": MILESTONES, "factor": 0.5, "warmup": 500}),
        (
            {"train__optim_g": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
            "optimizer", {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0},
        ),
        ({"path__strict_load_g": False}, "init", {"generator": "runs/rrdb_psnr_x4", "partial": True}),
    ],
)  # fmt: skip
def test_networks_schedules_and_optimizers(imported, changes, key, expected):
    assert imported(changed(ESRGAN, **changes)).recipe[key] == expected


RCAN = {
    "type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_group": 2, "num_block": 3, "squeeze_factor": 8,
    "upscale": 4, "res_scale": 1, "img_range": "255.", "rgb_mean": [0.4488, 0.4371, 0.4040],
}  # fmt: skip
OF_RCAN = {"n_feats": 32, "n_resgroups": 2, "n_resblocks": 3, "reduction": 8, "res_scale": 1, "rgb_range": 255.0}


@pytest.mark.parametrize(
    ("network", "arch", "expected"),
    [
        (RCAN, "RCAN", OF_RCAN),
        ({"type": "RCAN", "num_feat": 64}, "RCAN", {"n_feats": 64, "n_resblocks": 16}),  # BasicSR's default; spandrel's is 20
        ({"type": "rcan", "n_feats": 64}, "RCAN", {"n_feats": 64, "norm": False}),  # traiNNer-redux's
        ({"type": "HAT", "embed_dim": 180, "compress_ratio": 3, "use_checkpoint": True}, "HAT",
         {"embed_dim": 180, "compress_ratio": 3, "window_size": 7}),
        ({"type": "dat", "embed_dim": 60, "use_chk": False, "unshuffle_mod": False}, "DAT",
         {"embed_dim": 60, "split_size": [8, 32], "depth": [6] * 6, "num_heads": [6] * 6}),
        ({"type": "SPAN", "feature_channels": 32, "norm": False}, "SPAN", {"feature_channels": 32, "norm": False}),
        ({"type": "span", "num_blocks": 6}, "SPAN", {"feature_channels": 52, "norm": False}),
        ({"type": "realplksr", "upsampler": "dysample"}, "RealPLKSR", {"dysample": True, "layer_norm": True}),
        ({"type": "mosr", "upsampler": "pixelshuffle"}, "MoSR", {"upsampler": "ps"}),
        ({"type": "SwinIR", "embed_dim": 60, "upsampler": "pixelshuffle", "ape": True, "mlp_ratio": 2,
          "img_size": 56}, "SwinIR",
         {"embed_dim": 60, "upsampler": "pixelshuffle", "ape": True, "mlp_ratio": 2, "img_size": 56, "window_size": 7}),
    ],
)  # fmt: skip
def test_networks_of_spandrel_keep_their_size(imported, network, arch, expected):
    """Under spandrel's names, in their types, with the defaults of the file's network where ours differ."""
    pytest.importorskip("spandrel")
    result = imported(changed(ESRGAN, network_g=network))
    section = result.recipe["generator"]
    assert section == {"name": "spandrel", "arch": arch, "channels": 3, **expected}
    assert all(type(section[key]) is type(value) for key, value in expected.items())
    reasons = [reason for path, reason in result.options.without.items() if path.startswith("network_g.")]
    assert not [reason for reason in reasons if "no such option" in reason]
    assert trained.build(PACKAGES["generator"], section, 4, "generator") is not None


def test_the_sizes_that_a_file_leaves_out_are_named(imported):
    pytest.importorskip("spandrel")
    report = imported(changed(ESRGAN, network_g={"type": "RCAN", "num_feat": 64, "num_block": 20})).report()
    assert any("n_resgroups 10" in line and "reduction 16" in line and "n_feats" not in line for line in report)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({**RCAN, "res_scale": 0.1}, r"^network_g\.res_scale: 0\.1, but spandrel's 'RCAN' has 1 always"),
        ({**RCAN, "rgb_mean": [0, 0, 0]}, r"^network_g\.rgb_mean: \[0, 0, 0\], but spandrel's 'RCAN' has \[0\.4488"),
        ({**RCAN, "n_feats": 32}, "^network_g.n_feats: the file has this option under two names"),
        ({**RCAN, "num_feat": "wide"}, "^network_g.num_feat: 'wide' is a str; it must be an int"),
        ({"type": "SPAN", "num_blocks": 8}, "^network_g.num_blocks: 8, but spandrel's 'SPAN' has 6 always"),
        ({"type": "DAT", "width": 8}, "^network_g.width: spandrel's 'DAT' has no such option"),
        ({"type": "realplksr", "upsampler": "pa"}, "^network_g.upsampler: 'pa' has no equal; choose from pixelshuffle, dysample"),
    ],
)  # fmt: skip
def test_a_size_that_spandrel_cannot_have_is_refused(imported, network, message):
    pytest.importorskip("spandrel")
    with pytest.raises(UserError, match=message):
        imported(changed(ESRGAN, network_g=network))


@pytest.mark.parametrize(
    ("gan_type", "form"), [("vanilla", "standard"), ("wgan_softplus", "standard"), ("lsgan", "least_squares"), ("hinge", "hinge")]
)
def test_forms_of_the_adversarial_loss(imported, gan_type, form):
    result = imported(changed(ESRGAN, model_type="SRGANModel", train__gan_opt__gan_type=gan_type))
    assert result.recipe["objective"]["name"] == "srgan" and result.recipe["objective"]["form"] == form
    other = imported(changed(ESRGAN, model_type="SRGANModel", train__gan_opt__gan_type="wgan"))
    assert "became vanilla" in other.options.without["train.gan_opt.gan_type"]


def test_charbonniers_eps_is_squared_in_ours(imported):
    result = imported(changed(ESRGAN, train__pixel_opt={"type": "CharbonnierLoss", "eps": "1e-12"}))
    assert result.recipe["objective"]["content"]["charbonnier"]["eps"] == pytest.approx(1e-6)


@pytest.mark.parametrize(("project", "trackers"), [(None, ["tensorboard"]), ("theirs", ["wandb", "tensorboard"])])
def test_tensorboard_is_a_tracker_beside_wandb(imported, project, trackers):
    logger = {**ESRGAN["logger"], "wandb": {"project": project, "resume_id": None}}
    recipe = imported({**ESRGAN, "logger": logger}).recipe
    assert recipe["log"]["trackers"] == trackers
    assert recipe["log"].get("project") == project


def test_ldl_is_taken_over_where_weights_are_averaged(imported):
    assert imported(ESRGAN).recipe["objective"]["content"]["ldl"] == 1.0
    without = imported(changed(ESRGAN, train__ema_decay=0))
    assert "ldl" not in without.recipe["objective"]["content"] and "train.ldl_opt.loss_weight" in without.options.without


def test_an_lmdb_is_built_from_an_lmdb(imported):
    train = {"io_backend": {"type": "lmdb"}, "dataroot_gt": "HR.lmdb", "dataroot_lq": "LR.lmdb"}
    result = imported(changed(ESRGAN, **{f"datasets__train__{key}": value for key, value in train.items()}))
    place = recipe_of(result).data.train
    assert result.commands[0] == f"python -m shards.build lmdb HR.lmdb {place} --lr=LR.lmdb --scale=4 --min_side=128"


def train_of(imported, **changes) -> str:
    keys = {f"datasets__train__{key}": value for key, value in changes.items()}
    return recipe_of(imported(changed(ESRGAN, **keys))).data.train


@pytest.mark.parametrize(
    "changes",
    [
        {"dataroot_gt": "other/HR"}, {"dataroot_gt": "data_sets/HR"}, {"dataroot_lq": "datasets/LR_blind"},
        {"meta_info_file": "lists/half.txt"}, {"gt_size": 192}, {"dataroot_gt": "HR.lmdb", "io_backend": {"type": "lmdb"}},
    ],
)  # fmt: skip
def test_two_files_that_name_unlike_sets_alike_have_shards_of_their_own(imported, changes):
    """Both are called DIV2K; the second training would read, or refuse to build over, the shards of the first."""
    assert train_of(imported, **changes) != train_of(imported)


def test_a_folder_given_twice_is_the_same_shards(imported, monkeypatch, tmp_path):
    """In two files under two names, by a relative and the whole path, and twice in one file: one place, built once."""
    monkeypatch.chdir(tmp_path)
    place = train_of(imported)
    assert train_of(imported, name="other") == train_of(imported, dataroot_gt="./datasets/HR/") == place
    assert train_of(imported, dataroot_gt=str(tmp_path / "datasets" / "HR")) == place
    sets = {"val": {"name": "a", "dataroot_gt": "Set5/HR"}, "val_2": {"name": "b", "dataroot_gt": "Set5/HR"}}
    result = imported({**ESRGAN, "datasets": {"train": PAIRS, **sets}})
    a, b = recipe_of(result).data.validation.values()
    assert a == b and len(result.commands) == 2


def test_validation_sets_that_are_named_alike_are_all_there(imported):
    """Also beside one that has the name that a second would get, and as several folders of one set."""
    names = {"val": "Set 5", "val_2": "set5", "val_0": "set_5", "val_3": "set_5_val_0", "val_4": "set_5"}
    sets = {part: {"name": name, "dataroot_gt": f"folders/{part}"} for part, name in names.items()}
    sets["val_4"]["dataroot_gt"] = ["folders/x", "folders/y"]
    result = imported({**ESRGAN, "datasets": {"train": PAIRS, **sets}})
    validation = recipe_of(result).data.validation
    folders = [command.split()[4] for command in result.commands[1:]]
    assert folders == ["folders/val", "folders/val_2", "folders/val_0", "folders/val_3", "folders/x", "folders/y"]
    assert [*validation.values()] == [command.split()[5] for command in result.commands[1:]]
    assert len({*validation.values()}) == len(validation) == 6


def test_several_folders_of_training_are_several_places(imported):
    folders = ["a/HR", "b/HR", "a/HR"]
    result = imported(changed(REAL, datasets__train__dataroot_gt=folders))
    places = [command.split()[5] for command in result.commands]
    assert len({*places}) == len(places) == 2 and recipe_of(result).data.train == places[0]
    assert any(all(place in line for place in places) for line in result.options.checks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_g__type": "EDSR"}, "^network_g.type: 'EDSR' has no equal here; there are RRDBNet"),
        ({"train__total_iter": "many"}, "^train.total_iter: 'many' is not a whole number"),
        ({"train__total_iter": "inf"}, "^train.total_iter: 'inf' is not a whole number"),
        ({"network_g__scale": 2}, "^network_g.scale: 2, but the file's scale is 4"),
        ({"scale": 5}, "gives a recipe that is not valid: scale: "),
        ({"datasets__train__dataroot_gt": None}, "^datasets.train.dataroot_gt: this key is missing"),
        ({"train": None}, "^train: '.*' has no such section"),
    ],
)
def test_files_that_cannot_be_are_refused(imported, changes, message):
    with pytest.raises(UserError, match=message):
        imported(changed(ESRGAN, **changes))


@pytest.mark.parametrize("tree", [ESRGAN, REAL], ids=["esrgan", "real"])
def test_the_written_recipe_trains_when_its_shards_exist(tmp_path, tree, photo_shards, capsys):
    """`sr_dist.train OUT.yaml --dry_run` on shards of the test."""
    file, out = tmp_path / "options.yml", tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert command.main([str(file), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Build the shards:" in printed and "Taken over:" in printed and "# Check:" in out.read_text()
    overrides = {"data.train": str(photo_shards), "data.validation": "none", "data.crop": "32"}
    if tree is ESRGAN:
        overrides["discriminator.crop"] = "32"
    assert checks.complete(data_checks.load(out, overrides)).steps == 400000
    before = out.read_text()
    assert command.main([str(file), str(out)]) == 2 and out.read_text() == before
    assert "exists" in capsys.readouterr().err
    assert command.main([str(file)]) == 0 and capsys.readouterr().out == before
