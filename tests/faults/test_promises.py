"""What is promised holds when something fails: a bad batch, a full disk, a bad picture, a flipped bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from photographs import made_photo
from PIL import Image
from processes import finish, last_step, metrics, run, small_gan, start, wait_for
from safetensors.torch import load_file
from torch import nn

from sr_dist.core.files import Lines
from sr_dist.core.lost_writes import LostWrites
from sr_dist.core.run_layout import checkpoint_steps
from sr_dist.training.buffers import Buffers, saved_buffers
from sr_dist.training.checkpoint import SaveFailed, Writer
from sr_dist.training.ema import Ema
from sr_dist.training.run import check_saves

FOLDER = Path(__file__).parent


def words(shards: object, runs: Path, **more: object) -> list[str]:
    return small_gan(shards, runs, **{"steps": 4, "data.batch": 4, "save_every": 2, "keep": 9, **more})


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- steps that are not finite


def exploding(shards: Path, runs: Path, bad_steps: str, **more: object) -> list[str]:
    """A generator with batch normalization that gets images which are not finite in these steps."""
    objective = f"{{name: faulty.exploding, content: {{l1: 1.0}}, steps: [{bad_steps}]}}"
    line = words(shards, runs, objective=objective, generator="{name: srresnet, num_blocks: 1, width: 8}", **more)
    return [word for word in line if not word.startswith("--discriminator")] + ["--discriminator=none"]


def test_a_skipped_step_leaves_no_trace_in_running_statistics(photo_shards, tmp_path):
    command = exploding(photo_shards, tmp_path, "3", data__validation=photo_shards, validate_every=2)
    run(0, "sr_dist.train", *command, cwd=FOLDER)
    folder = tmp_path / "run"
    assert [row["skipped/generator"] for row in metrics(folder)] == [0, 0, 1, 1]
    assert all(row["validation/psnr_y"] > 0 for row in rows(folder) if "validation/psnr_y" in row)
    for name in ("generator", "generator.ema"):
        tensors = load_file(folder / "checkpoints" / "0000004" / f"{name}.safetensors")
        assert all(torch.isfinite(value).all() for value in tensors.values())
        assert {int(value) for key, value in tensors.items() if key.endswith("num_batches_tracked")} == {3}  # of 4 steps


def test_pruning_keeps_the_last_checkpoint_with_finite_gradients(photo_shards, tmp_path):
    options = {"save_every": 1, "keep": "{last: 1}"}
    run(0, "sr_dist.train", *exploding(photo_shards, tmp_path, "3,4,5,6", steps=4, **options), cwd=FOLDER)
    assert steps_of(tmp_path / "run") == [2, 4]
    run(0, "sr_dist.train", *exploding(photo_shards, tmp_path, "3,4,5,6", steps=5, **options), cwd=FOLDER)
    assert steps_of(tmp_path / "run") == [2, 5]  # also after a restart
    run(0, "sr_dist.train", *exploding(photo_shards, tmp_path, "3,4,5,6", steps=7, **options), cwd=FOLDER)
    assert steps_of(tmp_path / "run") == [7]


def norm_after(value: float) -> tuple[nn.BatchNorm2d, Buffers]:
    """Batch normalization of an input of this size, after a good one, before its buffers are settled."""
    torch.manual_seed(0)
    network = nn.BatchNorm2d(2)
    buffers = Buffers(network)
    network(torch.rand(4, 2, 3, 3))
    buffers.settle(torch.zeros(()))
    network(torch.rand(4, 2, 3, 3) * value)
    return network, buffers


def test_a_variance_that_overflows_is_restored_named_and_counted():
    """1e25 squared is infinite in fp32, and the gradients are finite: the normalized values are zeros."""
    network, buffers = norm_after(1e25)
    assert torch.isinf(network.running_var).all()
    good = network.running_mean.clone()
    for count in (1, 2):
        buffers.settle(torch.zeros(()))
        assert int(buffers.refused) == count and buffers.broken() == ["running_var"]
        network(torch.rand(4, 2, 3, 3) * 1e25)
    buffers.settle(torch.zeros(()))
    assert torch.isfinite(network.running_var).all() and network.running_mean.abs().max() < 1 and good.abs().max() > 1
    assert int(network.num_batches_tracked) == 1
    network(torch.rand(4, 2, 3, 3))
    buffers.settle(torch.zeros(()))
    assert int(buffers.refused) == 0 and int(network.num_batches_tracked) == 2


def test_a_good_step_changes_buffers_and_a_skipped_one_does_not():
    for skipped in (0.0, 1.0):
        network, buffers = norm_after(2.0)
        moved = network.running_mean.clone()
        buffers.settle(torch.tensor(skipped))
        assert network.running_mean.equal(moved) == (not skipped)
        assert int(network.num_batches_tracked) == (1 if skipped else 2)
        assert int(buffers.refused) == 0


def test_a_constant_is_no_state():
    """A mask of an attention is infinite by design, and is in no checkpoint."""
    network = nn.BatchNorm2d(2)
    network.register_buffer("mask", torch.full((3,), -torch.inf), persistent=False)
    buffers = Buffers(network)
    network(torch.rand(4, 2, 3, 3))
    buffers.settle(torch.zeros(()))
    assert int(buffers.refused) == 0 and int(network.num_batches_tracked) == 1
    assert saved_buffers(network).keys() == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_skipped_step_leaves_no_trace_in_the_average():
    class Engine:
        bare, skipped = nn.Linear(3, 2), torch.zeros(())

        def local_weights(self):
            return list(self.bare.parameters())

    engine = Engine()
    ema = Ema(engine.bare, 0.9)
    ema.follow(engine)
    with torch.no_grad():
        engine.bare.weight.add_(1)
    before = [value.clone() for value in ema.averages]
    engine.skipped = torch.ones(())
    ema.update()
    assert all(value.equal(old) for value, old in zip(ema.averages, before, strict=True))
    engine.skipped = torch.zeros(())
    ema.update()
    assert not ema.averages[0].equal(before[0])


# ---- full disks


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leaves no byte on the disk."""
    ballast = disk / "ballast"
    with open(ballast, "ab", buffering=0) as file:
        try:
            while file.write(b"." * 4096):
                pass
        except OSError:
            pass
    return ballast


