"""Plug-in files of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def own_part(tmp_path, monkeypatch):
    """`own_part("mine_a.part", text)` writes a module in the folder where the command is given, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(name: str, text: str) -> str:
        (tmp_path / name.split(".")[0]).mkdir(exist_ok=True)
        (tmp_path / Path(*name.split("."))).with_suffix(".py").write_text(text)
        return name

    yield write
    for name in [name for name in sys.modules if name.split(".")[0].startswith("mine_")]:
        del sys.modules[name]
