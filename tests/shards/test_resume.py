"""The same bytes from any number of workers and tasks, and after any kill."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from made_shards import built, bytes_of, keys_of, rejects_of
from processes import ROOT, family, finish, finish_with, kill, run, start, wait_for

from shards import build, build_lock, merge, workers, writer
from shards.build_files import PLAN_FILE
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.data.format import ShardError, open_shards

WORK = {"per_shard": "3", "resize": "20", "format": "png"}  # slow enough that a kill interrupts something


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """An uninterrupted build of the photographs with a reject and a duplicate. Only read it."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(photos, root / "in")
    (root / "in" / "cats" / "broken.png").write_bytes(b"")
    first = sorted((root / "in" / "boats").iterdir())[0]
    shutil.copy(first, root / "in" / "dunes" / ("again" + first.suffix))
    built("class_folders", root / "in", root / "out", **WORK)
    return root


def words(whole, out, *more):
    return ["class_folders", whole / "in", out, *(f"--{key}={value}" for key, value in WORK.items()), *more]


def test_workers_make_the_bytes_of_one(whole, tmp_path):
    run(0, "shards.build", *words(whole, tmp_path / "out", "--workers=3"))
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


@pytest.mark.parametrize("tasks", [2, 4, 11])
def test_tasks_in_any_order_and_a_merge_make_the_bytes_of_one(whole, tmp_path, tasks):
    order = random.Random(tasks).sample(range(tasks), tasks)
    for task in order:
        with pytest.raises(ShardError, match=r"no manifest\.json|no folder"):
            open_shards(str(tmp_path / "out"))
        build.build("class_folders", str(whole / "in"), tmp_path / "out", {**WORK, "task": f"{task}/{tasks}"})
    shards = built("class_folders", whole / "in", tmp_path / "out", **WORK, merge="true")
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")
    assert rejects_of(tmp_path / "out") == {"cats/broken": "the file is empty"}
    assert shards.manifest.samples == 25


def test_a_merge_before_all_tasks_are_done_is_refused_and_names_a_shard(whole, tmp_path):
    build.build("class_folders", str(whole / "in"), tmp_path / "out", {**WORK, "task": "0/2"})
    before = bytes_of(tmp_path / "out")
    with pytest.raises(UserError, match=r"^merge: 5 of 9 shards are not built, 'out-000004\.tar' among them"):
        build.build("class_folders", str(whole / "in"), tmp_path / "out", {**WORK, "merge": "true"})
    assert bytes_of(tmp_path / "out") == before
    built("class_folders", whole / "in", tmp_path / "out", **WORK)  # without --merge it goes on
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


def test_a_merge_where_no_build_has_begun_changes_nothing(whole, tmp_path):
    """Its plan file would block the right build."""
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(UserError, match=rf"^merge: no build has begun in '{tmp_path / name}'"):
            build.build("class_folders", str(whole / "in"), tmp_path / name, {**WORK, "seed": "7", "merge": "true"})
    assert not (tmp_path / "new").exists() and bytes_of(tmp_path / "empty") == {}


@pytest.mark.parametrize("place", ["tar", "part file", "merge"])
def test_a_full_disk_is_a_failure_after_which_the_same_command_continues(whole, tmp_path, monkeypatch, place):
    targets = {
        "tar": (writer.TarWriter, "end"), "part file": (workers, "write_part_file"), "merge": (merge, "find_duplicates")
    }  # fmt: skip
    owner, name = targets[place]
    function, calls = getattr(owner, name), []

    def failing(*args):
        calls.append(args)
        if len(calls) == (1 if place == "merge" else 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args)

    monkeypatch.setattr(owner, name, failing)
    line = list(map(str, words(whole, tmp_path / "out")))
    with pytest.raises(SystemExit, match=r"^the disk of '.*out' is full; make room, and the same command continues$"):
        build.main(line)
    assert len(list((tmp_path / "out").glob("*.part"))) == (9 if place == "merge" else 2)
    assert build.main(line) == 0
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


WAITING = """
import time
from pathlib import Path
from shards.sources.class_folders import Config, listing

def read(item):
    Path("begun").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return Path(item.path).read_bytes()
"""


