"""A run and its checkpoints have an identity: nothing copied, renamed, lost or unreadable is taken for it."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from processes import finish, kill, last_step, run, small_gan, start, wait_for

from sr_dist.core.errors import UserError
from sr_dist.training import checkpoint, run_folder

FOLDER = Path(__file__).parent
OLD = FOLDER.parent / "version_0_1"


def words(shards: Path, runs: Path, **more: object) -> list[str]:
    return small_gan(shards, runs, **{"steps": 4, "data.batch": 4, "save_every": 2, "keep": 9, **more})


@pytest.fixture(scope="module")
def finished(photo_shards, tmp_path_factory) -> Path:
    """A run of four steps, with checkpoints 2 and 4 and a sheet of sample images."""
    runs = tmp_path_factory.mktemp("finished")
    run(0, "sr_dist.train", *words(photo_shards, runs))
    return runs / "run"


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def state_of(checkpoint_folder: Path) -> dict:
    return json.loads((checkpoint_folder / "state.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which each attempt writes."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def refusal(shards: Path, folder: Path, module: str = "sr_dist.train", **more: object) -> str:
    """The one line of a training that is refused and has changed nothing."""
    before = contents(folder)
    options = {"steps": 6, **more}
    _, err = run(0, module, *words(shards, folder.parent, **options), expect=2, cwd=FOLDER)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    assert contents(folder) == before
    return lines[0]


# ---- the id


def test_folder_and_checkpoints_share_an_id_of_128_random_bits(folder, photo_shards):
    record = json.loads((folder / "run.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{32}", record["id"]) and record["format"] == 1
    for step in ("0000002", "0000004"):
        for name in ("state.json", "manifest.json"):
            assert json.loads((folder / "checkpoints" / step / name).read_text())["run"] == record["id"]
    run(0, "sr_dist.train", *words(photo_shards, folder.parent, steps=6))
    assert json.loads((folder / "run.json").read_text()) == record
    assert state_of(folder / "checkpoints" / "0000006")["run"] == record["id"]


def test_a_checkpoint_of_another_run_is_refused(folder, photo_shards, tmp_path):
    run(0, "sr_dist.train", *words(photo_shards, tmp_path / "other", seed=7, steps=5))
    shutil.copytree(tmp_path / "other/run/checkpoints/0000005", folder / "checkpoints" / "0000005")
    assert "0000005' is a checkpoint of another run" in refusal(photo_shards, folder)


def test_a_renamed_checkpoint_is_refused(folder, photo_shards):
    (folder / "checkpoints" / "0000004").rename(folder / "checkpoints" / "0000020")
    assert "0000020' is the checkpoint of step 4" in refusal(photo_shards, folder, steps=30)


@pytest.mark.parametrize("harm", ["removed", "edited"])
def test_a_lost_recipe_does_not_change_the_run(harm, folder, photo_shards):
    path, text = folder / "recipe.yaml", (folder / "recipe.yaml").read_text()
    path.unlink()
    if harm == "edited":  # to what the next command says
        path.write_text(text.replace("seed: 0", "seed: 3"))
    line = refusal(photo_shards, folder, seed=3)
    assert "was begun with another recipe (seed: was 0, is 3)" in line
    run(0, "sr_dist.train", *words(photo_shards, folder.parent, steps=5))
    assert "seed: 0\n" in path.read_text()


def test_a_run_of_0_1_gets_its_id_when_it_is_continued(tmp_path):
    old = Path(shutil.copytree(OLD, tmp_path / "old"))
    gan = old / "runs" / "gan"
    (gan / "recipe.yaml").rename(old / "recipe.yaml")
    _, err = run(0, "sr_dist.train", "recipe.yaml", "--steps=4", expect=2, cwd=old)
    assert "has checkpoints but no recipe.yaml" in err
    shutil.copy(old / "recipe.yaml", gan / "recipe.yaml")
    run(0, "sr_dist.train", "recipe.yaml", "--steps=4", "--keep=9", cwd=old)
    record = json.loads((gan / "run.json").read_text())
    assert record["unnamed_until"] == 3 and state_of(gan / "checkpoints" / "0000004")["run"] == record["id"]
    shutil.rmtree(gan / "checkpoints" / "0000004")
    assert checkpoint.newest(gan, print).step == 3  # it has no id, and need not have one
    (gan / "run.json").write_text(json.dumps({**record, "unnamed_until": 0}))
    with pytest.raises(UserError, match="0000003' is a checkpoint of another run"):
        checkpoint.newest(gan, print)


def test_a_lost_id_is_taken_from_the_checkpoints(folder, photo_shards):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text("{")
    assert "run.json' is damaged" in refusal(photo_shards, folder)
    (folder / "run.json").unlink()
    run(0, "sr_dist.train", *words(photo_shards, folder.parent, steps=5))
    assert json.loads((folder / "run.json").read_text()) == record


def test_a_renamed_folder_is_the_same_run(folder, photo_shards):
    """Its id says so; nobody has to allow it."""
    folder.rename(folder.with_name("other"))
    out, _ = run(0, "sr_dist.train", *words(photo_shards, folder.parent, name="other", steps=5))
    assert "continuing after step 4" in out
    assert "name: other\n" in (folder.with_name("other") / "recipe.yaml").read_text()


def without(checkpoint_folder: Path, key: str, *, put: object = None) -> None:
    """A state.json without this key, or with another value, and the manifest that fits it."""
    state = state_of(checkpoint_folder)
    place, *rest = key.split(".")
    inner = state[place] if rest else state
    inner.pop(rest[0] if rest else key)
    if put is not None:
        inner[rest[0] if rest else key] = put
    data = json.dumps(state).encode()
    (checkpoint_folder / "state.json").write_bytes(data)
    manifest = json.loads((checkpoint_folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint_folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_state_without_a_key_is_one_line(folder, photo_shards):
    """Somebody has edited it; before, each of these was a KeyError."""
    keys = ["position", "manifest", "ema_updates", "validated", "best", "skipped", "scalers", "skipped.generator"]
    for key in [*keys, "scalers.discriminator"]:
        copy = Path(shutil.copytree(folder, folder.parent / key / "run"))
        without(copy / "checkpoints" / "0000004", key)
        with pytest.raises(UserError, match=rf"0000004/state\.json' cannot be used: there is no '{key}'; "):
            checkpoint.check_state(checkpoint.newest(copy, print), ("generator", "discriminator"))
    assert "state.json' cannot be used: there is no 'skipped.generator'" in refusal(
        photo_shards, folder.parent / "skipped.generator" / "run"
    )
    without(folder / "checkpoints" / "0000004", "position", put="16")
    assert "0000004/state.json' cannot be used: 'position' is '16'" in refusal(photo_shards, folder)


@pytest.mark.parametrize("mistake", ["precision: fp16", "checkpointing: nothing.*", "init.freeze: '*'"])
def test_a_refused_start_leaves_no_folder(mistake, photo_shards, tmp_path):
    key, value = mistake.split(": ")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for place in ("new/runs", "runs"):
        command = words(photo_shards, tmp_path / place, **{key: value.strip("'")})
        assert "error: " in run(0, "sr_dist.train", *command, expect=2)[1]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "runs"]
    (tmp_path / "runs" / "run").mkdir()
    run(0, "sr_dist.train", *command, expect=2)
    assert (tmp_path / "runs" / "run").is_dir()  # it was there before


# ---- a folder that is removed or replaced under a process


@pytest.mark.slow
def test_two_ranks_say_once_what_all_know(photo_shards, tmp_path):
    folder = tmp_path / "run"
    process = start(2, "sr_dist.train", *words(photo_shards, tmp_path, steps=100_000, save_every=5))
    wait_for(lambda: last_step(folder) >= 2, process)
    shutil.rmtree(folder)
    _, _, err = finish(process)
    assert err.count("error: ") == 1 and "was removed while this process was training" in err, err


def test_a_process_whose_folder_was_replaced_stops_and_writes_nothing(photo_shards, tmp_path):
    folder = tmp_path / "run"
    first = start(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=100_000, save_every=1))
    wait_for(lambda: last_step(folder) >= 2, first)
    kill(first, signal.SIGSTOP)
    shutil.rmtree(folder)
    run(0, "sr_dist.train", *words(photo_shards, tmp_path, optimizer__learning_rate=0.01, steps=3))
    before = contents(folder)
    kill(first, signal.SIGCONT)
    code, _, err = finish(first)
    assert (code, "now belongs to another run" in err) == (2, True), err
    assert contents(folder) == before


def test_a_removed_folder_does_not_come_back(photo_shards, tmp_path):
    folder = tmp_path / "run"
    options = {"steps": 100_000, "save_every": 5, "validate_every": 1, "on_save_error": "continue", "hang_timeout": 100}
    process = start(0, "sr_dist.train", *words(photo_shards, tmp_path, **options))
    wait_for(lambda: last_step(folder) >= 2, process)
    kill(process, signal.SIGSTOP)
    shutil.rmtree(folder)
    kill(process, signal.SIGCONT)
    code, _, err = finish(process)
    assert (code, "was removed while this process was training" in err) == (2, True), err
    assert not folder.exists()


def test_a_run_that_begins_anew_has_another_id_and_no_older_sample_images(folder, photo_shards):
    before = json.loads((folder / "run.json").read_text())["id"]
    assert (folder / "samples" / "0000004.png").exists()
    shutil.rmtree(folder / "checkpoints")
    run(0, "sr_dist.train", *words(photo_shards, folder.parent, steps=2, seed=1))
    assert json.loads((folder / "run.json").read_text())["id"] != before
    assert [path.name for path in (folder / "samples").iterdir()] == ["0000002.png"]


# ---- what cannot be read is not damaged


@pytest.mark.parametrize("closed", ["checkpoints/0000004", "checkpoints/0000004/generator.safetensors", "checkpoints"])
def test_a_checkpoint_without_permission_is_refused(closed, folder, photo_shards):
    before = contents(folder)
    (folder / closed).chmod(0)
    command = words(photo_shards, folder.parent, steps=6)
    _, err = run(0, "without_override", *command, expect=2, cwd=FOLDER)
    assert "cannot be read" in err and "Permission denied" in err and "Traceback" not in err
    (folder / closed).chmod(0o755)
    assert contents(folder) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_does_not_answer_is_no_damage(number, folder, monkeypatch):
    def failing(path):
        raise OSError(number, "it does not answer", str(path))

    before = contents(folder)
    monkeypatch.setattr(checkpoint, "sha256", failing)
    with pytest.raises(UserError, match=r"0000004' cannot be read \(it does not answer\)"):
        checkpoint.newest(folder, print)
    assert contents(folder) == before


def test_a_read_only_run_folder_is_one_line(folder, photo_shards):
    before = contents(folder)
    folder.chmod(0o555)
    _, err = run(0, "without_override", *words(photo_shards, folder.parent, steps=6), expect=2, cwd=FOLDER)
    folder.chmod(0o755)
    assert "run' cannot be written: Permission denied" in err and "Traceback" not in err
    assert contents(folder) == before


@pytest.mark.parametrize("manifest", ['{"files": {}}', "[1]", "[" * 100_000], ids=["no files", "a list", "deep"])
def test_where_no_checkpoint_can_be_used_nothing_is_wiped(manifest, folder, photo_shards):
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        path.write_text(manifest)
    line = refusal(photo_shards, folder)
    assert "can be used (0000004: manifest.json" in line and "nothing was changed" in line


def test_rows_of_later_steps_are_dropped_in_constant_memory(tmp_path):
    """A file of 60 MB in less than 1 MB of memory; the rows that stay are not written again."""
    import tracemalloc

    path = tmp_path / "metrics.jsonl"
    with open(path, "w") as file:
        for step in range(1, 20_001):
            file.write(f'{{"step": {step}, "loss/{"x" * 2800}": 0.5}}\n')
    before = path.stat()
    tracemalloc.start()
    run_folder.drop_later_rows(path, 19_990)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    assert path.stat().st_ino == before.st_ino and path.read_text().count("\n") == 19_990


# ---- what a second look found


def test_a_checkpoint_between_two_renames_counts_for_the_recipe(folder, photo_shards):
    """Killed while the only checkpoint was being replaced: a changed recipe went on from it without a word."""
    shutil.rmtree(folder / "checkpoints/0000002")
    (folder / "checkpoints/0000004").rename(folder / "checkpoints/0000004.before")
    options = words(photo_shards, folder.parent, steps=6, optimizer__learning_rate=0.5)
    _, err = run(0, "sr_dist.train", *options, expect=2)
    assert "was begun with another recipe (optimizer.learning_rate" in err
    out, _ = run(0, "sr_dist.train", *words(photo_shards, folder.parent, steps=6))
    assert "continuing after step 4" in out


def test_a_run_writes_its_id_again_where_only_that_was_removed(photo_shards, tmp_path):
    folder = tmp_path / "run"
    process = start(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=100_000, save_every="none"))
    wait_for(lambda: last_step(folder) >= 2, process)
    own = json.loads((folder / "run.json").read_text())
    (folder / "run.json").unlink()
    kill(process, signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 0, err
    assert json.loads((folder / "run.json").read_text())["id"] == own["id"] and (folder / "PREEMPTED").exists()


def test_a_network_that_does_not_fit_is_refused_before_anything_changes(folder, photo_shards):
    line = refusal(
        photo_shards,
        folder,
        generator="{name: srugan, widths: [8, 10], num_blocks: 1, num_dense_blocks: 1}",
        resume__allow="generator",
    )
    assert "resume.allow: the generator in checkpoint 0000004 does not fit: " in line
