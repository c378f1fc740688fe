import hashlib
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sr_dist.core.errors import UserError
from sr_dist.core.run_layout import checkpoint_folder, checkpoint_steps
from sr_dist.core.version import __version__
from sr_dist.models import trained
from sr_dist.recipe.sections import Keep
from sr_dist.training import checkpoint


def save(folder, step, value=None, metadata=None):
    tensors = {"generator": {"w": torch.full((4, 3), float(value or step))}, "generator.optimizer": {"w/step": torch.tensor(3.0)}}
    return checkpoint.save(folder, step, checkpoint.Contents(tensors, {"step": step, "best": None}, metadata or {}))


def newest_step(folder):
    """The step of the newest complete checkpoint, and the lines that were reported."""
    lines = []
    newest = checkpoint.newest(folder, lines.append)
    return (newest.step if newest else None), lines


def test_the_newest_checkpoint_is_loaded(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 12)
    newest = checkpoint.newest(tmp_path, print)
    assert (newest.step, newest.folder.name, newest.state) == (
        12,
        "0000012",
        {"format": 1, "sr_dist": __version__, "step": 12, "best": None},
    )
    assert torch.equal(newest.tensors("generator")["w"], torch.full((4, 3), 12.0))
    assert newest.tensors("generator.optimizer")["w/step"] == 3
    assert checkpoint_steps(tmp_path) == [5, 12]


def test_the_manifest_lists_every_file_with_size_and_sha256(tmp_path):
    place = save(tmp_path, 1)
    manifest = json.loads((place / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in place.iterdir()} - {"manifest.json"}
    for name, entry in manifest["files"].items():
        data = (place / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path):
    assert newest_step(tmp_path) == (None, [])
    assert newest_step(tmp_path / "nothing") == (None, [])


def test_steps_are_compared_as_numbers(tmp_path):
    for step in (9_999_999, 10_000_000):
        save(tmp_path, step)
    assert newest_step(tmp_path)[0] == 10_000_000


def test_tensors_of_any_layout_come_back(tmp_path):
    tensors = {
        "t": torch.arange(6.0).view(2, 3).t(), "last": torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "half": torch.ones(2, dtype=torch.bfloat16), "count": torch.tensor(7), "grown": torch.ones(2, requires_grad=True),
    }  # fmt: skip
    checkpoint.save(tmp_path, 1, checkpoint.Contents({"g": tensors}, {}, {}))
    back = checkpoint.newest(tmp_path, print).tensors("g")
    assert all(torch.equal(value, back[key]) and value.dtype == back[key].dtype for key, value in tensors.items())


def test_metadata_is_written_to_its_file_only(tmp_path):
    place = save(tmp_path, 1, metadata={"generator": {"sr_dist": "{}"}})
    assert trained.read(place / "generator.safetensors", "k")[1] == {"sr_dist": "{}"}
    assert trained.read(place / "generator.optimizer.safetensors", "k")[1] == {}


@pytest.mark.parametrize("name", ["generator.safetensors", "generator.optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "emptied", "gone"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, name, harm):
    save(tmp_path, 10)
    path = save(tmp_path, 20) / name
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -3 if harm == "cut" else 0])
    step, lines = newest_step(tmp_path)
    assert step == 10
    assert len(lines) == 1 and "0000020 is damaged" in lines[0] and name in lines[0] and "\n" not in lines[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["generator.safetensors", "state.json"]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7)
)
def test_a_flipped_bit_is_detected(tmp_path, name, place, bit):
    if not (tmp_path / "checkpoints" / "0000020").exists():
        save(tmp_path, 10), save(tmp_path, 20)
    path = tmp_path / "checkpoints" / "0000020" / name
    whole = path.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    step, lines = newest_step(tmp_path)
    path = restored(tmp_path) / name
    path.write_bytes(whole)
    assert step == 10 and f"{name} does not match its sha256" in lines[0]
    assert newest_step(tmp_path) == (20, [])


def restored(folder):
    """Moves the damaged checkpoint back to its place."""
    final = checkpoint_folder(folder, 20)
    aside = final.with_suffix(".damaged")
    return aside.rename(final) if aside.exists() else final


