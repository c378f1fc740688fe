"""Whatever the manifest of a checkpoint or metrics.jsonl holds, resuming takes what is whole or says one line.

SR_DIST_FUZZ=100000 runs more examples than the usual 500.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_dist.core.errors import UserError
from sr_dist.core.run_layout import checkpoint_folder, checkpoint_steps
from sr_dist.training import checkpoint, run_folder

MANY = settings(max_examples=int(os.environ.get("SR_DIST_FUZZ", "500")))
NAMES = st.sampled_from(
    ["state.json", "generator.safetensors", "../state.json", "", ".", "a" * 300, "\0", "format", "step", "run"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1" * 64, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
HEADERS = {"format": 1, "sr_dist": "0.2.0", "step": 20}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints 10 and 20; 20 is to be harmed."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (10, 20):
        tensors = {"generator": {"w": torch.full((2,), float(step))}}
        checkpoint.save(folder, step, checkpoint.Contents(tensors, {"step": step, "run": None}, {}))
    shutil.copy(checkpoint_folder(folder, 20) / "manifest.json", folder / "whole.json")
    return folder


def mended(run: Path) -> Path:
    """The manifest of 20, after what the example before has done to it."""
    folder = checkpoint_folder(run, 20)
    if not folder.exists():
        folder.with_suffix(".damaged").rename(folder)
    return Path(shutil.copy(run / "whole.json", folder / "manifest.json"))


def resumed_step(run: Path) -> int | None:
    """The step from which training would go on; None where it is refused with one line and nothing has changed."""
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    lines: list[str] = []
    try:
        saved = checkpoint.newest(run, lines.append)
    except UserError as mistake:
        lines.append(str(mistake))
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
        return None if lines[-1].startswith("name: ") else -1
    assert saved is not None and saved.tensors("generator")["w"].tolist() == [saved.step] * 2
    assert all("\n" not in line for line in lines) and len(lines) == (saved.step == 10)
    return saved.step


@MANY
@given(
    st.dictionaries(
        st.sampled_from(["files", *HEADERS, "run", "x"]), VALUES | st.dictionaries(NAMES, VALUES, max_size=3), max_size=5
    )
)
def test_any_json_in_place_of_a_manifest(run, harm):
    """No manifest but the right one makes a checkpoint usable."""
    manifest = mended(run)
    whole = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**HEADERS, **harm}))
    assert resumed_step(run) in (10, None)
    assert harm.get("files") != whole["files"]


@MANY
@given(st.binary(max_size=40), st.integers(0, 600), st.integers(0, 600))
def test_bytes_written_over_a_manifest(run, data, place, length):
    manifest = mended(run)
    whole = manifest.read_bytes()
    harmed = whole[:place] + data + whole[place + length :]
    manifest.write_bytes(harmed)
    step = resumed_step(run)
    assert step in (10, 20, None)
    if step == 20:  # what counts is as it was
        assert json.loads(harmed)["files"] == json.loads(whole)["files"]
    elif step == 10:
        assert checkpoint_steps(run) == [10]


LINES = st.one_of(
    st.integers(0, 9).map(lambda step: json.dumps({"step": step, "loss/l1": 0.5}).encode()),
    st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")),
    VALUES.map(lambda value: json.dumps({"step": value}).encode()),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"[" * 100_000, b'{"step": 1, "a": "\xe9"}', b'{"step": NaN}', b'{"step": 1e999}', b'{"step": ' + b"1" * 5000 + b"}"]
    ),
)


@MANY
@given(st.lists(LINES, max_size=8), st.integers(0, 9), st.binary(max_size=3))
def test_any_lines_in_metrics(tmp_path, lines, step, end):
    """Whole rows up to the step stay as they were written, in their order; everything else goes."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + end.replace(b"\n", b""))
    run_folder.drop_later_rows(path, step)
    remaining = path.read_bytes()
    assert remaining == b"" or remaining.endswith(b"\n")
    rows = remaining.splitlines(keepends=True) if b"\r" not in remaining else remaining.split(b"\n")[:-1]
    assert all(float(json.loads(row)["step"]) <= step for row in rows)
    plain = [line for line in lines if line.startswith(b'{"step": ') and line.endswith(b', "loss/l1": 0.5}')]
    assert [row.rstrip(b"\n") for row in rows if row.rstrip(b"\n") in plain] == [
        row for row in plain if json.loads(row)["step"] <= step
    ]
    run_folder.drop_later_rows(path, step)
    assert path.read_bytes() == remaining
