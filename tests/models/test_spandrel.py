"""Every network of `generator: spandrel`, made thin: forward, backward, bf16, and a file that is read back."""

from __future__ import annotations

import inspect
import json
import re
import types

import pytest
import torch
from safetensors.torch import save_file
from thin_spandrel import THIN

from sr_dist import train
from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.core.plugins import PACKAGES
from sr_dist.models import trained
from sr_dist.models.generators import spandrel as generator
from sr_dist.models.metadata import generator_metadata
from sr_dist.recipe.sections import Recipe
from sr_dist.training import networks

spandrel = pytest.importorskip("spandrel")
# Networks of spandrel that are not for one image, are not for super-resolution, or draw noise while they run (AuraSR).
OTHERS = {"AuraSR", "SAFMNBCIE"}


def section(name, **options):
    return {"name": "spandrel", "arch": name, **THIN[name], **options}


def build(name, scale=2, **options):
    torch.manual_seed(0)
    return trained.build(PACKAGES["generator"], section(name, **options), scale, "generator")


def test_the_table_has_every_network_for_super_resolution_that_spandrel_knows():
    """Those whose description says SR and whose class has a scale."""
    known = set()
    for entry in spandrel.MAIN_REGISTRY.architectures():
        source = inspect.getsource(type(entry.architecture))
        if 'else "SR"' in source or 'purpose="SR"' in source:
            known.add(entry.architecture.id)
    assert known - OTHERS <= set(generator.ARCHS)
    assert set(generator.ARCHS) - known <= {"RealPLKSR"}  # a second class of PLKSR


