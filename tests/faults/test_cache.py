"""The cache of fetched shards deletes nothing that it did not write, and uses no folder that others can change."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path

import processes
import pytest
from processes import LONGEST, wait_for

from sr_dist import evaluate
from sr_dist.core import files
from sr_dist.core.errors import UserError
from sr_dist.core.files import locked
from sr_dist.data import data_checks
from sr_dist.data.format import ShardEntry, open_shards
from sr_dist.data.open_data import open_training_sets
from sr_dist.data.remote import sources
from sr_dist.data.remote.cache import Cache, cache_of

OTHER = 12345  # the number of another user


@pytest.fixture(autouse=True)
def fresh():
    sources._fetched.cache_clear()


@pytest.fixture
def is_root():
    if os.getuid():
        pytest.skip("only root can give files to another user")


def fetch_all(cache: Cache, folder: Path) -> list[ShardEntry]:
    entries = list(open_shards(str(folder)).manifest.shards)
    for entry in entries:
        cache.fetch(entry, f"pipe:cat {folder}/{entry.name}")
    return entries


def claimed(folder: str | None, limit: float) -> Cache:
    cache = cache_of(folder, limit)
    cache.claim()
    return cache


def gigabytes(folder: Path, shards: float) -> float:
    """A limit of so many shards."""
    return max(entry.bytes for entry in open_shards(str(folder)).manifest.shards) * shards / 1e9


def own_files(folder: Path) -> dict[Path, bytes]:
    """A user's files where a cache would have its shards."""
    (folder / "tars").mkdir(parents=True, exist_ok=True)
    for name in ("thesis.tar", f"{'a' * 64}.tar.gz", f"{'A' * 64}.tar", f"{'b' * 64}.part.txt"):
        (folder / "tars" / name).write_bytes(b"years of work" * 10_000)
    return {path: path.read_bytes() for path in (folder / "tars").iterdir()}


def assert_unchanged(files: dict[Path, bytes]) -> None:
    assert {path: path.read_bytes() for path in files if path.exists()} == files


def test_a_folder_with_the_users_files_is_no_cache(photo_shards, write_recipe, tmp_path):
    files = own_files(tmp_path / "mine")
    words = [f"--data.train=pipe:cat {photo_shards}/{{}}", f"--data.cache={tmp_path / 'mine'}", "--data.cache_gb=0.0004"]
    _, err = processes.run(0, "sr_dist.train", write_recipe(), "--steps=1", "--log.wandb=off", *words, expect=2)
    assert_unchanged(files)
    assert err.startswith("error: data.cache: ") and err.count("\n") == 1
    assert "'tars/" in err and "an empty folder" in err  # which file, and what to do
    assert list((tmp_path / "mine").iterdir()) == [tmp_path / "mine" / "tars"]


@pytest.mark.parametrize("name", ["notes.txt", "indexes/notes", "locks/notes", "tars/.hidden"])
def test_one_foreign_file_is_enough(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"^data\.cache: '.*' has other files, such as '{name}'; name an empty folder"):
        claimed(str(tmp_path), 1)


def test_files_that_come_later_are_neither_counted_nor_removed(photo_shards, tmp_path):
    """In a cache, too, only names that it makes are evicted."""
    cache = claimed(str(tmp_path / "cache"), gigabytes(photo_shards, 1.5))
    files = own_files(tmp_path / "cache")
    entries = fetch_all(cache, photo_shards)
    assert_unchanged(files)
    made = {path.name for path in (tmp_path / "cache" / "tars").iterdir()} - {path.name for path in files}
    assert made == {f"{entries[-1].sha256}.tar"}


def test_an_empty_folder_is_taken_and_marked(photo_shards, tmp_path):
    fetch_all(claimed(str(tmp_path), 1), photo_shards)
    assert {path.name for path in tmp_path.iterdir()} == {".sr_dist-cache", "tars", "locks", "indexes"}
    assert claimed(str(tmp_path), 1) == Cache(tmp_path, 10**9)
    (tmp_path / "later.txt").touch()  # the marker says whose folder it is
    assert claimed(str(tmp_path), 1)


def test_a_cache_of_an_older_version_is_taken_over(photo_shards, tmp_path):
    """It has no marker, but nothing else either."""
    old = Cache(tmp_path / "old", 10**9)
    old.folder.mkdir(mode=0o700)
    entries = fetch_all(old, photo_shards)
    sources._fetched(f"pipe:cat {photo_shards}/{{}}", "data.train", old)
    for name in (f"{'0' * 64}.part", ".nfs000123"):  # a process was killed; a shard was removed while it was read
        (old.folder / "tars" / name).touch()
    assert {path.name for path in old.folder.iterdir()} == {"tars", "locks", "indexes"}
    used = claimed(str(old.folder), 1)
    shutil.move(photo_shards / entries[0].name, tmp_path / "away")
    try:
        used.fetch(entries[0], "pipe:false")  # it is there already
    finally:
        shutil.move(tmp_path / "away", photo_shards / entries[0].name)
    assert (old.folder / ".sr_dist-cache").is_file()


