import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.core import config, files
from sr_dist.core.errors import UserError
from sr_dist.core.json_text import parse_json
from sr_dist.core.version import __version__
from sr_dist.recipe.sections import Recipe
from sr_dist.training import run_folder

HOLD = """
import sys, time
from pathlib import Path
from sr_dist.training import run_folder
lock = run_folder.claim(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(120)
"""

TREE = {
    "name": "tried", "scale": "2", "steps": "100",
    "data": {"train": "shards", "crop": "32", "batch": "4"},
    "generator": {"name": "srugan", "widths": ["8", "12"]}, "objective": {"name": "pixel"},
    "optimizer": {"learning_rate": "1e-4"},
}  # fmt: skip


def recipe(**options):
    return config.typed(Recipe, config.override(TREE, {key.replace("__", "."): value for key, value in options.items()}))


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds the lock of tmp_path/run."""
    monkeypatch.delenv("RANK", raising=False)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_the_owner(tmp_path, holder):
    with pytest.raises(UserError, match=rf"^name: '.*run' is in use by process {holder.pid} on "):
        run_folder.claim(tmp_path / "run")


def test_a_killed_process_holds_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = run_folder.claim(tmp_path / "run")
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    lock.close()


def test_a_file_system_without_locks_is_accepted(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "lockf", unsupported)
    assert run_folder.claim(tmp_path / "run") is not None
    assert "without locks" in capsys.readouterr().out


def test_other_ranks_need_no_lock(tmp_path, holder, monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert run_folder.claim(tmp_path / "run") is None


def test_a_folder_that_cannot_be_created_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^name: the run folder '.*run' cannot be written"):
        run_folder.claim(tmp_path / "file" / "run")


def test_the_recipe_in_the_folder_is_complete_and_loads(tmp_path):
    run_folder.open_folder(tmp_path, recipe(), num_ranks=2)
    assert config.typed(Recipe, config.read(tmp_path / "recipe.yaml")) == recipe()
    assert config.read(tmp_path / "recipe.yaml")["ema"] == {"decay": "0.999", "post_hoc": "false"}  # defaults are written out
    run_folder.check_recipe(tmp_path, recipe())


def test_old_markers_are_removed_and_the_environment_is_written(tmp_path):
    for name in ("DONE", "PREEMPTED", "STOP"):
        run_folder.mark(tmp_path, name, "step 3")
        assert (tmp_path / name).read_text() == "step 3\n"
    assert not (tmp_path / "DONE").exists()  # one marker at a time
    run_folder.open_folder(tmp_path, recipe(), num_ranks=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "environment.json", "recipe.yaml", "run.json"]
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["ranks"] == 2 and environment["packages"]["torch"] and environment["packages"]["sr_dist"] == __version__


def test_a_new_folder_accepts_any_recipe(tmp_path):
    run_folder.check_recipe(tmp_path, recipe())


def begun(folder):
    """A run folder with a checkpoint in it."""
    run_folder.open_folder(folder, recipe(), num_ranks=1)
    (folder / "checkpoints" / "0000001").mkdir(parents=True)


def test_a_run_without_checkpoint_may_change_its_recipe(tmp_path):
    """A mistake that is reported late must not block the name for ever."""
    run_folder.open_folder(tmp_path, recipe(), num_ranks=1)
    run_folder.check_recipe(tmp_path, recipe(seed="1"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.learning_rate", "2e-4"), ("data.batch", "8"), ("seed", "1"), ("generator.widths", "[8, 16]"),
        ("ema.decay", "0.9"), ("objective.content", "{l1: 2.0}"), ("data.select", "{rest: 3}"),
    ],
)  # fmt: skip
def test_a_changed_recipe_is_refused_with_its_keys(tmp_path, key, value):
    begun(tmp_path)
    options = {key.replace(".", "__"): value}
    with pytest.raises(UserError) as refusal:
        run_folder.check_recipe(tmp_path, recipe(**options))
    assert str(refusal.value).startswith("name: ") and f"{key}" in str(refusal.value) and ": was " in str(refusal.value)
    allowed = str(refusal.value).rsplit("--resume.allow=", 1)[1]  # what the line says to say is enough
    run_folder.check_recipe(tmp_path, recipe(**options, resume__allow=allowed))


def test_the_refusal_shows_the_old_and_the_new_value(tmp_path):
    begun(tmp_path)
    with pytest.raises(UserError, match=r"data\.batch: was 4, is 8; seed: was 0, is 1.*--resume\.allow=data\.batch,seed$"):
        run_folder.check_recipe(tmp_path, recipe(data__batch="8", seed="1"))


def test_a_section_can_be_allowed_whole(tmp_path):
    begun(tmp_path)
    changed = {"optimizer__learning_rate": "1e-3", "optimizer__name": "adamw"}
    run_folder.check_recipe(tmp_path, recipe(**changed, resume__allow="optimizer"))
    with pytest.raises(UserError, match=r"optimizer\.name"):
        run_folder.check_recipe(tmp_path, recipe(**changed, resume__allow="optimizer.learning_rate"))


def test_a_new_section_is_refused(tmp_path):
    begun(tmp_path)
    with pytest.raises(UserError, match="discriminator"):
        run_folder.check_recipe(tmp_path, recipe(discriminator="{name: acgan}"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "900"), ("runs", "elsewhere"), ("accumulate", "2"), ("data.workers", "0"), ("data.trace", "true"),
        ("save_every", "7"), ("keep", "{last: 9, best: psnr_y}"), ("validate_every", "none"), ("log_every", "1"),
        ("log.wandb", "offline"), ("precision", "bf16"), ("data.train", "moved"), ("name", "other"),
    ],
)  # fmt: skip
def test_keys_that_may_change_are_accepted(tmp_path, key, value):
    begun(tmp_path)
    run_folder.check_recipe(tmp_path, recipe(**{key.replace(".", "__"): value}))


def rows(*steps):
    return "".join(json.dumps({"step": step, "loss/l1": 0.5}) + "\n" for step in steps)


def test_later_rows_and_an_incomplete_last_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(rows(10, 20, 20, 30) + '{"step": 20, "loss/l')
    run_folder.drop_later_rows(path, 20)
    assert path.read_text() == rows(10, 20, 20)


@pytest.mark.parametrize("cut", range(1, 12))
def test_the_last_line_may_be_cut_anywhere(tmp_path, cut):
    path = tmp_path / "trace.jsonl"
    path.write_text(rows(1) + rows(2)[:-cut])
    run_folder.drop_later_rows(path, 5)
    assert path.read_text() == (rows(1, 2) if cut == 1 else rows(1))  # only the line's end was lost


def test_other_rows_do_not_change(tmp_path):
    path = tmp_path / "trace.jsonl"
    text = '{"step": 1, "keys": ["a/\\u00e9", "b"]}\n{"step":2,"x":null}\n'
    path.write_text(text)
    run_folder.drop_later_rows(path, 2)
    assert path.read_text() == text
    run_folder.drop_later_rows(path, 0)
    assert path.read_text() == ""


def test_an_absent_file_is_fine(tmp_path):
    run_folder.drop_later_rows(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def bytes_read() -> int:
    """What this process has read so far, by the kernel's count."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def test_rows_are_dropped_with_the_same_work_in_a_longer_file(tmp_path, monkeypatch):
    """10 rows of 39 bytes are dropped, and 64 KiB before them are checked, whether the file has 10,000 or 40,000 rows."""
    parsed = []
    monkeypatch.setattr(run_folder, "parse_json", lambda line: parsed.append(line) or parse_json(line))
    work = {}
    for count in (10_000, 40_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(f'{{"step": {step:7d}, "loss/l1": 0.123456}}\n' for step in range(count)))
        parsed.clear()
        before = bytes_read()
        run_folder.drop_later_rows(path, count - 11)
        work[count] = len(parsed)
        assert bytes_read() - before < 3 * run_folder.BLOCK
        assert path.read_text().count("\n") == count - 10
    assert work[10_000] == work[40_000] == 10 + -(-run_folder.BLOCK // 39)


@given(
    st.lists(st.integers(0, 9), max_size=40),
    st.lists(st.binary(max_size=9), max_size=4),
    st.integers(0, 9),
    st.sampled_from([1, 7, 64, 999]),
)
def test_rows_that_stay_are_those_of_a_filter(tmp_path_factory, steps, damage, step, block):
    """Rows in order, then whatever a crash left, in blocks of any size."""
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    whole = [json.dumps({"step": number, "x": "y" * number}).encode() + b"\n" for number in sorted(steps)]
    torn = [b"\x00" + line.replace(b"\n", b"") + b"\n" for line in damage]
    path.write_bytes(b"".join([*whole, *torn]) + b'{"step": 1')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "BLOCK", block)
        with open(path, "rb") as file:
            lines = list(run_folder.lines_from_end(file))
        data = path.read_bytes()
        assert b"".join(line for _, line in reversed(lines)) == data
        assert all(data.startswith(line, begin) for begin, line in lines)
        run_folder.drop_later_rows(path, step)
    assert path.read_bytes() == b"".join(line for line in whole if json.loads(line)["step"] <= step)


def test_damage_between_rows_is_removed_without_a_look_at_the_lines_before(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text(rows(1) + "not looked at\n" + rows(*[2] * 5) + "damaged\n" + rows(3, 4))
    monkeypatch.setattr(run_folder, "BLOCK", 60)
    run_folder.drop_later_rows(path, 3)
    assert path.read_text() == rows(1) + "not looked at\n" + rows(*[2] * 5, 3)
