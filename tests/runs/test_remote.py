"""Training on remote or damaged shards: one process, and two nodes with a cache each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, assert_exactly_once, environment, finish, losses, metrics, reserved_port, run, small_gan
from servers import serving

SAMPLES, BATCH, STEPS = 24, 4, 12


@pytest.fixture(scope="module")
def small_shards(photos, tmp_path_factory) -> Path:
    """24 photographs in twelve shards."""
    from shards.build import build

    out = tmp_path_factory.mktemp("small") / "photos"
    build("class_folders", str(photos), out, {"per_shard": "2"})
    return out


def words(train: object, runs: Path, name: str, **more: object) -> list[str]:
    return small_gan(train, runs, **{"name": name, "steps": STEPS, "data.batch": BATCH, "data.window": 8, **more})


def node(number: int, port: int, *train: str) -> subprocess.Popen:
    """One of two machines with one rank each, started as on a cluster."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
    launcher += ["--machine_rank", str(number), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    launcher += ["--rdzv_backend", "static", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "sr_dist.train"]
    return subprocess.Popen(
        [sys.executable, *launcher, *train], cwd=ROOT, env=environment(ACCELERATE_USE_CPU="true"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_nodes_train_like_one_process_and_each_fetches_a_part_of_the_shards(small_shards, tmp_path):
    run(0, "sr_dist.train", *words(small_shards, tmp_path, "single"))
    with serving(small_shards) as store, reserved_port() as reserved:
        port = reserved.getsockname()[1]
        nodes = [
            node(number, port, *words(store.url, tmp_path, "nodes", data__workers=1, data__cache=tmp_path / f"cache{number}"))
            for number in (0, 1)
        ]
        results = [finish(process) for process in nodes]
        assert [code for code, *_ in results] == [0, 0], results[0][2][-3000:] + results[1][2][-3000:]
        sent = {name: size for name, size in store.sent.items() if name.endswith(".tar")}
    folder = tmp_path / "nodes"
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    for ours, theirs in zip(losses(folder), losses(tmp_path / "single"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    rows = {path.stem: path.read_text().splitlines() for path in (folder / "fetched").iterdir()}
    fetched = {name: sum(json.loads(line)["bytes"] for line in lines) for name, lines in rows.items()}
    assert fetched.keys() == {"node-000", "node-001"}
    assert sum(fetched.values()) == sum(sent.values())
    total = sum(path.stat().st_size for path in small_shards.glob("*.tar"))
    assert sent.keys() == {path.name for path in small_shards.glob("*.tar")}
    assert sum(sent.values()) < 2 * 0.9 * total
    text = (folder / "log.txt").read_text()
    assert "on 2 nodes" in text
    assert "fetched from epoch 0.00 to 1.00: node-000 " in text
    assert ", node-001 " in text


def test_damaged_images_are_replaced_counted_and_listed(small_shards, tmp_path):
    """One shard has flipped bits, another is missing: every step has all its images, and the run lists the replaced ones."""
    folder = shutil.copytree(small_shards, tmp_path / "damaged")
    flipped, missing = sorted(folder.glob("*.tar"))[3:5]
    flipped.write_bytes(bytes(byte ^ 0xFF for byte in flipped.read_bytes()))
    missing.unlink()
    _, error = run(0, "sr_dist.train", *words(folder, tmp_path, "strict"), expect=2)
    assert error.startswith(f"error: the shard '{missing}' of the manifest is missing")
    assert f"'python -m shards.verify {folder}'" in error
    run(0, "sr_dist.train", *words(folder, tmp_path, "lenient", data__on_corrupt="substitute", steps=6, data__workers=1))
    rows = metrics(tmp_path / "lenient")
    assert [row["data/substituted"] for row in rows][-1] == 4  # two shards of two samples, in one epoch
    listed = (tmp_path / "lenient" / "substituted" / "rank-000.jsonl").read_text().splitlines()
    assert len({json.loads(line)["wanted"] for line in listed}) == 4
    text = (tmp_path / "lenient" / "log.txt").read_text()
    assert f"warning: the shard '{missing}' of the manifest is missing" in text
    traced = (tmp_path / "lenient" / "trace" / "rank-000.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["keys"]) for line in traced] == [BATCH] * 6


@pytest.mark.slow
def test_validation_uses_the_same_cache(small_shards, tmp_path):
    with serving(small_shards) as store:
        command = words(store.url, tmp_path, "url", steps=2, data__validation=store.url, data__cache=tmp_path / "cache")
        run(0, "sr_dist.train", *command, "--data.validation_limit=3", "--validate_every=2")
        assert max(count for name, count in store.requests.items() if name.endswith(".tar")) == 1
    assert "validation of 3 images" in (tmp_path / "url" / "log.txt").read_text()