def test_many_processes_may_begin_with_one_empty_folder(tmp_path):
    problems = []

    def claim() -> None:
        try:
            claimed(str(tmp_path / "cache"), 1)
        except UserError as problem:
            problems.append(problem)

    threads = [threading.Thread(target=claim) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_the_default_folder_is_refused_as_a_symbolic_link(photo_shards, tmp_path, monkeypatch, capsys):
    """Another user makes it before us, so that it names a folder of ours."""
    files = own_files(tmp_path / "victim")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    link = tmp_path / "tmp" / f"sr_dist-cache-{os.getuid()}"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "victim")
    if not os.getuid():
        os.lchown(link, OTHER, OTHER)
    assert evaluate.main(["bicubic", f"--data=pipe:cat {photo_shards}/{{}}", "--scale=2", "--metrics=psnr"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: data.cache: '{link}' is a symbolic link") and "TMPDIR" in err and err.count("\n") == 1
    with pytest.raises(UserError, match="is a symbolic link"):
        fetch_all(claimed(None, 0.0001), photo_shards)
    assert_unchanged(files)
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["tars"]


@pytest.mark.parametrize("name", ["tars", "locks", "indexes", ".sr_dist-cache"])
def test_no_part_of_a_cache_is_a_symbolic_link(tmp_path, name):
    (tmp_path / "target").mkdir()
    cache = tmp_path / "cache"
    claimed(str(cache), 1)
    (cache / name).unlink() if name.startswith(".") else (cache / name).rmdir()
    (cache / name).symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match=rf"^data\.cache: '.*{name}' is a symbolic link"):
        claimed(str(cache), 1)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_can_write_is_refused(tmp_path, mode):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(UserError, match=r"^data\.cache: other users can write to '.*open'; run: chmod go-w '.*open'$"):
        claimed(str(tmp_path / "open"), 1)
    (tmp_path / "open").chmod(mode & ~0o22)
    assert claimed(str(tmp_path / "open"), 1)


@pytest.mark.parametrize("part", ["", "tars"])
def test_a_folder_of_another_user_is_refused(tmp_path, is_root, part):
    cache = tmp_path / "cache"
    claimed(str(cache), 1)
    os.chown(cache / part, OTHER, OTHER)
    with pytest.raises(UserError, match=r"^data\.cache: '.*' belongs to another user; name a folder of your own"):
        claimed(str(cache), 1)


@pytest.mark.parametrize("marked", [True, False])
def test_a_folder_that_cannot_be_written_is_one_line(is_root, marked):
    """As a user who owns a folder on a disk that is read-only, or whose permissions are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cache"
        if marked:
            claimed(str(folder), 1)
        folder.mkdir(exist_ok=True)
        for path in (Path(name), folder, *folder.iterdir()):
            os.chown(path, OTHER, OTHER)
        folder.chmod(0o500)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setgroups([]), os.setgid(OTHER), os.setuid(OTHER)
                claimed(str(folder), 1)
            except UserError as problem:
                code = 0 if str(problem).startswith(f"data.cache: '{folder}' cannot be ") else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_new_cache_belongs_to_its_user_alone(tmp_path):
    before = os.umask(0)
    try:
        cache = claimed(str(tmp_path / "new"), 1)
        (tmp_path / "old" / "tars").mkdir(parents=True)  # as an earlier version made them, under this umask
        (tmp_path / "old").chmod(0o755)
        old = claimed(str(tmp_path / "old"), 1)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (cache.folder, cache.folder / "tars", old.folder / "tars")]
    assert modes == [0o700, 0o700, 0o700]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_noted_once_and_used(photo_shards, tmp_path, monkeypatch, capsys, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    files._note_no_locks.cache_clear()
    cache = claimed(str(tmp_path / "cache"), gigabytes(photo_shards, 1.5))
    entries = fetch_all(cache, photo_shards)
    notes = capsys.readouterr().out
    assert notes.count("without locks") == 1 == notes.count("several processes may fetch the same file")
    path = tmp_path / "cache" / "tars" / f"{entries[-1].sha256}.tar"
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == (photo_shards / entries[-1].name).read_bytes()


def test_without_locks_two_fetches_of_a_shard_do_not_write_one_file(photo_shards, tmp_path, monkeypatch):
    """The first is in the middle of the shard when the second begins and ends."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    cache = claimed(str(tmp_path / "cache"), 1)
    entry = open_shards(str(photo_shards)).manifest.shards[0]
    source, gate = photo_shards / entry.name, tmp_path / "gate"
    os.mkfifo(gate)
    slow = f"pipe:head -c 5000 {source}; cat {gate}; tail -c +5001 {source}"
    first = threading.Thread(target=cache.fetch, args=(entry, slow), daemon=True)
    held = os.open(gate, os.O_RDWR)  # `cat` reads until it is closed
    first.start()
    wait_for(lambda: any(path.read_bytes()[:5000].strip(b"\0") for path in (tmp_path / "cache").glob("tars/*")))
    cache.fetch(entry, f"pipe:cat {source}")
    path = tmp_path / "cache" / "tars" / f"{entry.sha256}.tar"
    assert path.read_bytes() == source.read_bytes()
    os.close(held)
    first.join(LONGEST)
    assert path.read_bytes() == source.read_bytes() and list(path.parent.iterdir()) == [path]


def test_without_locks_two_fetches_of_an_index_do_not_use_one_file(photo_shards, tmp_path, monkeypatch):
    """Between the write of one process and its check, another one does everything."""
    manifest, real, calls = open_shards(str(photo_shards)).manifest, sources.Index, []
    entry = manifest.shards[0]

    def other_process_first(path: Path, *more):
        if path.suffix == ".new" and not calls:
            calls.append(path)
            sources._fetch_index(source, tmp_path, entry, manifest)
        return real(path, *more)

    source = f"pipe:cat {photo_shards}/{{}}"
    monkeypatch.setattr(sources, "Index", other_process_first)
    sources._fetch_index(source, tmp_path, entry, manifest)
    assert calls and [path.suffix for path in tmp_path.iterdir()] == [".idx"]


def test_locked_still_excludes(tmp_path):
    """Where locks work, the second waits for the first."""
    order = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with locked(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path / "lock"):
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_cache_of_another_version_is_refused(tmp_path):
    """Its UserError is a ValueError too, as is the error of a marker that another process is still writing."""
    claimed(str(tmp_path), 1)
    (tmp_path / ".sr_dist-cache").write_text('{"format": 2, "sr_dist": "9.0.0"}')
    with pytest.raises(UserError, match=r"^data\.cache: '.*' has format 2, written by sr_dist 9\.0\.0; .*; name another folder$"):
        claimed(str(tmp_path), 1)
    (tmp_path / ".sr_dist-cache").write_text('{"form')
    assert claimed(str(tmp_path), 1)


def test_a_cache_from_which_nothing_is_fetched_is_not_made(write_recipe, tmp_path):
    recipe = data_checks.load(write_recipe(), {"data.cache": str(tmp_path / "cache"), "data.cache_gb": "1"})
    assert open_training_sets(recipe.data)
    assert not (tmp_path / "cache").exists()


def test_a_run_folder_that_is_removed_does_not_come_back_with_the_next_fetch(photo_shards, tmp_path):
    entry = open_shards(str(photo_shards)).manifest.shards[0]
    log = tmp_path / "run" / "fetched" / "node-000.jsonl"
    claimed(str(tmp_path / "cache"), 1).fetch(entry, f"pipe:cat {photo_shards}/{entry.name}", log)
    assert not (tmp_path / "run").exists()


def test_old_indexes_are_removed_with_the_shards_that_are_as_old(photo_shards, tmp_path):
    """There is room for one and a half shards. Indexes that were used after the last of these stay."""
    cache = claimed(str(tmp_path / "cache"), gigabytes(photo_shards, 1.5))
    old, new = (cache.folder / "indexes" / (letter * 32) for letter in "ab")
    for folder in (old, new):
        folder.mkdir()
        (folder / "photos-000000.idx").write_bytes(bytes(100))
    os.utime(old, (0, 0))
    os.utime(new, (time.time() + 60,) * 2)
    (cache.folder / "indexes" / "notes").mkdir()
    fetch_all(cache, photo_shards)
    assert not old.exists() and new.exists() and (cache.folder / "indexes" / "notes").exists()


def test_indexes_that_were_removed_are_fetched_again(photo_shards, tmp_path):
    cache = claimed(str(tmp_path / "cache"), 1)
    shards = sources.open_shards(f"pipe:cat {photo_shards}/{{}}", "data.train", cache)
    shutil.rmtree(shards.folder)
    assert len(shards.index(2)) == 8
    sources._fetched.cache_clear()
    assert sources.open_shards(f"pipe:cat {photo_shards}/{{}}", "data.train", cache).manifest == shards.manifest