def test_two_builds_of_the_same_shards_at_once_are_refused_and_tasks_of_others_are_not(whole, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "waiting.py").write_text(WAITING)
    line = ["mine.waiting", whole / "in", tmp_path / "out", *(f"--{key}={value}" for key, value in WORK.items())]
    first = start(0, "shards.build", *line, "--task=0/2", cwd=tmp_path)
    wait_for((tmp_path / "begun").exists, first)
    seconds = [start(0, "shards.build", *line, *more, cwd=tmp_path) for more in ([], ["--task=0/2"], ["--task=0/4"], ["--merge"])]
    for second in seconds:
        _, error = finish_with(2, second)
        assert error.startswith(f"error: OUT: another command builds these shards in '{tmp_path / 'out'}' at this moment")
    other = start(0, "shards.build", *line, "--task=1/2", cwd=tmp_path)
    (tmp_path / "go").touch()
    finish_with(0, first)
    finish_with(0, other)
    run(0, "shards.build", *line, "--merge", cwd=tmp_path)
    assert open_shards(str(tmp_path / "out")).manifest.samples == 25


def test_tasks_that_begin_together_lock_the_plan_that_the_last_one_wrote(tmp_path, monkeypatch):
    """Another task replaces the plan file between its opening here and the lock."""
    plan, lock, replaced = tmp_path / build_lock.PLAN_FILE, build_lock._lock, []

    def late(file, out, shards):
        if not replaced:
            replaced.append(write_whole(plan, b"the same"))
        lock(file, out, shards)

    plan.write_bytes(b"the same")
    monkeypatch.setattr(build_lock, "_lock", late)
    with build_lock.building(tmp_path, range(2, 4)):
        command = f"from shards.build_lock import *\nwith building(Path({str(tmp_path)!r}), range(3, 5)): pass"
        done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "another command builds these shards" in done.stderr, done.stderr


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_kills_at_any_moment_end_in_the_same_bytes(whole, tmp_path, seed):
    """Real processes, killed with their workers, or every third time without them, until a build comes through."""
    moments, out, kills = random.Random(seed), tmp_path / "out", 0
    options = ["--workers=2"] if seed else []
    while kills < 12:
        process = start(0, "shards.build", *words(whole, out, *options))
        time.sleep(moments.uniform(0.2, 1.6 if seed else 0.9))
        if process.poll() is not None:
            break
        if kills % 3 == 2:
            process.kill()
        else:
            kill(process)
        process.communicate()
        kills += 1
        assert_nothing_half_written(out)
    process = start(0, "shards.build", *words(whole, out, *options))
    code, _, complaints = finish(process)
    assert code == 0 or "already holds shards" in complaints, complaints
    assert bytes_of(out) == bytes_of(whole / "out")


@pytest.mark.slow
def test_tasks_at_the_same_time_one_of_them_killed_make_the_bytes_of_one(whole, tmp_path):
    tasks = [start(0, "shards.build", *words(whole, tmp_path / "out", f"--task={task}/3")) for task in range(3)]
    wait_for(lambda: (tmp_path / "out" / PLAN_FILE).exists(), tasks[1])
    kill(tasks[1])
    assert [finish(task)[0] for task in tasks][::2] == [0, 0]
    run(0, "shards.build", *words(whole, tmp_path / "out", "--task=1/3"))
    run(0, "shards.build", *words(whole, tmp_path / "out", "--merge"))
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


def assert_nothing_half_written(out):
    """Every tar and index that has its name is as long as it will be."""
    for tar in out.glob("*.tar") if out.exists() else []:
        assert tar.read_bytes()[-1024:] == bytes(1024)
    for part in out.glob("*.part") if out.exists() else []:
        entry = json.loads(part.read_text())["entry"]
        assert part.with_suffix(".tar").stat().st_size == entry["bytes"]


class Killed(BaseException):
    """Stands for a SIGKILL at a given line: nothing catches it."""


@pytest.mark.parametrize("dedupe", ["false", "true"])
def test_a_kill_before_any_file_gets_its_name_ends_in_the_same_bytes(whole, tmp_path, monkeypatch, dedupe):
    """One after another, every moment between two files."""
    expected = tmp_path / "expected" / "out"
    built("class_folders", whole / "in", expected, **WORK, dedupe=dedupe)
    replace, renames, moment = os.replace, 0, 1

    def replaced(source, target):
        nonlocal renames
        renames += 1
        if renames == moment:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    out = tmp_path / "out"
    while True:
        renames = 0
        try:
            build.build("class_folders", str(whole / "in"), out, {**WORK, "dedupe": dedupe})
        except Killed:
            moment += 1
            if moment > 60:
                raise AssertionError("it never comes through") from None
            continue
        break
    assert moment > 3
    assert bytes_of(out) == bytes_of(expected)


