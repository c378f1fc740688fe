"""The averages that `ema.post_hoc` keeps: equal to a direct sum, continued after loading, in fp32."""

from __future__ import annotations

from types import SimpleNamespace as Some

import pytest
import torch
from safetensors.torch import save_file
from test_ema import Engine, Network
from test_layouts import tensors, train

from sr_dist.core.errors import UserError
from sr_dist.models import trained
from sr_dist.models.metadata import generator_metadata
from sr_dist.models.post_hoc_ema import SIGMAS, gamma_of, prefix
from sr_dist.training.power_ema import PowerEmas, drop_later_snapshots, keep_snapshot


class Loadable(Engine):
    def load_weights(self, weights):
        self.bare.load_state_dict(weights)


PATH = [1.0, -2.0, 0.5, 0.5, 3.0, 0.25]  # the fourth step was skipped: the weights stay


def after(values, network, averages, first=1):
    for step, value in enumerate(values, first):
        network.set(value)
        averages.update(step)
    return averages


def test_the_averages_are_sums_over_all_steps_also_skipped_ones():
    network = Network(7.0)
    averages = after(PATH, network, PowerEmas(Loadable(network)))
    ends = torch.arange(len(PATH) + 1, dtype=torch.float64) / len(PATH)
    for sigma in SIGMAS:
        shares = (ends ** (gamma_of(sigma) + 1)).diff()
        expected = (shares * torch.tensor(PATH, dtype=torch.float64)).sum()
        value = averages.gather()[f"{prefix(sigma)}weight"]
        torch.testing.assert_close(value.double(), expected.expand(3), rtol=1e-6, atol=1e-7)
    assert network.weight.tolist() == [0.25] * 3  # untouched


def test_loaded_averages_continue_bit_for_bit():
    network = Network(7.0)
    whole = after(PATH, network, PowerEmas(Loadable(network)))
    first = after(PATH[:3], network, PowerEmas(Loadable(network)))
    saved = {name: value.clone() for name, value in first.gather().items()}
    other = Network(0.0)
    second = PowerEmas(Loadable(other))
    second.load(saved, network.state_dict())
    after(PATH[3:], other, second, first=4)
    assert whole.gather().keys() == second.gather().keys()
    assert all(torch.equal(value, second.gather()[name]) for name, value in whole.gather().items())


def test_averages_of_bf16_weights_are_fp32():
    network = Network(1.0).bfloat16()
    averages = after([1.0, 1.0], network, PowerEmas(Loadable(network)))
    averaged = {name: value.dtype for name, value in averages.gather().items() if name.endswith("/weight")}
    assert len(averaged) == 2 and set(averaged.values()) == {torch.float32}


def run_of(folder, steps=9, save_every=2):
    """The part of a recipe that snapshots use."""
    return Some(folder=folder, steps=steps, save_every=save_every)


def test_snapshots_outlive_their_checkpoints_and_later_ones_are_dropped(tmp_path):
    for step in (2, 3, 4, 6, 9):
        folder = tmp_path / "checkpoints" / f"{step:07d}"
        folder.mkdir(parents=True)
        (folder / "generator.power_ema.safetensors").write_bytes(b"%d" % step)
        keep_snapshot(run_of(tmp_path), step)
        keep_snapshot(run_of(tmp_path), step)  # the amended checkpoint of a validation
        (folder / "generator.power_ema.safetensors").unlink()
    names = {path.name: path.read_bytes() for path in (tmp_path / "post_hoc").iterdir()}
    assert names == {
        f"000000{step}.safetensors": b"%d" % step for step in (2, 4, 6, 9)
    }  # at 3 the run was stopped; 9 is the last
    (tmp_path / "post_hoc" / ".0000002.safetensors").touch()  # of a process that was killed
    drop_later_snapshots(tmp_path, 4)
    assert {path.name for path in (tmp_path / "post_hoc").iterdir()} == {"0000002.safetensors", "0000004.safetensors"}


def test_a_run_may_end_its_averages_and_cannot_begin_them_in_the_middle(write_recipe):
    """It is refused before the run folder is changed."""
    path, with_averages = write_recipe(steps=4, save_every=2), {"ema.post_hoc": "true"}
    folder = train(path, name="run", steps="2", **with_averages)
    train(path, name="run", steps="3")
    assert [file.name for file in (folder / "post_hoc").iterdir()] == ["0000002.safetensors"]
    before = (folder / "recipe.yaml").read_text()
    with pytest.raises(
        UserError, match=r"^ema\.post_hoc: checkpoint 0000003 has no averages .* continue with --ema.post_hoc=false"
    ):
        train(path, name="run", **with_averages)
    assert (folder / "recipe.yaml").read_text() == before
    assert tensors(train(path, name="run"), 4)


def test_one_file_of_averages_is_opened_as_the_wider_one(tmp_path):
    """In commands that know nothing of it; it has buffers too."""
    section = {"name": "msrresnet", "width": 4, "num_blocks": 1}
    network = trained.build("sr_dist.models.generators", section, 2, "generator")
    network.register_buffer("mean", torch.full((3,), 5.0))
    averages = PowerEmas(Loadable(network))
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    with torch.no_grad():
        for step in (1, 2):
            for parameter in network.parameters():
                parameter.add_(1)
            averages.update(step)
    saved = averages.gather()
    assert saved.pop("mean").tolist() == [5, 5, 5]
    saved = {name: value.clone() for name, value in saved.items()}
    save_file(saved, tmp_path / "0000002.safetensors", generator_metadata(section, 2))
    opened = trained.open_generator(str(tmp_path / "0000002.safetensors"))
    share = 1 - 0.5 ** (gamma_of(0.10) + 1)  # of the second step, whose weights are two more than at the start
    assert opened.scale == 2
    for name, value in opened.network.state_dict().items():
        torch.testing.assert_close(value, start[name] + 1 + share, rtol=1e-5, atol=1e-6)
