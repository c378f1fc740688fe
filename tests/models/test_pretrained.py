from __future__ import annotations

import hashlib
import threading
import time

import pytest
from servers import serving

from sr_dist.core import catalogue, fetch_file
from sr_dist.core.catalogue import PublishedFile
from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256
from sr_dist.models import verified
from sr_dist.models.pretrained import MissingWeights, find

DATA = b"weights" * 100_000  # more than a file's buffer
NAME = f"vgg-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"
KEY = "objective.content.vgg"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(the named folder, torch's own), both empty."""
    named, hub = tmp_path / "named", tmp_path / "torch" / "hub" / "checkpoints"
    named.mkdir()
    hub.mkdir(parents=True)
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(named))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TORCH_HUB", raising=False)
    monkeypatch.setattr("torch.hub._hub_dir", None)
    return named, hub


def test_the_named_folder_comes_before_the_hub_cache(places):
    named, hub = places
    (hub / NAME).write_bytes(DATA)
    assert find(NAME, KEY) == hub / NAME
    (named / NAME).write_bytes(DATA)
    assert find(NAME, KEY) == named / NAME


@pytest.mark.parametrize("damaged", [DATA[:-1], b"", b"X" + DATA[1:]])
def test_a_damaged_file_is_refused_by_name(places, damaged):
    (places[0] / NAME).write_bytes(damaged)
    with pytest.raises(UserError) as caught:
        find(NAME, KEY)
    digest = hashlib.sha256(damaged).hexdigest()[:8]
    assert str(caught.value).startswith(f"{KEY}: '{places[0] / NAME}' is damaged or another file")
    assert digest in str(caught.value)
    assert not isinstance(caught.value, MissingWeights)


def test_a_process_reads_a_file_once_for_its_sha256_unless_it_changes(places, monkeypatch):
    """VGG19 has 550 MB, and every column of LPIPS and FID asks for its file."""
    read = []
    monkeypatch.setattr(verified, "sha256", lambda path: read.append(path) or sha256(path))
    (places[0] / NAME).write_bytes(DATA)
    assert [find(NAME, KEY) for _ in range(3)] == [places[0] / NAME] * 3
    assert len(read) == 1
    (places[0] / NAME).write_bytes(DATA[:-1])
    with pytest.raises(UserError, match="is damaged or another file"):
        find(NAME, KEY)


def test_a_name_without_a_checksum_is_not_verified(places):
    (places[0] / "own.pth").write_bytes(b"anything")
    assert find("own.pth", KEY) == places[0] / "own.pth"


def test_the_error_about_missing_weights_names_the_path_and_the_option(places):
    with pytest.raises(MissingWeights) as caught:
        find(NAME, KEY)
    message = str(caught.value)
    assert message.startswith(f"{KEY}: the weights file '{NAME}' is missing")
    assert f"'{places[0] / NAME}'" in message
    assert "allow_download" in message


def test_the_error_about_weights_of_the_catalogue_names_the_command(places):
    with pytest.raises(
        MissingWeights, match=r"is missing; python -m sr_dist\.fetch vgg19 fetches it, or put it at '.*/vgg19-dcbb"
    ):
        find("vgg19-dcbb9e9d.pth", KEY)


def test_without_a_named_folder_the_hub_cache_is_used(places, monkeypatch):
    monkeypatch.delenv("SR_DIST_WEIGHTS")
    with pytest.raises(MissingWeights, match=str(places[1] / NAME)):
        find(NAME, KEY)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A server that has the file, which the catalogue names."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / NAME).write_bytes(DATA)
    monkeypatch.setattr(fetch_file, "sleep", lambda seconds: None)
    with serving(tmp_path / "server") as server:
        file = PublishedFile(address=f"{server.url}/{NAME}", sha256=NAME[4:12])
        monkeypatch.setattr(catalogue, "weights_file", lambda name: file if name == NAME else None)
        yield server


def test_nothing_is_downloaded_unless_it_is_allowed(places, store):
    with pytest.raises(MissingWeights):
        find(NAME, KEY)
    assert not store.requests
    assert find(NAME, KEY, download=True).read_bytes() == DATA
    assert find(NAME, KEY, download=True).read_bytes() == DATA  # the second time it exists
    assert store.requests[NAME] == 1
    assert [p.name for p in places[0].iterdir()] == [NAME]


def test_a_download_that_is_cut_short_does_not_appear_and_is_continued(places, store):
    store.faults[NAME] = ["drop", "404"]
    with pytest.raises(MissingWeights, match=r"^objective\.content\.vgg: .*the same command continues; or put it at"):
        find(NAME, KEY, download=True)
    assert not (places[0] / NAME).exists()
    assert find(NAME, KEY, download=True).read_bytes() == DATA
    assert store.sent[NAME] == len(DATA)


def test_another_file_is_refused(places, store):
    store.faults[NAME] = ["cut"]
    with pytest.raises(UserError, match=r"^objective\.content\.vgg: .*is not the published file") as caught:
        find(NAME, KEY, download=True)
    assert not isinstance(caught.value, MissingWeights)
    assert list(places[0].iterdir()) == []


def test_a_failed_download_names_the_path_for_the_file(places, store):
    store.faults[NAME] = ["404"]
    with pytest.raises(MissingWeights, match=str(places[0] / NAME)):
        find(NAME, KEY, download=True)
    assert list(places[0].iterdir()) == []


def test_ranks_that_arrive_during_a_download_wait_for_it(places, store):
    """The ranks of a node start together: one downloads, the others wait and do not damage the file."""
    store.faults[NAME] = ["wait"]
    results = []
    ranks = [threading.Thread(target=lambda: results.append(find(NAME, KEY, download=True)), daemon=True) for _ in range(2)]
    for rank in ranks:
        rank.start()
    time.sleep(0.2)
    store.released.set()
    for rank in ranks:
        rank.join(timeout=600)
    assert results == [places[0] / NAME] * 2 and results[0].read_bytes() == DATA
    assert store.requests[NAME] == 1