def test_only_unfinished_shards_are_built_again(whole, tmp_path, monkeypatch):
    shutil.copytree(whole / "in", tmp_path / "in")
    for task in range(4):
        build.build("class_folders", str(tmp_path / "in"), tmp_path / "out", {**WORK, "task": f"{task}/4"})
    (tmp_path / "out" / "out-000003.part").unlink()
    (tmp_path / "out" / "out-000005.tar").write_bytes(b"short")
    (tmp_path / "out" / "out-000007.part").write_text('{"entry": 3')
    (tmp_path / "out" / ".out-000008.tar.4711").write_bytes(b"half")
    written = []
    real = workers.write_shard
    monkeypatch.setattr(workers, "write_shard", lambda name, *rest: (written.append(name), real(name, *rest))[1])
    built("class_folders", tmp_path / "in", tmp_path / "out", **WORK)
    assert written == [f"out-{number:06d}.tar" for number in (3, 5, 7)]
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


@pytest.mark.parametrize(("change", "message"), [
    ({"per_shard": "4"}, "options.per_shard 3, but it is 4 now"), ({"seed": "1"}, "seed 0, but it is 1 now"),
    ({"resize": "24"}, "options.resize 20, but it is 24 now"),
    ({"per_class": "2"}, "options.per_class None, but it is 2 now"),
])  # fmt: skip
def test_other_options_than_a_build_began_with_are_refused_by_name(whole, tmp_path, change, message):
    build.build("class_folders", str(whole / "in"), tmp_path / "out", {**WORK, "task": "0/3"})
    before = bytes_of(tmp_path / "out")
    with pytest.raises(UserError, match=f"^OUT: .*unfinished build with {message}"):
        build.build("class_folders", str(whole / "in"), tmp_path / "out", {**WORK, **change})
    assert bytes_of(tmp_path / "out") == before


def test_other_inputs_tools_or_sources_than_a_build_began_with_are_refused_by_name(whole, tmp_path, monkeypatch):
    shutil.copytree(whole / "in", tmp_path / "in")
    build.build("class_folders", str(tmp_path / "in"), tmp_path / "out", {**WORK, "task": "0/3"})
    with pytest.raises(UserError, match=r"unfinished build with source class_folders, but it is folder now"):
        build.build("folder", str(tmp_path / "in"), tmp_path / "out", WORK)
    (tmp_path / "in" / "cats" / "broken.png").rename(tmp_path / "in" / "cats" / "other.png")
    with pytest.raises(UserError, match=r"unfinished build with inputs\.digest "):
        build.build("class_folders", str(tmp_path / "in"), tmp_path / "out", WORK)
    (tmp_path / "in" / "cats" / "other.png").unlink()
    with pytest.raises(UserError, match=r"unfinished build with inputs\.count 26, but it is 25 now"):
        build.build("class_folders", str(tmp_path / "in"), tmp_path / "out", WORK)
    (tmp_path / "in" / "cats" / "broken.png").write_bytes(b"")
    tree = json.loads((tmp_path / "out" / PLAN_FILE).read_text())
    tree["tool"]["pillow"] = "9.0.0"
    (tmp_path / "out" / PLAN_FILE).write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"unfinished build with tool\.pillow 9\.0\.0, but it is"):
        build.build("class_folders", str(tmp_path / "in"), tmp_path / "out", WORK)


def test_a_build_killed_while_it_tidied_is_ended_by_the_same_command(whole, tmp_path):
    for task in range(3):
        build.build("class_folders", str(whole / "in"), tmp_path / "out", {**WORK, "task": f"{task}/3"})
    begun, part = (tmp_path / "out" / PLAN_FILE).read_bytes(), (tmp_path / "out" / "out-000004.part").read_bytes()
    built("class_folders", whole / "in", tmp_path / "out", **WORK)
    (tmp_path / "out" / PLAN_FILE).write_bytes(begun)
    (tmp_path / "out" / "out-000004.part").write_bytes(part)
    built("class_folders", whole / "in", tmp_path / "out", **WORK)
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")
    with pytest.raises(UserError, match="already holds shards"):
        built("class_folders", whole / "in", tmp_path / "out", **WORK)


