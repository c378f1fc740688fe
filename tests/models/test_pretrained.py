from __future__ import annotations

import hashlib
import io
import threading
import time

import pytest

from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256
from sr_dist.models import pretrained, verified
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


def test_without_a_named_folder_the_hub_cache_is_used(places, monkeypatch):
    monkeypatch.delenv("SR_DIST_WEIGHTS")
    with pytest.raises(MissingWeights, match=str(places[1] / NAME)):
        find(NAME, KEY)


def test_nothing_is_downloaded_unless_it_is_allowed(places, monkeypatch):
    requested = []
    monkeypatch.setitem(pretrained.ADDRESSES, NAME, "https://nowhere.invalid/x")
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: requested.append(args) or io.BytesIO(DATA))
    with pytest.raises(MissingWeights):
        find(NAME, KEY)
    assert requested == []
    assert find(NAME, KEY, download=True).read_bytes() == DATA
    assert find(NAME, KEY, download=True).read_bytes() == DATA  # the second time it exists
    assert len(requested) == 1
    assert [p.name for p in places[0].iterdir()] == [NAME]


def test_a_download_that_is_cut_short_does_not_appear(places, monkeypatch):
    monkeypatch.setitem(pretrained.ADDRESSES, NAME, "https://nowhere.invalid/x")
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: io.BytesIO(DATA[:100]))
    with pytest.raises(UserError, match=r"^objective\.content\.vgg: "):
        find(NAME, KEY, download=True)
    assert not (places[0] / NAME).exists()


def test_a_failed_download_names_the_path_for_the_file(places, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setitem(pretrained.ADDRESSES, NAME, "https://nowhere.invalid/x")
    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(MissingWeights, match=str(places[0] / NAME)):
        find(NAME, KEY, download=True)
    assert list(places[0].iterdir()) == []


def test_ranks_that_arrive_during_a_download_wait_for_it(places, monkeypatch):
    """The ranks of a node start together: one downloads, the others wait and do not damage the file."""
    others, results = [], []

    class Slow(io.BytesIO):
        def read(self, size=-1):
            if self.tell() and not others:  # half is written: another rank now needs the same file
                others.append(threading.Thread(target=lambda: results.append(find(NAME, KEY, download=True)), daemon=True))
                others[0].start()
                time.sleep(0.2)
            return super().read(len(DATA) // 2)

    monkeypatch.setitem(pretrained.ADDRESSES, NAME, "https://nowhere.invalid/x")
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: Slow(DATA))
    assert find(NAME, KEY, download=True).read_bytes() == DATA
    others[0].join(timeout=30)
    assert results == [places[0] / NAME]
    assert results[0].read_bytes() == DATA
