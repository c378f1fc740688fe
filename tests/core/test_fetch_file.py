"""Files from a real server with faults: cut connections, changed files, wrong digests, refusals, killed processes."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from processes import LONGEST, environment, wait_for
from servers import serving

from sr_dist.core import fetch_file
from sr_dist.core.fetch_file import FetchError, Wanted, WrongFile, fetch

DATA = random.Random(1).randbytes(3_000_000)
NEW = random.Random(2).randbytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "net.pth").write_bytes(DATA)
    with serving(tmp_path / "server") as server:
        yield server


@pytest.fixture
def wanted(store):
    return Wanted(f"{store.url}/net.pth", len(DATA), SHA256)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "weights" / "net.pth"


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds between tries, which are recorded and not waited for."""
    seconds: list[float] = []
    monkeypatch.setattr(fetch_file, "sleep", seconds.append)
    return seconds


def names(target):
    return sorted(path.name for path in target.parent.iterdir())


def cut_for_good(store, wanted, target):
    """Leaves half of the file: the connection is cut, then the server fails until we give up."""
    store.faults["net.pth"] = ["drop", *["500"] * fetch_file.TRIES]
    with pytest.raises(FetchError, match=r"the server answers 500 .*; 1500000 bytes are kept, and the same command continues"):
        fetch(wanted, target)
    assert names(target) == [".net.pth.part", ".net.pth.part.json"]


def test_a_file_is_fetched_checked_and_renamed(wanted, target):
    assert fetch(wanted, target) == SHA256
    assert target.read_bytes() == DATA and names(target) == ["net.pth"]


@pytest.mark.parametrize("known", [{"sha256": SHA256[:8]}, {"sha256": "", "md5": hashlib.md5(DATA).hexdigest()}])
def test_short_digests_and_md5_are_enough(wanted, target, known):
    assert fetch(replace(wanted, **known), target) == SHA256


def test_a_cut_connection_continues_where_it_ended(store, wanted, target, waits):
    store.faults["net.pth"] = ["drop", "drop"]
    assert fetch(wanted, target) == SHA256
    assert store.sent["net.pth"] == len(DATA) and store.requests["net.pth"] == 3  # 1/2, 1/4 and 1/4 of the file
    assert waits == [1.0, 1.0]  # every try brought new bytes


def test_another_process_continues_too(store, wanted, target):
    cut_for_good(store, wanted, target)
    fetch(wanted, target)
    assert target.read_bytes() == DATA and store.sent["net.pth"] == len(DATA) and names(target) == ["net.pth"]


