"""The averages that `ema.post_hoc` keeps: equal to a direct sum, continued after loading, in fp32."""

from __future__ import annotations

import torch
from test_ema import Engine, Network

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
    assert {value.dtype for value in averages.gather().values()} == {torch.float32}


def test_snapshots_outlive_their_checkpoints_and_later_ones_are_dropped(tmp_path):
    for step in (2, 4, 6):
        folder = tmp_path / "checkpoints" / f"{step:07d}"
        folder.mkdir(parents=True)
        (folder / "generator.power_ema.safetensors").write_bytes(b"%d" % step)
        keep_snapshot(tmp_path, step, "generator")
        keep_snapshot(tmp_path, step, "generator")  # the amended checkpoint of a validation
        (folder / "generator.power_ema.safetensors").unlink()
    drop_later_snapshots(tmp_path, 4)
    assert {path.name: path.read_bytes() for path in (tmp_path / "post_hoc").iterdir()} == {
        "0000002.safetensors": b"2", "0000004.safetensors": b"4",
    }  # fmt: skip