def test_training_goes_on_while_the_disk_is_full_and_says_what_is_lost(photo_shards, small_disk):
    """The disk is full from about step 3 on, and has space again when everything has failed once."""
    folder, names = small_disk / "run", ("metrics.jsonl", "trace", "log.txt", "samples")
    options = {"steps": 100_000, "save_every": 5, "validate_every": 5, "keep": 1, "on_save_error": "continue", "data.batch": 12}
    process = start(0, "sr_dist.train", *words(photo_shards, small_disk, **options))
    wait_for(lambda: last_step(folder) >= 3, process)
    ballast = fill(small_disk)
    warnings = [f"warning: {name} cannot be written (No space left on device); training goes on" for name in names]
    wait_for(lambda: all(line in process._out.read_text() for line in warnings), process)
    ballast.unlink()
    wait_for(lambda: checkpoint_steps(folder), process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert (code, (folder / "PREEMPTED").exists()) == (0, True), out + err
    assert [out.count(line) for line in warnings] == [1, 1, 1, 1]
    assert [out.count(f"warning: writes to {name} that failed and are lost: ") for name in names] == [1, 1, 1, 1]
    assert "Traceback" not in out + err and "Logging error" not in out + err
    steps = [row["step"] for row in metrics(folder)]
    assert len(steps) < steps[-1] == steps_of(folder)[-1]
    assert all(json.loads(line) for line in (folder / "trace" / "rank-000.jsonl").read_text().splitlines())


def test_a_disk_that_is_full_stops_a_run_that_does_not_say_continue(photo_shards, small_disk):
    process = start(0, "sr_dist.train", *words(photo_shards, small_disk, steps=100_000, save_every="none", validate_every="none"))
    wait_for(lambda: last_step(small_disk / "run") >= 3, process)
    fill(small_disk)
    code, out, _ = finish(process)
    assert code == 1 and "could not be written (No space left on device)" in out


def test_continuing_on_a_full_disk_is_one_line_and_changes_nothing(photo_shards, small_disk):
    folder = small_disk / "run"
    run(0, "sr_dist.train", *words(photo_shards, small_disk, steps=2))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    fill(small_disk)
    _, err = run(0, "sr_dist.train", *words(photo_shards, small_disk, steps=4), expect=2)
    assert "cannot be written: No space left on device" in err and "Traceback" not in err
    assert (folder / "DONE").exists()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"} == before


# ---- validation that fails


def test_a_validation_picture_that_is_cut_short_costs_no_step(photo_shards, tmp_path):
    pictures, folder = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for number in range(6):
        Image.fromarray(made_photo(number, 32, 32)).save(pictures / f"{number}.png")
    whole = (pictures / "5.png").read_bytes()
    (pictures / "5.png").write_bytes(whole[: len(whole) // 2])
    options = {"data__validation": pictures, "validate_every": 2, "keep": "{last: 9, best: psnr_y}"}
    for _ in range(2):
        _, err = run(0, "sr_dist.train", *words(photo_shards, tmp_path, **options), expect=2)
        assert "5.png" in err
        assert steps_of(folder) == [2]
        assert json.loads((folder / "checkpoints/0000002/state.json").read_text())["validated"] is False
    (pictures / "5.png").write_bytes(whole)
    out, _ = run(0, "sr_dist.train", *words(photo_shards, tmp_path, **options))
    assert "continuing after step 2" in out
    assert [row["step"] for row in rows(folder) if "validation/psnr_y" in row] == [2, 4]
    state = json.loads((folder / "checkpoints/0000004/state.json").read_text())
    assert state["validated"] is True and state["best"]["metric"] == "psnr_y"
    manifest = json.loads((folder / "checkpoints/0000004/manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in (folder / "checkpoints/0000004").iterdir()} - {"manifest.json"}


# ---- resuming


def test_a_flipped_bit_in_the_metrics_costs_one_row(photo_shards, tmp_path):
    folder = tmp_path / "run"
    run(0, "sr_dist.train", *words(photo_shards, tmp_path))
    data = bytearray((folder / "metrics.jsonl").read_bytes())
    lines = data.split(b"\n")
    data[len(lines[0]) + 20] ^= 0x80
    (folder / "metrics.jsonl").write_bytes(data)
    run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=5))
    assert [row["step"] for row in metrics(folder)] == [1, 3, 4, 5]
    assert (folder / "metrics.jsonl").read_bytes().startswith(lines[0] + b"\n" + lines[2])


def test_channels_last_resumes_to_the_same_bits(photo_shards, tmp_path):
    """Adam's states are stored contiguous, and its fused kernel pairs them with the weights by their place in memory."""
    for runs, parts in (("whole", [8]), ("parts", [4, 8])):
        for steps in parts:
            more = {"channels_last": "true", "save_every": 4, "steps": steps, "data__batch": 8}
            run(0, "sr_dist.train", *words(photo_shards, tmp_path / runs, **more))
    whole, parts = (tmp_path / runs / "run" / "checkpoints" / "0000008" for runs in ("whole", "parts"))
    for name in ("generator", "generator.ema", "generator.optimizer", "discriminator", "discriminator.optimizer"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (whole, parts))
        assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours), name


def test_a_save_that_is_amended_without_hard_links_is_whole(photo_shards, tmp_path, monkeypatch):
    from sr_dist.training import checkpoint

    run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=2))
    folder = tmp_path / "run"
    state = json.loads((folder / "checkpoints/0000002/state.json").read_text())

    def refused(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoint.os, "link", refused)
    checkpoint.amend(folder, 2, {**state, "validated": False})
    saved = checkpoint.newest(folder, print)
    assert saved.state == {**state, "validated": False} and steps_of(folder) == [2]