def test_a_killed_process_leaves_a_part_that_is_continued(store, wanted, target):
    store.faults["net.pth"] = ["stall"]
    code = "from pathlib import Path; from sr_dist.core.fetch_file import *; "
    code += f"fetch(Wanted({wanted.address!r}), Path({str(target)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment())
    part = target.with_name(".net.pth.part")
    wait_for(lambda: part.exists() and part.stat().st_size == len(DATA) // 2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not target.exists()
    assert fetch(wanted, target) == SHA256
    assert store.sent["net.pth"] == len(DATA)


def test_a_part_of_a_file_that_has_changed_is_not_continued(store, wanted, target, capsys):
    cut_for_good(store, wanted, target)
    (store.folder / "net.pth").write_bytes(NEW)
    assert fetch(replace(wanted, sha256=hashlib.sha256(NEW).hexdigest()), target)
    assert target.read_bytes() == NEW
    assert "is another file on the server than the part that was fetched" in capsys.readouterr().out


@pytest.mark.parametrize("known", [True, False])
def test_a_server_without_ranges_or_etags_sends_all_of_it_again(store, wanted, target, known):
    store.plain = True
    store.faults["net.pth"] = ["drop"]
    assert fetch(wanted if known else Wanted(wanted.address), target) == SHA256
    assert store.sent["net.pth"] == len(DATA) * 3 // 2


def test_a_change_that_the_server_hides_is_noticed_by_the_digest(store, wanted, target, monkeypatch):
    monkeypatch.setattr(
        fetch_file, "_version", lambda address, answer, begin: fetch_file.Version(address, len(DATA), "same", None)
    )
    cut_for_good(store, wanted, target)
    (store.folder / "net.pth").write_bytes(NEW)
    digest = hashlib.sha256(NEW).hexdigest()
    assert fetch(replace(wanted, sha256=digest), target) == digest
    assert target.read_bytes() == NEW


def test_a_complete_part_is_not_fetched_again(store, wanted, target):
    cut_for_good(store, wanted, target)
    target.with_name(".net.pth.part").write_bytes(DATA)
    assert fetch(wanted, target) == SHA256
    assert store.sent["net.pth"] == len(DATA) // 2


@pytest.mark.parametrize("fault", ["flip", "cut", "longer"])
def test_another_file_is_refused_and_nothing_of_it_is_kept(store, wanted, target, fault):
    store.faults["net.pth"] = [fault]
    with pytest.raises(WrongFile, match=rf"is not the published file: its sha256 begins \w+, not {SHA256[:8]}; nothing is kept"):
        fetch(wanted, target)
    assert names(target) == []
    assert fetch(wanted, target) == SHA256


def test_a_size_counts_where_no_digest_is_published(store, wanted, target):
    with pytest.raises(WrongFile, match=r"has 3000000 bytes, not 3000001"):
        fetch(Wanted(wanted.address, len(DATA) + 1), target)
    assert names(target) == []


def test_a_file_without_a_digest_is_recorded_and_compared_at_every_later_fetch(store, wanted, target):
    unknown = Wanted(wanted.address)
    assert fetch(unknown, target) == SHA256
    assert json.loads((target.parent / "net.pth.json").read_text())["sha256"] == SHA256
    target.unlink()
    fetch(unknown, target)  # the same file again
    target.unlink()
    (store.folder / "net.pth").write_bytes(NEW)
    with pytest.raises(WrongFile, match=r"is not the file of the first fetch; .* delete '.*net\.pth\.json' to accept"):
        fetch(unknown, target)
    assert names(target) == ["net.pth.json"]
    (target.parent / "net.pth.json").unlink()
    assert fetch(unknown, target) == hashlib.sha256(NEW).hexdigest()


@pytest.mark.parametrize(("fault", "text"), [("404", "the server answers 404"), ("403", "the server answers 403")])
def test_a_refusal_is_not_tried_again(store, wanted, target, fault, text, waits):
    store.faults["net.pth"] = [fault]
    with pytest.raises(FetchError, match=f"'net.pth' could not be fetched from {wanted.address}: {text}"):
        fetch(wanted, target)
    assert store.requests["net.pth"] == 1 and waits == [] and names(target) == []


def test_a_server_that_fails_is_tried_a_few_times(store, wanted, target, waits):
    store.faults["net.pth"] = ["500"] * 9
    with pytest.raises(FetchError, match="5 tries without a new byte"):
        fetch(wanted, target)
    assert waits == [1, 2, 4, 8] and names(target) == []


def test_no_network_is_one_line(target, waits):
    with pytest.raises(FetchError, match=r"no connection \(.*refused.*\); 5 tries"):
        fetch(Wanted("http://127.0.0.1:9/net.pth"), target)
    assert names(target) == []


def test_a_web_page_in_place_of_the_file_is_named(store, wanted, target):
    """File hosts answer so when they want a confirmation, or when a quota is reached."""
    store.faults["net.pth"] = ["page"]
    with pytest.raises(FetchError, match=rf"a web page instead of the file.* put it at '{target}'"):
        fetch(wanted, target)
    assert names(target) == []


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_fetched(store, wanted, target, monkeypatch):
    monkeypatch.setattr(fetch_file.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(FetchError, match=r"'net\.pth' needs 3 MB more, but 1 MB are free"):
        fetch(wanted, target)
    assert names(target) == []


def test_a_full_disk_keeps_what_has_arrived(store, wanted, target):
    """A limit on the size of files stands for a full disk: the write is refused in mid-file."""
    code = f"""if True:
    import resource, signal, errno, builtins
    from pathlib import Path
    from sr_dist.core import fetch_file
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    fetch_file.errno.ENOSPC = errno.EFBIG  # the limit's number
    fetch_file.fetch(fetch_file.Wanted({wanted.address!r}), Path({str(target)!r}))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert "the disk is full" in done.stderr and "are kept, and the same command continues" in done.stderr
    assert not target.exists()
    assert fetch(wanted, target) == SHA256  # whatever the disk took is a true part
    assert target.read_bytes() == DATA


def test_processes_that_arrive_together_fetch_once(store, wanted, target):
    store.faults["net.pth"] = ["wait"]
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(wanted, target)), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: store.requests["net.pth"] == 1)
    time.sleep(0.1)
    store.released.set()
    for thread in threads:
        thread.join(LONGEST)
    assert results == [SHA256] * 3 and store.requests["net.pth"] == 1 and names(target) == ["net.pth"]


def test_a_process_that_waited_for_a_failure_fetches_itself(store, wanted, target):
    """The first one removes its part, which carries the lock; the second must not go on with a lock on nothing."""
    store.faults["net.pth"] = ["wait", "wait"]
    failures, results = [], []

    def first():
        try:
            fetch(replace(wanted, sha256="0" * 64), target)
        except WrongFile as problem:
            failures.append(problem)

    one = threading.Thread(target=first, daemon=True)
    one.start()
    wait_for(lambda: store.requests["net.pth"] == 1)
    others = [threading.Thread(target=lambda: results.append(fetch(wanted, target)), daemon=True) for _ in range(2)]
    for thread in others:
        thread.start()
    time.sleep(0.1)
    store.released.set()
    for thread in (one, *others):
        thread.join(LONGEST)
    assert len(failures) == 1 and results == [SHA256] * 2
    assert store.requests["net.pth"] == 2 and names(target) == ["net.pth"]


def test_records_and_messages_have_no_token_of_a_signed_address(store, target):
    store.query = "token=secret"
    fetch(Wanted(f"{store.url}/net.pth?token=secret"), target)
    assert "token=***" in fetch_file.record_file(target).read_text()
    target.unlink()
    for fault in ("404", "page", "cut"):
        store.faults["net.pth"] = [fault]
        with pytest.raises(FetchError, match=r"token=\*\*\*") as failure:
            fetch(Wanted(f"{store.url}/net.pth?token=secret", len(DATA)), target)
        assert "secret" not in str(failure.value)


def test_mirrors_that_differ_end_after_a_few_tries(store, wanted, target, monkeypatch):
    """Every answer breaks off, and the next mirror has another file under the same address."""
    monkeypatch.setattr(fetch_file, "sleep", lambda _: (store.folder / "net.pth").write_bytes(random.randbytes(3_000_000)))
    store.faults["net.pth"] = ["drop"] * 40
    with pytest.raises(FetchError, match=f"was another file at each of {fetch_file.TRIES} requests"):
        fetch(wanted, target)
    assert store.requests["net.pth"] < 20