def test_a_failed_build_leaves_nothing_that_a_later_one_trips_over(whole, tmp_path):
    with pytest.raises(UserError, match=r"^on_bad: .*broken"):
        built("class_folders", whole / "in", tmp_path / "out", **WORK, on_bad="fail")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^INPUT: none of 1 images"):
        built("folder", tmp_path / "empty", tmp_path / "out", **WORK)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejects.jsonl"]
    built("class_folders", whole / "in", tmp_path / "out", **WORK)
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


def test_a_worker_that_is_killed_ends_the_build_with_a_line(whole, tmp_path):
    process = start(0, "shards.build", *words(whole, tmp_path / "out", "--workers=2"))
    wait_for(lambda: list((tmp_path / "out").glob("*.part")) if (tmp_path / "out").exists() else [], process)
    for member in family(process)[1:]:
        with suppress(psutil.Error):  # it has ended meanwhile
            if "spawn_main" in " ".join(member.cmdline()):
                member.kill()
    code, _, complaints = finish(process)
    assert (code, "Traceback" in complaints) in ((1, False), (0, False)), complaints
    code, _, complaints = finish(start(0, "shards.build", *words(whole, tmp_path / "out")))
    assert code == 0 or "already holds" in complaints
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


def test_ctrl_c_ends_a_build_with_a_line_and_the_same_command_continues(whole, tmp_path):
    process = start(0, "shards.build", *words(whole, tmp_path / "out", "--workers=2"))
    wait_for(lambda: (tmp_path / "out" / PLAN_FILE).exists(), process)
    kill(process, signal.SIGINT)
    code, _, complaints = finish(process)
    if not (tmp_path / "out" / "manifest.json").exists():  # else it was done before the signal came
        assert (code, complaints) == (1, "interrupted; the same command continues\n")
        run(0, "shards.build", *words(whole, tmp_path / "out"))
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


# ---------------------------------------------------------------------------------------------- duplicates and classes


def test_duplicates_are_listed_and_left_out_of_the_index_alone(whole, tmp_path):
    plain = open_shards(str(whole / "out"))
    rows = [json.loads(line) for line in (whole / "out" / "duplicates.jsonl").read_text().splitlines()]
    assert len(rows) == 1
    pair = {rows[0]["key"], rows[0]["same_as"]}
    assert "dunes/again" in pair
    shards = built("class_folders", whole / "in", tmp_path / "out", **WORK, dedupe="true")
    assert sorted(keys_of(shards)) == sorted(set(keys_of(plain)) - {rows[0]["key"]})
    assert shards.manifest.samples == plain.manifest.samples - 1 == 24
    for path, other in zip(shards.paths(), plain.paths(), strict=True):
        assert path.read_bytes() == other.read_bytes()
    for number in range(len(shards.paths())):
        shards.index(number).check()
    keys = keys_of(plain)
    assert keys.index(rows[0]["same_as"]) < keys.index(rows[0]["key"])  # the first in the order stays


def test_so_many_of_each_class(whole, tmp_path):
    shards = built("class_folders", whole / "in", tmp_path / "out", per_class="2")
    index = shards.index(0)
    assert sorted(index["class"].tolist()) == [0, 0, 1, 1, 2, 2]
    again = built("class_folders", whole / "in", tmp_path / "again", per_class="2", per_shard="2")
    assert sorted(keys_of(again)) == sorted(keys_of(shards))
    other = built("class_folders", whole / "in", tmp_path / "other", per_class="2", seed="5")
    assert sorted(keys_of(other)) != sorted(keys_of(shards))
    with pytest.raises(UserError, match=r"^per_class: this source has no classes"):
        built("folder", whole / "in", tmp_path / "none", per_class="2")


@pytest.mark.parametrize(("options", "message"), [
    (["--task=4/4"], "task: '4/4' is not a share"), (["--task=1"], "task: '1' is not a share"), (["--task=0/0"], "task: "),
    (["--task=0/2", "--merge"], "merge: "), (["--workers=0"], "workers: "), (["--tile=0"], "tile: "),
    (["--keep", "--resize=8"], "keep: "), (["--quality=101"], "quality: "), (["--resize_mode=fit"], "resize_mode: "),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(photos, tmp_path, capsys, options, message):
    assert build.main(["folder", str(photos), str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()
