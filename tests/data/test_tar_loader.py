"""`data.reader: webdataset`: tars without an index, from a folder, a real HTTP server and a command."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from loaders import CROP_SIZE, SCALE, logged_messages, read, same, settings
from PIL import Image
from processes import finish_with, launch, metrics, run, small_gan, trace
from servers import serving

from sr_dist.core.errors import UserError
from sr_dist.data.degradations import bicubic
from sr_dist.data.loader import LoaderConfig, Start
from sr_dist.data.remote import download
from sr_dist.data.tar_loader import TarLoader
from sr_dist.data.unindexed import check_unindexed, open_unindexed


@pytest.fixture(scope="module")
def tars(photo_shards, tmp_path_factory):
    """The three tars of the photographs alone, with a text beside each image, as img2dataset writes it."""
    folder = tmp_path_factory.mktemp("tars")
    for path in sorted(photo_shards.glob("*.tar")):
        with tarfile.open(path) as source, tarfile.open(folder / path.name.replace("photos", "wds"), "w") as target:
            for member in source:
                if member.name.endswith((".png", ".jpg")):
                    target.addfile(member, source.extractfile(member))
                    text = tarfile.TarInfo(member.name.rpartition(".")[0] + ".txt")
                    text.size = 4
                    target.addfile(text, io.BytesIO(b"none"))
    return folder


@pytest.fixture
def store(tars):
    with serving(tars) as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds between tries, which are recorded and not waited for."""
    seconds: list[float] = []
    monkeypatch.setattr(download, "sleep", seconds.append)
    return seconds


WORDS = {"discriminator.classes": "none"}  # the tars have none
PATTERN = "wds-{000000..000002}.tar"


def loader_of(train, start=None, folder=None, steps=6, accumulate=1, **data) -> TarLoader:
    section = settings(train=str(train), reader="webdataset", flip=False, rotate=False, **data)
    config = LoaderConfig(section, 5, SCALE, accumulate, steps, 3)
    degrade = bicubic.build(bicubic.Config(), SCALE)
    return TarLoader([open_unindexed(section)], config, degrade, torch.device("cpu"), start, folder)


def keys_of(steps) -> list[str]:
    return [key for batches in steps.values() for batch in batches for key in batch.keys]


def images_of(tars) -> dict[str, np.ndarray]:
    images = {}
    for path in tars.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".txt"):
                    with Image.open(tar.extractfile(member)) as image:
                        images[member.name.rpartition(".")[0]] = np.asarray(image.convert("RGB"))
    return images


