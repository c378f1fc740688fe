"""The first ZeRO run on a CPU says that it compiles, which takes minutes without another line."""

from __future__ import annotations

from sr_dist.core.ranks import EXTENSION, missing_extension


def test_an_extension_that_is_not_compiled_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert missing_extension() == tmp_path
    (tmp_path / EXTENSION).mkdir()
    (tmp_path / EXTENSION / "build.ninja").touch()
    assert missing_extension() == tmp_path  # begun
    (tmp_path / EXTENSION / f"{EXTENSION}.so").touch()
    assert missing_extension() is None
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert missing_extension() == tmp_path / "cache" / "torch_extensions"
    place = tmp_path / "cache" / "torch_extensions" / "py311_cpu" / EXTENSION
    place.mkdir(parents=True)
    (place / f"{EXTENSION}.so").touch()
    assert missing_extension() is None