def test_a_tracker_that_raises_is_left_out(tmp_path, monkeypatch, capsys):
    from sr_dist.training import log

    class Broken:
        def row(self, row):
            raise ConnectionError("nobody answers")

        def close(self, code):
            raise AssertionError("it was left out")

    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(log, "tracker_openers", lambda recipe: [lambda recipe, info: Broken()])
    from types import SimpleNamespace as Some

    opened = log.Log(Some(name="run", steps=2, folder=folder, log=Some(artifacts=False)), True, LostWrites())
    opened.row({"step": 1}), opened.row({"step": 2}), opened.close()
    assert capsys.readouterr().out.count("Broken failed (nobody answers)") == 1
    assert [row["step"] for row in rows(folder)] == [1, 2]
    shutil.rmtree(folder)


# ---- what a second look found


def test_a_run_without_its_last_checkpoint_is_not_done(tmp_path):
    """A save can fail before `check_saves` looks: on_save_error=continue then forgave the last one too, and the run was DONE."""
    writer = Writer(lambda text: None)
    recipe = SimpleNamespace(folder=tmp_path / "run", on_save_error="continue")
    run = SimpleNamespace(writer=writer, recipe=recipe, step=6, state={"run": None})

    def fails() -> None:
        raise OSError("File exists")

    writer.begin(fails)
    writer.wait()
    check_saves(run)  # after `begin`: reported and forgiven
    with pytest.raises(SaveFailed, match="no checkpoint of step 6"):
        check_saves(run, last=True)
    (tmp_path / "run/checkpoints/0000006").mkdir(parents=True)
    check_saves(run, last=True)


def test_images_are_counted_where_the_batch_size_has_changed(photo_shards, tmp_path):
    run(0, "sr_dist.train", *words(photo_shards, tmp_path, data__batch=2, log_every=1))
    run(0, "sr_dist.train", *words(photo_shards, tmp_path, data__batch=3, log_every=1, steps=6, resume__allow="data.batch"))
    assert [row["images"] for row in metrics(tmp_path / "run")] == [2, 4, 6, 8, 11, 14]


def test_rows_go_to_the_path_also_where_the_file_is_replaced(tmp_path):
    """As `sed -i`, editors and log rotation do."""
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    lines = Lines(path)
    lines.write("1")
    path.write_text(path.read_text())  # in place
    lines.write("2")
    copy = path.with_suffix(".new")
    copy.write_text(path.read_text())
    copy.replace(path)
    lines.write("3")
    assert path.read_text() == "1\n2\n3\n"
    path.rename(path.with_suffix(".old"))
    lines.write("4")
    assert path.read_text() == "4\n" and path.with_suffix(".old").read_text() == "1\n2\n3\n"
    shutil.rmtree(path.parent)
    lines.write("5")
    assert not path.parent.exists()  # a run folder that was removed does not come back
    lines.close()


def test_no_run_ends_because_a_line_for_people_is_lost(photo_shards, tmp_path):
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=1))
    assert (tmp_path / "run" / "DONE").exists()
