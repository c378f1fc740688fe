"""Shards that are fetched: from a real server that breaks off, lies and refuses, by real processes that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import environment
from servers import serving

from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256
from sr_dist.data.format import ShardEntry, ShardError
from sr_dist.data.remote import cache as cache_module
from sr_dist.data.remote import sources
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import RemoteShards, open_shards

NAMES = [f"photos-{number:06d}.tar" for number in range(3)]


@pytest.fixture
def store(photo_shards):
    with serving(photo_shards) as server:
        yield server


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    """Retries without the pauses between them; the waiting itself is seen in `waits`."""
    waits: list[float] = []
    monkeypatch.setattr(cache_module, "sleep", waits.append)
    sources._fetched.cache_clear()
    return waits


@pytest.fixture
def cached(store, tmp_path):
    """Shards at the server, with a cache of their own: `cached(shards_that_fit)`."""

    def opened(fit: float = 10) -> RemoteShards:
        size = max(path.stat().st_size for path in store.folder.glob("*.tar"))
        found = open_shards(store.url, "data.train", Cache(tmp_path / "cache", int(size * fit)))
        assert isinstance(found, RemoteShards)
        return found

    return opened


def tars(folder: Path) -> list[Path]:
    return sorted((folder / "tars").iterdir())


def content(shards, number: int) -> bytes:
    descriptor = shards.open(number)
    try:
        return os.pread(descriptor, 10**9, 0)
    finally:
        os.close(descriptor)


def test_a_shard_is_fetched_once_and_is_the_servers(cached, store):
    shards = cached()
    for _ in range(3):
        assert content(shards, 1) == (store.folder / NAMES[1]).read_bytes()
    assert store.asked[NAMES[1]] == 1
    assert store.asked[NAMES[0]] == 0
    assert [path.suffix for path in tars(shards.cache.folder)] == [".tar"]


def test_manifest_and_indexes_are_those_of_the_folder(cached, photo_shards, store):
    here, there = open_shards(str(photo_shards)), cached()
    assert there.manifest.digest == here.manifest.digest
    for number in range(3):
        assert there.index(number)["key"].tolist() == here.index(number)["key"].tolist()
    sources._fetched.cache_clear()
    cached()
    assert store.asked["manifest.json"] == 2  # it may have changed
    assert store.asked["photos-000000.idx"] == 1  # it belongs to that manifest


@pytest.mark.parametrize("fault", ["drop", "cut", "longer", "flip"])
def test_a_shard_that_arrives_damaged_is_asked_for_again(cached, store, fault, in_a_hurry):
    shards = cached()
    store.faults[NAMES[0]] = [fault, fault]
    assert content(shards, 0) == (store.folder / NAMES[0]).read_bytes()
    assert store.asked[NAMES[0]] == 3
    first, second = in_a_hurry
    assert 0.75 <= first <= 1.25
    assert 1.5 <= second <= 2.5  # twice as long


def test_a_server_that_is_busy_for_a_while_is_waited_for(cached, store, in_a_hurry):
    """By our tries alone: curl would ask thirty times more in each of them. After a refusal it is asked for the reason."""
    shards = cached()
    store.faults[NAMES[0]] = ["500", "500", "500"]
    assert content(shards, 0) == (store.folder / NAMES[0]).read_bytes()
    assert len(in_a_hurry) == 2
    assert store.asked[NAMES[0]] == 5


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("drop", "the connection broke off"),
        ("cut", "bytes came where the manifest says"),
        ("longer", "more than the .* bytes came that the manifest says"),
        ("flip", "does not have the sha256"),
    ],
)
def test_a_shard_that_never_arrives_whole_is_named_with_the_reason(cached, store, fault, why):
    shards = cached()
    store.faults[NAMES[2]] = [fault] * 100
    with pytest.raises(ShardError, match=rf"^the shard '{store.url}/{NAMES[2]}' could not be fetched in 7 tries: .*{why}"):
        shards.open(2)
    assert store.asked[NAMES[2]] == cache_module.TRIES
    assert tars(shards.cache.folder) == []  # nothing half is left


@pytest.mark.parametrize(("fault", "why"), [("404", "404"), ("403", "403")])
def test_what_a_server_refuses_for_good_is_not_asked_for_again(cached, store, fault, why, in_a_hurry):
    shards = cached()
    store.faults[NAMES[2]] = [fault] * 100
    with pytest.raises(ShardError, match=rf"^the shard '{store.url}/{NAMES[2]}' could not be fetched: the server answers {why}"):
        shards.open(2)
    assert in_a_hurry == []  # nobody waited
    assert tars(shards.cache.folder) == []


@pytest.mark.parametrize("place", ["tars", "../store/tars/"])
def test_tars_in_another_folder_of_the_server_are_found(photo_shards, tmp_path, place):
    """As `shards.index OUT TARS` writes it, when both folders are served."""
    folder = tmp_path / "store"
    shutil.copytree(photo_shards, folder)
    (folder / "tars").mkdir()
    for tar in folder.glob("*.tar"):
        tar.rename(folder / "tars" / tar.name)
    tree = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**tree, "tars": place}))
    commands = [f"pipe:cd {folder}; cat {{}}"]
    if ".." not in place:
        with serving(folder) as server:
            assert content(open_shards(server.url, "data.train", Cache(tmp_path / "cache", 10**9)), 1)
    for source in commands:
        shards = open_shards(source, "data.train", Cache(tmp_path / "other", 10**9))
        assert content(shards, 1) == (folder / "tars" / NAMES[1]).read_bytes()


@pytest.mark.parametrize("place", ["a;touch x", "$(touch x)", "/etc", "a b", "-rf", "..//"])
def test_no_folder_of_a_manifest_reaches_a_shell(photo_shards, tmp_path, place):
    tree = json.loads((photo_shards / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**tree, "tars": place}))
    with pytest.raises(ShardError, match="cannot be part of an address"):
        open_shards(f"pipe:cd {tmp_path}; cat {{}}", "data.train", Cache(tmp_path / "cache", 10**9))
    assert not (tmp_path / "x").exists()


def test_a_server_that_says_nothing_is_reported_and_later_given_up(cached, store, monkeypatch, caplog):
    shards = cached()
    monkeypatch.setattr(cache_module, "SILENCE", 0.1)
    monkeypatch.setattr(cache_module, "PATIENCE", 0.3)
    store.faults[NAMES[0]] = ["wait"]
    assert content(shards, 0) == (store.folder / NAMES[0]).read_bytes()
    assert store.asked[NAMES[0]] == 2
    said = [record.message for record in caplog.records]
    assert said[0].startswith(f"still waiting for '{store.url}/{NAMES[0]}': nothing came for ")
    assert "nothing came for" in said[1]
    assert "try 2 of 7" in said[1]
    assert len(said) == 2


def test_what_was_not_used_for_the_longest_time_makes_room(cached):
    shards = cached(2.5)
    for number in (0, 1, 0):  # 1 is older than 0 now
        content(shards, number)
    content(shards, 2)
    kept = {path.stem for path in tars(shards.cache.folder)}
    assert kept == {shards.manifest.shards[number].sha256 for number in (0, 2)}


def test_the_limit_holds_and_an_open_shard_survives_its_removal(cached, store):
    shards = cached(1.2)
    descriptor = shards.open(0)
    for number in (1, 2, 0, 2):
        content(shards, number)
        assert sum(path.stat().st_size for path in tars(shards.cache.folder)) <= shards.cache.limit
    assert os.pread(descriptor, 10**9, 0) == (store.folder / NAMES[0]).read_bytes()
    os.close(descriptor)


def test_a_limit_below_one_shard_is_refused(cached):
    with pytest.raises(UserError, match=r"^data\.cache_gb: .* is less than the largest shard"):
        cached(0.5)


def test_a_file_of_the_wrong_size_is_thrown_away(cached, store):
    shards = cached()
    content(shards, 0)
    (whole,) = tars(shards.cache.folder)
    whole.write_bytes(whole.read_bytes()[:-1])
    assert content(shards, 0) == (store.folder / NAMES[0]).read_bytes()


def test_every_try_is_written_down(cached, store, tmp_path):
    import json
    from dataclasses import replace

    shards = replace(cached(), ledger=tmp_path / "fetched" / "node-000.jsonl")
    store.faults[NAMES[0]] = ["cut"]
    content(shards, 0)
    size = shards.manifest.shards[0].bytes
    rows = [json.loads(line) for line in shards.ledger.read_text().splitlines()]
    assert [(row["shard"], row["bytes"]) for row in rows] == [(NAMES[0], size // 2), (NAMES[0], size)]
    assert "where the manifest says" in rows[0]["problem"]
    assert rows[1]["problem"] is None


# ------------------------------------------------------------------------------------------------------- processes

FETCH = """
import sys
from pathlib import Path
from sr_dist.data.remote.cache import Cache
from sr_dist.data.format import ShardEntry
url, folder, size, digest = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
Cache(Path(folder), 10**9).fetch(ShardEntry(name="x.tar", bytes=int(size), samples=1, sha256=digest), url)
"""


def fetching(store, folder: Path, name: str = NAMES[0]) -> subprocess.Popen:
    path = store.folder / name
    words = [f"{store.url}/{name}", str(folder), str(path.stat().st_size), sha256(path)]
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, *words], env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_one_of_several_processes_fetches_and_the_others_wait_for_it(store, tmp_path):
    processes = [fetching(store, tmp_path) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert store.asked[NAMES[0]] == 1
    assert (tmp_path / "tars" / f"{sha256(store.folder / NAMES[0])}.tar").read_bytes() == (store.folder / NAMES[0]).read_bytes()


def test_a_process_killed_while_it_fetches_holds_nobody_up_and_leaves_no_half(store, tmp_path):
    store.faults[NAMES[0]] = ["wait"]
    first = fetching(store, tmp_path)
    first.stdin.write("\n")
    first.stdin.flush()
    deadline = time.monotonic() + 60
    while store.asked[NAMES[0]] < 1:
        assert time.monotonic() < deadline
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (part,) = tars(tmp_path)
    assert part.suffix == ".part"
    path = store.folder / NAMES[1]
    entry = ShardEntry(name=NAMES[1], bytes=path.stat().st_size, samples=1, sha256=sha256(path))
    Cache(tmp_path, entry.bytes + 100).fetch(entry, f"{store.url}/{NAMES[1]}")
    assert [found.name for found in tars(tmp_path)] == [f"{entry.sha256}.tar"]  # the dead one's half made room


# ---------------------------------------------------------------------------------------------- where shards may be


def test_a_command_prints_the_files(photo_shards, tmp_path):
    shards = open_shards(f"pipe:cat {photo_shards}/{{}}", "data.train", Cache(tmp_path, 10**9))
    assert content(shards, 1) == (photo_shards / NAMES[1]).read_bytes()


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"^data\.train: the manifest 'pipe:cat /nowhere/manifest\.json 2>&-' .* ended with 1$"):
        open_shards("pipe:cat /nowhere/{} 2>&-", "data.train", Cache(tmp_path, 10**9))


def test_a_command_without_a_place_for_the_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^data\.train: 'pipe:cat x' has no \{\}"):
        open_shards("pipe:cat x", "data.train", Cache(tmp_path, 10**9))


def test_s3_is_asked_by_its_own_program(photo_shards, tmp_path, monkeypatch):
    """A stand-in for the AWS command line, which must get the address in one piece."""
    program = tmp_path / "bin" / "aws"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$1 $2 $3 $5" = "s3 cp --only-show-errors -" ] || exit 9\n'
        f'exec cat "{photo_shards}/${{4#s3://bucket/some folder/}}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    shards = open_shards("s3://bucket/some folder", "data.train", Cache(tmp_path / "cache", 10**9))
    assert content(shards, 2) == (photo_shards / NAMES[2]).read_bytes()


def test_braces_choose_shards_at_a_url(store, tmp_path):
    shards = open_shards(f"{store.url}/photos-{{000000..000001}}.tar", "data.train", Cache(tmp_path, 10**9))
    assert [entry.name for entry in shards.manifest.shards] == NAMES[:2]
    assert content(shards, 1) == (store.folder / NAMES[1]).read_bytes()
    with pytest.raises(ShardError, match=r"has no shard 'photos-000009\.tar'; did you mean"):
        open_shards(f"{store.url}/photos-{{000001,000009}}.tar", "data.train", Cache(tmp_path, 10**9))


def test_a_missing_manifest_and_a_damaged_index_are_said_by_their_address(photo_shards, tmp_path):
    folder = shutil.copytree(photo_shards, tmp_path / "damaged")
    with serving(folder) as server:
        where = rf"^data\.train: the manifest '{server.url}/no/manifest\.json'"
        with pytest.raises(ShardError, match=f"{where} could not be fetched: the server answers 404"):
            open_shards(f"{server.url}/no", "data.train", Cache(tmp_path / "cache", 10**9))
        index = folder / "photos-000001.idx"
        index.write_bytes(index.read_bytes()[:-1])
        with pytest.raises(ShardError, match=rf"^data\.train: the index '{server.url}/photos-000001\.idx'.*cut short"):
            open_shards(server.url, "data.train", Cache(tmp_path / "cache", 10**9))


def test_what_a_server_gives_for_a_manifest_is_said_by_its_address(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "manifest.json").write_text("<html>please log in</html>")
    with serving(tmp_path / "served") as server:
        said = rf"^data\.train: '{server.url}/manifest\.json' is no manifest: .*cannot be read: Expecting value"
        with pytest.raises(ShardError, match=said):
            open_shards(server.url, "data.train", Cache(tmp_path / "cache", 10**9))


def test_an_address_of_an_unknown_kind_is_no_folder(tmp_path):
    with pytest.raises(
        UserError, match=r"^data\.train: 'htp://host/a' looks like an address, .*http://, https://, s3://.* and pipe:$"
    ):
        open_shards("htp://host/a", "data.train", Cache(tmp_path, 10**9))


@settings(max_examples=20)
@given(st.sampled_from(["$(touch x).tar", "a b.tar", "-rf.tar", "a;b.tar", "a'b.tar", "ä.tar", '"a".tar', "a\n.tar"]))
def test_no_name_of_a_manifest_reaches_a_shell(tmp_path, name):
    manifest = '{"format": 1, "samples": 1, "min_side": 9, "order": {"seed": 0}, "shards": [%s]}'
    entry = json.dumps({"name": name, "bytes": 1, "samples": 1, "sha256": "0" * 64})
    (tmp_path / "manifest.json").write_text(manifest % entry)
    sources._fetched.cache_clear()
    with pytest.raises(ShardError, match="is none that can be fetched"):
        open_shards(f"pipe:cd {tmp_path}; cat {{}}", "data.train", Cache(tmp_path / "cache", 10**9))
    assert not (tmp_path / "x").exists()


def test_passwords_in_addresses_are_not_shown():
    assert cache_module.shown("https://me:secret@host/a") == "https://host/a"
    assert cache_module.shown("https://host/a@b") == "https://host/a@b"
