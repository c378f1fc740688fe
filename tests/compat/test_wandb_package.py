"""The private name of wandb that training/trackers/wandb.py uses."""

from __future__ import annotations

import pytest


def test_starting_step(tmp_path, monkeypatch):
    """`run._starting_step` is the first step that W&B accepts: 0 for a new run. The server sets it for a resumed run."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="p", dir=str(tmp_path), mode="offline")
    try:
        assert run._starting_step == run.starting_step == 0
    finally:
        run.finish()