@pytest.mark.slow
@pytest.mark.parametrize("name", generator.ARCHS)
def test_each_network_trains_in_fp32_and_bf16_and_is_read_back(name, tmp_path):
    scale = 2 if 2 in generator.ARCHS[name].scales else 4
    network, lr = build(name, scale), torch.rand(2, 3, 17, 13)
    for module in network.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # a block that is left out has no gradient
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.01 * torch.randn_like(parameter)  # away from zeros that stop gradients on purpose
    copy = lr.clone()
    network.train()
    sr = network(lr)
    assert sr.shape == (2, 3, 17 * scale, 13 * scale) and torch.equal(lr, copy)
    sr.square().mean().backward()
    gradients = {key: p.grad for key, p in network.named_parameters() if p.requires_grad and p.numel()}
    unused = [key for key, gradient in gradients.items() if gradient is None]  # DDP waits for each
    assert not unused or generator.refuses(generator.Config(arch=name), Launch(ranks=2)), unused
    reached = [key for key, gradient in gradients.items() if gradient is not None and gradient.abs().max() > 0]
    assert len(reached) >= 0.5 * len(gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(lr).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    network.eval()
    with torch.no_grad():
        expected = network(lr)
        alone = torch.cat([network(image[None]) for image in lr])
    torch.testing.assert_close(alone, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    whole = trained.complete(section(name), "generator")
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, tmp_path / "x.safetensors",
              generator_metadata(whole, scale))  # fmt: skip
    opened = trained.open_generator(str(tmp_path / "x.safetensors"))
    with torch.no_grad():
        assert torch.equal(opened.network(lr), expected)


@pytest.mark.parametrize("name", ["SPAN", "SAFMN", "RealPLKSR", "MoSR"])
def test_a_file_of_others_is_recognized_with_its_options(name, tmp_path):
    """As written by another program: bare tensors. spandrel's own image, clipped, is the reference."""
    network = build(name, 4).eval()
    with torch.no_grad():
        network(torch.rand(1, 3, 8, 8))  # SPAN computes weights for evaluation
    torch.save({"params": network.state_dict()}, tmp_path / "x.pth")
    opened, lr = trained.open_generator(str(tmp_path / "x.pth")), torch.rand(1, 3, 17, 13)
    assert (opened.section["name"], opened.section["arch"], opened.scale) == ("spandrel", name, 4)
    reference = spandrel.ModelLoader().load_from_file(tmp_path / "x.pth")
    with torch.no_grad():
        torch.testing.assert_close(opened.network(lr).clamp(0, 1), reference(lr).clone(), atol=1e-5, rtol=0)


def as_of_others(name, file):
    """(ours, spandrel's reading, a random image): of a file with bare tensors, as another program writes it."""
    scale = 2 if 2 in generator.ARCHS[name].scales else 4
    network = build(name, scale).eval()
    with torch.no_grad():
        network(torch.rand(1, 3, 16, 16))  # SPAN computes weights for evaluation
    torch.save({"params": network.state_dict()}, file)
    ours = trained.open_generator(str(file)).network
    return ours, spandrel.ModelLoader().load_from_file(file), torch.rand(1, 3, 48, 48)


@pytest.mark.slow
@pytest.mark.parametrize("name", generator.ARCHS)
def test_the_range_of_images_is_that_of_spandrels_reading_of_the_file(name, tmp_path):
    """[0, 1] in, and out what spandrel clips to [0, 1]."""
    network, reference, lr = as_of_others(name, tmp_path / "x.pth")
    with torch.no_grad():
        expected, actual = reference(lr.clone()).clone(), network(lr).clamp(0, 1)
    assert expected.min() >= 0 and expected.max() <= 1 and float(expected.std()) > 0
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", generator.ARCHS)
def test_new_weights_make_images_near_the_range(name):
    """Random images of [0, 1] become values between -4 and 5, so that a loss against images begins near 1. SPAN's of its authors,
    whose input is 255 times as large, do not, and training says so."""
    scale, options = 2 if 2 in generator.ARCHS[name].scales else 4, {"norm": False} if name == "SPAN" else {}
    with torch.no_grad():
        sr = build(name, scale, **options).train()(torch.rand(2, 3, 32, 32))
    assert float(sr.min()) > -4 and float(sr.max()) < 5
    assert generator.from_scratch(generator.Config(arch=name, **options)) is None


def test_a_training_of_span_from_new_weights_says_that_they_are_far_from_images(tmp_path, photo_shards):
    with torch.no_grad():
        assert float(build("SPAN").train()(torch.rand(2, 3, 32, 32)).abs().max()) > 10
    tree = {
        "name": "run", "scale": 2, "steps": 1, "data": {"train": str(photo_shards), "crop": 16, "batch": 2, "workers": 0},
        "generator": section("SPAN"), "objective": {"name": "pixel", "content": {"l1": 1.0}}, "optimizer": {},
    }  # fmt: skip
    recipe = config.typed(Recipe, config.parse(config.text(config.typed(Recipe, tree))))
    for changes, told in (({}, True), ({"norm": "false"}, False)):
        notes: list[str] = []
        part = recipe.generator.with_options(**changes)
        networks.phase_network(recipe.model_copy(update={"generator": part}), "generator", False, notes)
        assert any("--generator.norm=false begins near them" in note for note in notes) == told
    resumed: list[str] = []
    networks.phase_network(recipe, "generator", True, resumed)
    assert not resumed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "SPAM"}, r"^generator\.arch: no 'SPAM' among spandrel's networks for super-resolution; did you mean 'SPAN'"),
        (
            {"arch": "SPAN", "feature_chanels": 8},
            r"^generator\.feature_chanels: .* it is no option of it; did you mean 'generator\.feature_channels'",
        ),
        ({"arch": "SPAN", "upscale": 2}, r"^generator\.upscale: .* it follows from scale and channels"),
        ({"arch": "SPAN", "norm": "maybe"}, r"^generator\.norm: 'maybe' is a str; it must be a bool, such as True"),
        ({"arch": "SAFMN", "channels": 1}, r"^generator\.channels: 1, but spandrel's 'SAFMN' is for three channels"),
        (
            {"arch": "DAT", "depth": [2, 2, 2], "num_heads": [2]},
            r"^generator: spandrel's 'DAT' cannot be built with these options",
        ),
        ({"arch": "RealCUGAN", "scale_of": 8}, r"^generator\.scale_of: unknown key"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        trained.build(PACKAGES["generator"], {"name": "spandrel", **options}, 2, "generator")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "SwinIR", "embed_dim": 7, "num_heads": [2], "depths": [2]}, "cannot run with these options: "),
        ({"arch": "RCAN", "n_feats": 8, "reduction": 16, "n_resgroups": 1, "n_resblocks": 1}, "cannot run with these options: "),
        ({"arch": "RCAN", "channels": 1, "n_feats": 16, "n_resgroups": 1, "n_resblocks": 1}, "cannot run with these options: "),
        ({"arch": "SwinIR", "upsampler": "none", **THIN["SwinIR"]}, r"makes \(1, 3, 16, 16\) of \(1, 3, 16, 16\), not"),
    ],
)
def test_options_with_which_a_network_cannot_run_are_refused_before_a_run_folder_exists(
    options, message, tmp_path, photo_shards, capsys
):
    network = json.dumps({"name": "spandrel", **options})
    words = ["srresnet_x4", f"--data.train={photo_shards}", "--data.validation=none", "--data.crop=16", "--scale=2", "--steps=1"]
    runs = tmp_path / "runs"
    for more in ([], ["--dry_run"]):
        assert train.main([*words, f"--generator={network}", f"--runs={runs}", *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: generator: spandrel's '") and error.count("\n") == 1
        assert re.search(message, error), error
    assert not runs.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", generator.ARCHS)
def test_the_trial_takes_what_runs_and_changes_no_random_numbers(name):
    scale = 2 if 2 in generator.ARCHS[name].scales else 4
    recipe = types.SimpleNamespace(scale=scale, data=types.SimpleNamespace(crop=None))
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    generator.check(generator.Config(arch=name, channels=3, **(THIN[name] or {"pro": True})), recipe)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", generator.ARCHS)
@pytest.mark.parametrize("size", [(1, 1), (2, 9)])
def test_images_of_any_size_are_enlarged(name, size):
    scale = 2 if 2 in generator.ARCHS[name].scales else 4
    with torch.no_grad():
        sr = build(name, scale).eval()(torch.rand(1, 3, *size))
    assert sr.shape == (1, 3, scale * size[0], scale * size[1])


def test_windows_larger_than_the_smallest_image_are_tried_on_a_crop():
    recipe = types.SimpleNamespace(scale=2, data=types.SimpleNamespace(crop=128))
    options = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 64}
    generator.check(generator.Config(arch="SwinIR", **options), recipe)
    with pytest.raises(UserError, match="cannot run with these options"):
        generator.check(generator.Config(arch="SwinIR", **{**options, "num_heads": [5]}), recipe)


def test_scales_and_launches_that_a_network_does_not_support_are_refused():
    with pytest.raises(UserError, match=r"^scale: spandrel's 'RealCUGAN' enlarges by 2, 3, 4, not 8"):
        build("RealCUGAN", 8)
    config = generator.Config(arch="SPAN")
    assert "use DDP" in str(generator.refuses(config, Launch(backend="deepspeed", stage=1)))
    assert generator.refuses(config, Launch()) is None


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("name", ["SPAN", "SAFMN"])
def test_starting_weights_of_another_scale_are_refused_as_such(name, stated, tmp_path):
    tensors, file = build(name, 4).state_dict(), tmp_path / "x.safetensors"
    save_file(tensors, file, generator_metadata(trained.complete(section(name), "generator"), 4) if stated else None)
    whole = trained.complete(section(name), "generator")
    with pytest.raises(UserError, match=r"^init\.generator: '.*' does not fit: it enlarges by 4, and the recipe's scale is 2"):
        trained.load_starting_weights(build(name, 2), whole, str(file), "generator", "init.generator")


def test_options_from_a_recipe_are_text():
    network = trained.build(
        PACKAGES["generator"],
        {"name": "spandrel", "arch": "SwinIR", "depths": ["2"], "num_heads": "[2]", "embed_dim": "12", "mlp_ratio": "2"}, 2, "g",
    )  # fmt: skip
    assert network.layers[0].depth == 2 if hasattr(network.layers[0], "depth") else len(network.layers) == 1