def test_a_damaged_checkpoint_does_not_count_when_pruning(tmp_path):
    """Damaged 30, resumed from 20, saved 25, keep the last: 25 stays."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "0000030" / "state.json").unlink()
    assert newest_step(tmp_path)[0] == 20
    save(tmp_path, 25)
    checkpoint.prune(tmp_path, Keep(last=1), None)
    assert checkpoint_steps(tmp_path) == [25]
    assert newest_step(tmp_path) == (25, [])


def test_killed_between_the_two_renames_of_a_second_save(tmp_path):
    save(tmp_path, 10).rename(tmp_path / "checkpoints" / "0000010.before")
    checkpoint.finish_renames(tmp_path)
    assert newest_step(tmp_path) == (10, [])


def test_a_flipped_bit_in_the_manifest_never_raises(tmp_path):
    save(tmp_path, 10)
    path = save(tmp_path, 20) / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 5):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        assert newest_step(tmp_path)[0] in (10, 20)  # 20 where the bit lies in white space
        restored(tmp_path)


def test_each_damaged_checkpoint_is_reported(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step in (2, 3):
        (checkpoint_folder(tmp_path, step) / "state.json").unlink()
    step, lines = newest_step(tmp_path)
    assert step == 1 and ["0000003" in lines[0], "0000002" in lines[1]] == [True, True]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0000001", "0000002.damaged", "0000003.damaged"]


def test_where_all_checkpoints_are_damaged_nothing_is_changed(tmp_path):
    """Training from step 1 would remove the records of the run."""
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"can be used \(0000002: state.json is missing; 0000001: .*nothing was changed"):
            checkpoint.newest(tmp_path, print)
        assert checkpoint_steps(tmp_path) == [1, 2]
    for step in (1, 2):  # as sr_dist 0.2.0 left them
        checkpoint_folder(tmp_path, step).rename(checkpoint_folder(tmp_path, step).with_suffix(".damaged"))
    with pytest.raises(UserError, match=r"0000001\.damaged: "):
        checkpoint.newest(tmp_path, print)


@pytest.mark.parametrize("breaks", ["save_file", "write_json"])
def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch, breaks):
    save(tmp_path, 10)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, breaks, full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 20)
    assert checkpoint_steps(tmp_path) == [10] and newest_step(tmp_path) == (10, [])
    save(tmp_path, 20)  # the next try is not in its own way
    assert newest_step(tmp_path) == (20, [])


def test_pruning_removes_unfinished_checkpoints(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "checkpoints" / ".0000020.unfinished").mkdir()
    (tmp_path / "checkpoints" / ".0000020.unfinished" / "generator.safetensors").write_bytes(b"half")
    assert newest_step(tmp_path) == (10, [])
    checkpoint.prune(tmp_path, Keep(), None)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0000010"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 10, value=1)
    save(tmp_path, 10, value=2)
    assert checkpoint.newest(tmp_path, print).tensors("generator")["w"].mean() == 2
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0000010"]


@pytest.mark.parametrize(
    ("keep", "best", "stay"),
    [
        (Keep(last=1), None, [100]),
        (Keep(last=3), None, [80, 90, 100]),
        (Keep(last=2), 20, [20, 90, 100]),
        (Keep(last=2), 100, [90, 100]),
        (Keep(last=2, every=30), 20, [20, 30, 60, 90, 100]),
        (Keep(last=50), None, list(range(10, 101, 10))),
        (Keep(last=1), 55, [100]),  # the best one is gone already
    ],
)
def test_pruning_keeps_the_last_the_best_and_every_nth(tmp_path, keep, best, stay):
    for step in range(10, 101, 10):
        checkpoint_folder(tmp_path, step).mkdir(parents=True)
    checkpoint.prune(tmp_path, keep, best)
    assert checkpoint_steps(tmp_path) == stay


def test_an_unknown_format_is_refused_with_the_version_that_wrote_it(tmp_path):
    folder = save(tmp_path, 10)
    state = {**json.loads((folder / "state.json").read_text()), "format": 7, "sr_dist": "9.1.0"}
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"^name: '.*0000010' has format 7, written by sr_dist 9\.1\.0; .* reads format 1"):
        checkpoint.newest(tmp_path, print)
    assert checkpoint_steps(tmp_path) == [10]  # and it is not set aside as damaged


def test_a_manifest_of_another_layout_is_refused_and_not_taken_for_damage(tmp_path):
    """Taken for damage, it would be renamed, and training would go on from an older checkpoint."""
    save(tmp_path, 5)
    folder = save(tmp_path, 10)
    (folder / "manifest.json").write_text(json.dumps({"format": 2, "sr_dist": "0.9.0", "parts": []}))
    with pytest.raises(UserError, match=r"0000010/manifest\.json' has format 2, written by sr_dist 0\.9\.0"):
        checkpoint.newest(tmp_path, print)
    assert checkpoint_steps(tmp_path) == [5, 10]
