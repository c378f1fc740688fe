import json

import pytest
import torch
from safetensors.torch import save_file

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.version import __version__
from sr_dist.models import trained
from sr_dist.models.metadata import generator_metadata

SMALL = {"name": "srugan", "widths": [4, 6], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2}


def network(scale=2, seed=0):
    torch.manual_seed(seed)
    return trained.build(PACKAGES["generator"], SMALL, scale, "generator")


def saved(path, net, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), path, generator_metadata(SMALL, 2) if metadata is None else metadata)
    return path


def a_run(folder, *steps):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("name: tried\n")
    for step in steps:
        saved(folder / "checkpoints" / f"{step:07d}" / "generator.ema.safetensors", network(seed=step))
    return folder


def test_a_weights_file_is_opened_by_its_metadata(tmp_path):
    net = network()
    actual = trained.open_generator(str(saved(tmp_path / "best.safetensors", net)))
    assert (actual.name, actual.scale, actual.step) == ("best", 2, None)
    assert not actual.network.training and not any(p.requires_grad for p in actual.network.parameters())
    lr = torch.rand(1, 3, 5, 4)
    assert torch.equal(actual.network(lr), net.eval()(lr))


def test_a_run_is_the_ema_of_its_newest_checkpoint(tmp_path):
    actual = trained.open_generator(str(a_run(tmp_path / "tried", 50, 100)))
    assert (actual.name, actual.step) == ("tried", 100)
    expected = network(seed=100).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in actual.network.state_dict().items())


def test_a_checkpoint_of_a_run_is_named_by_run_and_step(tmp_path):
    """So that several steps of several runs differ in one table."""
    run = a_run(tmp_path / "tried", 20, 100)
    actual = trained.open_generator(str(run / "checkpoints" / "0000020" / "generator.ema.safetensors"))
    assert (actual.name, actual.step) == ("tried@20", 20)


def test_steps_are_compared_as_numbers(tmp_path):
    """From ten million steps on, the folder's name has one more digit."""
    assert trained.open_generator(str(a_run(tmp_path / "long", 9_999_999, 10_000_000))).step == 10_000_000


def test_unfinished_checkpoints_are_ignored(tmp_path):
    run = a_run(tmp_path / "tried", 50)
    saved(run / "checkpoints" / ".0000100.unfinished" / "generator.ema.safetensors", network())
    assert trained.open_generator(str(run)).step == 50


def test_a_run_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^METHOD: the run .*tried.* has no checkpoint"):
        trained.open_generator(str(a_run(tmp_path / "tried")), "METHOD")


def test_a_run_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^attributes: '.*tried' is a run of another kind: .* no classifier\.ema\.safetensors"):
        trained.open_classifier(str(a_run(tmp_path / "tried", 7)), "attributes")


def test_starting_weights_are_the_ema_for_generators_and_the_raw_weights_for_discriminators(tmp_path):
    run = a_run(tmp_path / "tried", 7)
    discriminator = {"a": torch.arange(3.0)}
    save_file(discriminator, run / "checkpoints" / "0000007" / "discriminator.safetensors")
    file = trained.locate(str(run), "init.discriminator", "discriminator").file
    assert file.name == "discriminator.safetensors" and torch.equal(trained.read(file, "k")[0]["a"], discriminator["a"])
    assert trained.locate(str(run), "init.generator").file.name == "generator.ema.safetensors"


def test_missing_files_get_the_nearest_name(tmp_path):
    saved(tmp_path / "best.safetensors", network())
    with pytest.raises(UserError, match=r"^METHOD: no run folder or weights file .*did you mean '.*best\.safetensors'"):
        trained.open_generator(str(tmp_path / "bset.safetensors"), "METHOD")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run's"):
        trained.open_generator(str(tmp_path))


@pytest.mark.parametrize("bytes_stored", [0, 4, 40, -1])
def test_a_cut_file_is_refused_by_name(tmp_path, bytes_stored):
    path = saved(tmp_path / "cut.safetensors", network())
    path.write_bytes(path.read_bytes()[:bytes_stored])
    with pytest.raises(UserError, match=r"cut\.safetensors' is not a complete \.safetensors file"):
        trained.open_generator(str(path))


def test_a_file_without_metadata_or_known_names_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not say which generator it fits"):
        trained.open_generator(str(saved(tmp_path / "foreign.safetensors", network(), metadata={})))


def test_tensors_that_do_not_fit_are_counted(tmp_path):
    tensors = network().state_dict()
    names = sorted(tensors)
    del tensors[names[0]], tensors[names[1]]
    tensors["extra"] = torch.zeros(1)
    tensors[names[2]] = torch.zeros(*tensors[names[2]].shape, 2)
    untouched = network(seed=3)
    before = {key: value.clone() for key, value in untouched.state_dict().items()}
    with pytest.raises(
        UserError, match=rf"init\.generator: .*2 tensors missing, 1 unexpected, 1 of another shape \(such as '{names[0]}'\)"
    ):
        trained.load_strictly(untouched, tensors, tmp_path / "a.safetensors", "init.generator")
    assert all(torch.equal(value, before[key]) for key, value in untouched.state_dict().items())


def test_metadata_holds_the_generator_and_the_scale():
    assert json.loads(generator_metadata(SMALL, 4)["sr_dist"]) == {
        "format": 1,
        "sr_dist": __version__,
        "generator": SMALL,
        "scale": 4,
    }


def test_an_unknown_generator_is_the_users_mistake():
    with pytest.raises(UserError, match="did you mean 'srugan'"):
        trained.build(PACKAGES["generator"], {"name": "srugun"}, 2, "generator")


def test_metadata_of_an_unknown_format_is_refused_with_the_version_that_wrote_it(tmp_path):
    facts = {"format": 7, "sr_dist": "9.1.0", "generator": SMALL, "scale": 4}
    save_file(network(4).state_dict(), tmp_path / "new.safetensors", {"sr_dist": json.dumps(facts)})
    text = r"^METHOD: '.*new\.safetensors' has format 7, written by sr_dist 9\.1\.0; .* reads format 1; use that version$"
    with pytest.raises(UserError, match=text):
        trained.open_generator(str(tmp_path / "new.safetensors"), "METHOD")


def test_metadata_without_a_format_is_that_of_0_1(tmp_path):
    facts = {"generator": SMALL, "scale": 4}
    save_file(network(4).state_dict(), tmp_path / "old.safetensors", {"sr_dist": json.dumps(facts)})
    assert trained.open_generator(str(tmp_path / "old.safetensors"), "METHOD").scale == 4