def test_one_reader_takes_every_sample_once_in_a_pass_and_its_crops_are_parts_of_the_images(tars):
    """Six steps of four are a pass over 24 photographs; the shuffle buffer is larger than that."""
    steps, images = read(loader_of(tars, steps=12)), images_of(tars)
    keys = keys_of(steps)
    assert sorted(keys[:24]) == sorted(keys[24:]) == sorted(images)
    assert keys[:24] != keys[24:]
    for (batch,) in steps.values():
        assert batch.lr.shape == (4, 3, CROP_SIZE // SCALE, CROP_SIZE // SCALE) and batch.label.tolist() == [-1] * 4
        for key, hr in zip(batch.keys, batch.hr, strict=True):
            crop = (hr * 255).round().byte().permute(1, 2, 0).numpy()
            rows, columns = np.subtract(images[key].shape[:2], CROP_SIZE) // SCALE + 1
            parts = [
                images[key][SCALE * i : SCALE * i + CROP_SIZE, SCALE * j : SCALE * j + CROP_SIZE]
                for i in range(rows) for j in range(columns)
            ]  # fmt: skip
            assert any(np.abs(part.astype(int) - crop).max() <= 3 for part in parts), key  # two decoders of JPEG
    again = read(loader_of(tars, steps=12))
    assert all(same(steps[step][0], again[step][0]) for step in steps)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_workers_read_tars_of_their_own_through_shared_memory(tars, accumulate):
    steps = read(loader_of(tars, steps=6, workers=3, batch=4, accumulate=accumulate))
    assert [[len(batch.keys) for batch in batches] for batches in steps.values()] == [[4 // accumulate] * accumulate] * 6
    assert set(Counter(keys_of(steps)).values()) == {1}  # three workers with a tar of eight each
    expected = read(loader_of(tars, steps=6))
    by_key = {key: hr for batches in expected.values() for batch in batches for key, hr in zip(batch.keys, batch.hr, strict=True)}
    for batches in steps.values():
        for batch in batches:
            for key, hr in zip(batch.keys, batch.hr, strict=True):
                assert torch.equal(hr, by_key[key])  # crops are keyed by the sample


def test_urls_and_commands_give_the_same_samples_as_files(tars, store):
    expected = read(loader_of(tars))
    for train in (f"{store.url}/{PATTERN}", f"pipe:cat {tars}/{PATTERN}", f"{tars}/{PATTERN}"):
        steps = read(loader_of(train))
        assert all(same(expected[step][0], steps[step][0]) for step in expected)


def test_whole_images_are_micro_batches(tars):
    steps, images = read(loader_of(tars, crop=None)), images_of(tars)
    assert sorted(keys_of(steps)) == sorted(images)
    for batches in steps.values():
        assert len(batches) == 4
        for batch in batches:
            height, width = images[batch.keys[0]].shape[:2]
            assert batch.hr.shape == (1, 3, height // SCALE * SCALE, width // SCALE * SCALE)


def test_a_continued_run_takes_the_tars_in_another_order(tars):
    first = keys_of(read(loader_of(tars)))
    later = loader_of(tars, Start(position=24, done=6), steps=12)
    assert later.position_after(12) == 48
    continued = keys_of(read(later, first=7))
    assert sorted(first) == sorted(continued) and first != continued


def test_sample_images_come_from_the_first_tars(tars):
    loader = loader_of(tars)
    first, again = loader.first_batches(3), loader.first_batches(3)
    assert [batch.keys for batch in first] == [batch.keys for batch in again]
    assert len({batch.keys for batch in first}) == 3 and all(len(batch.hr) == 1 for batch in first)


@pytest.mark.parametrize("fault", ["500", "drop", "stall"])
def test_a_tar_that_fails_is_opened_again_and_every_sample_comes_once(store, waits, monkeypatch, fault):
    """`drop` and `stall` send half of the tar first: its samples are not given twice."""
    monkeypatch.setattr(download, "WARN_AFTER", 0.1)
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    store.faults["wds-000001.tar"] = [fault] * 6
    with logged_messages() as logged:
        keys = keys_of(read(loader_of(f"{store.url}/{PATTERN}")))
    assert len(keys) == 24 and set(Counter(keys).values()) == {1}
    tries = [line for line in logged if "; try " in line]
    assert len(tries) == len(waits) == 6 and store.requests["wds-000001.tar"] >= 7
    assert re.fullmatch(rf"the shard '{store.url}/wds-000001.tar': .*; try 2 of 7 in \d\.\d s", tries[0])


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        ("404", "could not be fetched: the server answers 404 Not Found", 1),
        ("403", "could not be fetched: the server answers 403 Forbidden", 1),
        ("500", "could not be fetched in 7 tries: the server answers 500 Internal Server Error", 7),
        ("drop", "could not be fetched in 7 tries: the connection was lost", 7),
        ("cut", "unexpected end of data", 1),
        ("page", "it is a web page and no tar", 1),
    ],
)
def test_a_tar_that_cannot_be_read_ends_the_run_or_is_recorded(store, tmp_path, fault, reason, requests):
    name = "wds-000001.tar"
    store.faults[name] = [fault] * requests * 2
    with pytest.raises(UserError, match=f"^data.train: '{store.url}/{name}': {reason}; data.on_corrupt=substitute") as error:
        read(loader_of(f"{store.url}/{PATTERN}"))
    assert "\n" not in str(error.value) and store.requests[name] == requests
    steps = read(loader_of(f"{store.url}/{PATTERN}", on_corrupt="substitute", folder=tmp_path))
    assert len(keys_of(steps)) == 24
    rows = [json.loads(line) for line in (tmp_path / "substituted" / "rank-000.jsonl").read_text().splitlines()]
    assert rows[0]["wanted"] == f"{store.url}/{name}" and rows[0]["taken"] in keys_of(steps)
    assert rows[0]["why"] == reason


@pytest.mark.parametrize("source", ["file", "pipe", "gzip"])
def test_what_follows_the_end_of_a_tar_is_refused(tars, tmp_path, source):
    """Two tars in one file, and a header that is damaged: what lies behind would be left out in silence."""
    first, second = ((tars / f"wds-00000{number}.tar").read_bytes() for number in range(2))
    with tarfile.open(tars / "wds-000000.tar") as tar:
        tar.getmembers()
        end, third = tar.offset, tar.getmembers()[2].offset
    damaged = first[:third] + b"x" * 512 + first[third + 512 :]
    behind = f"it ends at byte {end}, but more follows at byte {len(first)}: a second tar behind the first"
    for content, reason in ((first + second, behind), (damaged, f"the header at byte {third} is damaged")):
        path = tmp_path / "two.tar"
        path.write_bytes(gzip.compress(content) if source == "gzip" else content)
        with pytest.raises(UserError, match=f"two.tar': {reason}"):
            read(loader_of(f"pipe:cat {path}" if source == "pipe" else path))
    path.write_bytes(first + bytes(30_000))
    assert len(keys_of(read(loader_of(path)))) == 24


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_two_compressed_tars_in_one_file_are_refused(tars, tmp_path, compress):
    first, second = (compress((tars / f"wds-00000{number}.tar").read_bytes()) for number in range(2))
    path = tmp_path / "two.tar"
    for content in (first, first + bytes(1000) if compress is gzip.compress else first):
        path.write_bytes(content)
        assert len(keys_of(read(loader_of(path)))) == 24
    for content in (first + second, first[:-600]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"two\.tar': "):
            read(loader_of(path))


def test_damaged_and_small_images_end_the_run_or_are_replaced(tars, tmp_path):
    folder = tmp_path / "tars"
    shutil.copytree(tars, folder)
    small = io.BytesIO()
    Image.new("RGB", (20, 9)).save(small, "PNG")
    with tarfile.open(folder / "wds-000003.tar", "w") as tar:
        for name, data in (
            ("bad.jpg", b"\xff\xd8 no image"), ("small.png", small.getvalue()), ("empty.jpg", b""), ("text.png", b"no image"),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError, match=r"wds-000003.tar (bad|small|empty|text)'"):
        read(loader_of(folder))
    steps = read(loader_of(folder, steps=7, folder=tmp_path, on_corrupt="substitute"))
    assert len(keys_of(steps)) == 28 and not {"bad", "small", "empty", "text"} & set(keys_of(steps))
    reasons = {
        row["wanted"].rpartition(" ")[2]: row["why"]
        for row in map(json.loads, (tmp_path / "substituted" / "rank-000.jsonl").read_text().splitlines())
    }
    assert reasons.pop("small").startswith("20 x 9 pixels, fewer than 16 on a side")
    unknown, empty = "it is no image of a known format", "it is empty (0 bytes)"
    assert reasons == {"bad": unknown, "text": unknown, "empty": empty}  # no address of an object, no line of a decoder's code
    replicated = read(loader_of(folder, steps=7, on_corrupt="substitute", small="replicate"))
    assert "small" in keys_of(replicated)


def test_tars_without_an_image_and_stored_lr_are_refused(tmp_path, tars):
    for name, reason in (("a.txt", "a worker has no image in its tars"), ("a.lr.png", "'a' has an LR image")):
        with tarfile.open(tmp_path / "one.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(UserError, match=reason):
            read(loader_of(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split": (0.9, 0.1)}, "data.split: selects samples before they are read"),
        ({"select": {"each_class": 3}}, "data.select: selects samples"),
        ({"workers": 4}, r"data.train: 3 tars for 4 readers \(ranks times data.workers\)"),
        ({"train": {"a": 1, "b": 1}}, "data.train: 2 sources, and data.reader=webdataset streams one"),
        ({"train": "no/wds-{0..2}.tar"}, "data.train: no tar is at 'no/wds-0.tar'"),
        ({"train": "no/*.tar"}, r"data.train: 'no/\*.tar': a \* stands for nothing; patterns are such as"),
        ({"train": "configs"}, "data.train: 'configs' has no file that ends with .tar"),
        ({"train": "https://***@host/a.tar"}, "data.train: .* give the whole URL"),
    ],
)
def test_requests_that_need_an_index_are_refused(tars, data, message):
    section = settings(**{"train": str(tars), "reader": "webdataset", **data})
    with pytest.raises(UserError, match=message):
        check_unindexed(section, open_unindexed(section))


def test_a_run_says_what_is_not_promised_and_continues(tars, tmp_path, store):
    words = small_gan(
        f"{store.url}/{PATTERN}", tmp_path, data__reader="webdataset", data__batch=4, steps=3, data__crop=16, **WORDS
    )
    run(0, "sr_dist.train", *words)
    folder = tmp_path / "run"
    promises = json.loads((folder / "run.json").read_text())["not_promised"]
    assert "that every sample comes exactly once per epoch" in promises and len(promises) == 3
    log = (folder / "log.txt").read_text()
    assert "3 tars without an index" in log and promises[1] in log
    assert [row["epoch"] for row in metrics(folder) if "epoch" in row] == [None] * 3
    changed = finish_with(2, launch(0, "sr_dist.train", *words, "--steps=4", "--data.reader=indexed"))
    assert "was begun with another recipe" in changed[1] or "manifest" in changed[1]
    run(0, "sr_dist.train", *words, "--steps=4", "--data.samples=24")
    rows = [row for row in metrics(folder) if "epoch" in row]
    assert [row["epoch"] for row in rows[:3]] == [None] * 3 and rows[3]["epoch"] == pytest.approx(16 / 24)
    _, error = finish_with(2, launch(0, "sr_dist.replay", str(folder), "--from=2", "--to=3"))
    assert "whose batches cannot be repeated" in error


@pytest.mark.slow
def test_two_ranks_read_tars_of_their_own(tars, tmp_path, store):
    """Each has eight or sixteen of the photographs in its first pass; in two steps of four no sample comes twice."""
    words = small_gan(
        f"{store.url}/{PATTERN}", tmp_path, data__reader="webdataset", data__batch=4, steps=4, data__crop=16, **WORDS
    )
    run(2, "sr_dist.train", *words)
    counts = Counter(key for _, key in trace(tmp_path / "run"))
    assert sum(counts.values()) == 16 and set(counts.values()) == {1}
