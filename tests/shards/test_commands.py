"""The help of the commands, the contract of sources, and imports without side effects."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from made_shards import built
from PIL import Image

from shards import build, index, show, verify
from shards.pixels import Preparation
from shards.source import load_source, source_names
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

# ---------------------------------------------------------------------------------------------------------------- help


def test_the_help_of_build_has_every_option_of_every_source(capsys):
    assert build.main(["celeba", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: python -m shards.build SOURCE INPUT OUT [--key=value ...]\n")
    for settings in (build.Build, Preparation):
        for name in settings.model_fields.keys() - {"source", "root", "out"}:
            assert f"\n  --{name}" in text, name
    sections = dict(section.split(":\n", 1) for section in text.split("\n\n") if ":\n" in section)
    for name in source_names():
        assert f"\n  {name} " in "\n" + sections["Sources"]
        for option in load_source(name).Config.model_fields:
            assert f"  --{option}" in sections[f"Options of {name}"]
    assert max(map(len, text.splitlines())) <= 130


def test_the_help_of_index_has_its_options(capsys):
    assert index.main(["-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: python -m shards.index OUT TARS [--key=value ...]\n")
    assert all(f"\n  --{name}=" in text for name in ("classes", "tars", "workers"))


@pytest.mark.parametrize(
    "settings", [build.Build, Preparation, index.Adopt, show.Show, verify.Verify], ids=lambda settings: settings.__name__
)
def test_every_option_has_a_description(settings):
    assert [name for name, field in settings.model_fields.items() if not field.description] == []


# ------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("name", source_names())
def test_every_source_keeps_the_contract(name):
    source = load_source(name)
    assert issubclass(source.Config, Settings)
    assert list(inspect.signature(source.listing).parameters) == ["root", "config"]
    assert inspect.getdoc(source)
    assert [option for option, field in source.Config.model_fields.items() if not field.description] == []
    if hasattr(source, "read"):
        assert list(inspect.signature(source.read).parameters) == ["item"]


@pytest.mark.slow
def test_every_source_keeps_the_contract_of_types(tmp_path, monkeypatch):
    """mypy compares the modules with the Protocols."""
    from mypy import api

    monkeypatch.chdir(ROOT)
    lines = ["from shards.source import ReadingSource, Source", f"from shards.sources import {', '.join(source_names())}"]
    for name in source_names():
        kind = "ReadingSource" if hasattr(load_source(name), "read") else "Source"
        lines.append(f"of_{name}: {kind}[{name}.Config] = {name}")
    (tmp_path / "check.py").write_text("\n".join(lines) + "\n")
    out, err, code = api.run(
        ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache"), str(tmp_path / "check.py")]
    )
    assert code == 0, out + err


def test_a_module_that_is_no_source_is_refused():
    with pytest.raises(UserError, match=r"^SOURCE: 'json\.decoder' has no Config and listing\(root, config\)"):
        load_source("json.decoder")


def test_a_source_written_for_0_1_is_told_the_new_names(tmp_path, monkeypatch):
    (tmp_path / "own_sources").mkdir()
    (tmp_path / "own_sources" / "one.py").write_text("from shards.items import Item, Listing, fit\n")
    (tmp_path / "own_sources" / "two.py").write_text("from sr_dist.config import Settings\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = (
        r"^SOURCE: '.*one\.py' was written for sr_dist 0\.1; line 1 becomes 'from shards\.items import Item, Listing, clean_key'"
    )
    with pytest.raises(UserError, match=message):
        load_source("own_sources.one")
    with pytest.raises(UserError, match=r"^SOURCE: '.*two\.py' .* line 1 becomes 'from sr_dist\.core\.config import Settings'"):
        load_source("own_sources.two")


# -------------------------------------------------------------------------------------------------------- side effects

IMPORT = """
import importlib, pkgutil, sys, warnings
from PIL import Image
import pydantic, numpy
before = Image.MAX_IMAGE_PIXELS, list(warnings.filters), list(sys.path)
import shards, shards.sources
for package in (shards, shards.sources):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters), list(sys.path)) == before
assert "torch" not in sys.modules
"""


def test_importing_shards_changes_nothing_and_does_not_load_torch():
    result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_pillows_own_limit_does_not_apply_during_a_build_and_does_after_it(tmp_path, monkeypatch, make_photo, image_bytes):
    """A build has max_pixels instead. 1280 pixels are more than twice the limit, which Pillow refuses."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.bmp").write_bytes(image_bytes(make_photo(1, 32, 40), "BMP"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "in" / "a.bmp")
    shards = built("folder", tmp_path / "in", tmp_path / "out")
    assert shards.manifest.samples == 1
    assert Image.MAX_IMAGE_PIXELS == 100
