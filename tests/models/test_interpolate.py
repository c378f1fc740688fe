"""theta = (1 - alpha) A + alpha B, for every tensor, and only between equal networks."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.interpolate import Interpolate
from sr_dist.interpolate import interpolate as command
from sr_dist.models import trained
from sr_dist.models.interpolate import between
from sr_dist.models.metadata import generator_metadata

RRDB = {"name": "rrdb", "num_blocks": 1, "width": 4, "growth": 2}
SRRESNET = {"name": "srresnet", "num_blocks": 1, "width": 4}


def saved(path, section=RRDB, scale=4, seed=0, pth=False):
    torch.manual_seed(seed)
    network = trained.build(PACKAGES["generator"], section, scale, "generator")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    path.parent.mkdir(parents=True, exist_ok=True)
    if pth:
        torch.save({"params_ema": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path, generator_metadata(trained.complete(section, "k"), scale))
    return str(path), network.state_dict()


def mixed(a, b, out, alpha):
    """The line that the command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command(Interpolate(a=a, b=b, out=str(out), alpha=alpha))
    return printed.getvalue().strip()


def refused(a, b, out):
    with pytest.raises(UserError) as caught:
        mixed(a, b, out, 0.5)
    assert not out.exists()
    return str(caught.value)


def test_every_tensor_is_mixed(tmp_path):
    (a, first), (b, second) = saved(tmp_path / "psnr.safetensors"), saved(tmp_path / "gan.safetensors", seed=1)
    line = mixed(a, b, tmp_path / "out.safetensors", 0.8)
    assert line.startswith("0.2 * psnr + 0.8 * gan -> ")
    actual = trained.open_generator(str(tmp_path / "out.safetensors"))
    assert actual.section["name"] == "rrdb" and actual.scale == 4
    for name, value in actual.network.state_dict().items():
        torch.testing.assert_close(value, 0.2 * first[name] + 0.8 * second[name])


def test_a_worked_example():
    a, b = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 2.0])}
    assert between(a, b, 0.25)["w"].tolist() == [1.5, -1.0]


@given(alpha=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_ends_are_exact_and_the_order_does_not_matter(alpha, seed):
    torch.manual_seed(seed)
    a, b = ({"w": torch.randn(5), "count": torch.tensor(n)} for n in (7, 9))
    assert torch.equal(between(a, b, 0.0)["w"], a["w"]) and torch.equal(between(a, b, 1.0)["w"], b["w"])
    torch.testing.assert_close(between(a, b, alpha)["w"], between(b, a, 1 - alpha)["w"])
    assert between(a, b, alpha)["count"] == 7  # a counter of batches is not a weight


def test_runs_and_foreign_files_mix(tmp_path):
    run = tmp_path / "gan"
    _, second = saved(run / "checkpoints" / "0000005" / "generator.ema.safetensors", seed=1)
    (run / "recipe.yaml").write_text("name: gan\n")
    a, first = saved(tmp_path / "psnr.pth", pth=True)
    mixed(a, str(run), tmp_path / "out.pth", 0.5)
    actual = torch.load(tmp_path / "out.pth", weights_only=True)["params"]
    torch.testing.assert_close(actual["conv_body.weight"], (first["conv_body.weight"] + second["conv_body.weight"]) / 2)


def test_batch_normalization_is_mixed_too(tmp_path):
    (a, first), (b, second) = (saved(tmp_path / f"{seed}.safetensors", SRRESNET, 2, seed) for seed in (0, 1))
    mixed(a, b, tmp_path / "out.safetensors", 0.5)
    actual = trained.open_generator(str(tmp_path / "out.safetensors")).network.state_dict()
    torch.testing.assert_close(actual["bn_body.weight"], (first["bn_body.weight"] + second["bn_body.weight"]) / 2)


def test_networks_that_differ_are_refused(tmp_path):
    a, _ = saved(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    message = refused(a, saved(tmp_path / "other.safetensors", SRRESNET)[0], out)
    assert message.startswith("B: '") and "its generator.name is srresnet, that of A," in message and message.endswith("rrdb")
    assert "generator.num_blocks is 2" in refused(a, saved(tmp_path / "deep.safetensors", {**RRDB, "num_blocks": 2})[0], out)
    assert "enlarges by 2, but A" in refused(a, saved(tmp_path / "x2.safetensors", scale=2)[0], out)
    tanh = saved(tmp_path / "tanh.safetensors", {**SRRESNET, "output": "tanh"})[0]  # the same tensors, another function
    assert "generator.output is tanh" in refused(saved(tmp_path / "linear.safetensors", SRRESNET)[0], tanh, out)


def test_neither_source_is_overwritten(tmp_path):
    (a, _), (b, _) = saved(tmp_path / "a.safetensors"), saved(tmp_path / "b.safetensors", seed=1)
    for out in (a, b):
        with pytest.raises(UserError, match="is the file that is read"):
            mixed(a, b, out, 0.5)


def test_a_file_with_other_content_is_replaced_only_on_request(run_commands, tmp_path):
    (a, _), (b, _) = saved(tmp_path / "a.safetensors"), saved(tmp_path / "b.safetensors", seed=1)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    words = [a, b, str(out), "--alpha=0.5"]
    first, second, again = run_commands([("sr_dist.interpolate", [*words, *more]) for more in ([], ["--overwrite"], [])])
    assert first.code == 2 and first.err.startswith(f"error: OUT: '{out}' would be overwritten; say --overwrite")
    assert second.code == again.code == 0  # the same content needs no permission


def test_the_command_writes_the_file_and_prints_a_line(run_commands, tmp_path):
    (a, first), (b, _) = saved(tmp_path / "a.safetensors"), saved(tmp_path / "b.safetensors", seed=1)
    (answer,) = run_commands([("sr_dist.interpolate", [a, b, str(tmp_path / "out.safetensors"), "--alpha=0"])])
    assert answer.code == 0 and answer.out.startswith("1 * a + 0 * b -> ") and not answer.err
    actual = trained.open_generator(str(tmp_path / "out.safetensors")).network.state_dict()
    assert all(torch.equal(value, first[name]) for name, value in actual.items())
