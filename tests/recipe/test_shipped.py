"""Recipes of the package are found by name from any folder, in a checkout and in an installed wheel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import processes
import pytest

from sr_dist import __main__ as overview
from sr_dist.core.errors import UserError
from sr_dist.recipe import checks, shipped

ROOT = Path(__file__).resolve().parents[2]


def test_a_name_is_a_recipe_of_the_package_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checks.read_recipe("esrgan_x4", {}) == checks.read_recipe(ROOT / "configs" / "esrgan_x4.yaml", {})


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch, write_recipe):
    own = write_recipe(name="mine")
    monkeypatch.chdir(tmp_path)
    assert checks.read_recipe(own.name, {}).name == "mine"
    own.rename(tmp_path / "esrgan_x4")  # a file without a suffix
    assert checks.read_recipe("esrgan_x4", {}).name == "mine"
    (tmp_path / "demo").mkdir()  # a folder is no recipe
    assert checks.read_recipe("demo", {}).name == "demo"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("esrgan_x5", "no recipe 'esrgan_x5'; did you mean 'esrgan_x4'?"),
        ("configs/esrgan_x4.yaml", "no file 'configs/esrgan_x4.yaml'; the recipe of the package is called 'esrgan_x4'"),
        ("own/mine.yaml", "no recipe 'own/mine.yaml'"),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(recipe, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        checks.read_recipe(recipe, {})
    assert str(refusal.value) == message


def test_the_overview_names_every_command_and_recipe(capsys):
    assert overview.main([]) == 0
    out = capsys.readouterr().out
    modules = [path for package in ("shards", "sr_dist") for path in (ROOT / package).glob("*.py")]
    commands = {f"{path.parent.name}.{path.stem}" for path in modules if "def main(argv" in path.read_text()}
    commands -= {"sr_dist.__main__"}
    lines = [line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines()[1:]]
    assert {name for name, _ in lines} == commands and all(len(text) > 20 for _, text in lines)
    assert set(shipped.names()) <= set(out.split())


def test_the_overview_prints_a_recipe(capsys):
    assert overview.main(["demo"]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert rest == (ROOT / "configs" / "demo.yaml").read_text().partition("\n")[2]
    schema = Path(first.removeprefix("# yaml-language-server: $schema="))
    assert schema.is_absolute() and json.loads(schema.read_text())["title"]  # editors find it wherever the copy lies
    assert overview.main(["dmo"]) == 2
    assert "did you mean 'demo'?" in capsys.readouterr().err


IN_WHEEL = """
import contextlib, io, json, sys
from sr_dist import __main__ as overview, train
from sr_dist.recipe import shipped
with contextlib.redirect_stdout(io.StringIO()) as out:
    codes = [overview.main([]), train.main(sys.argv[1:])]
print(json.dumps([codes, str(shipped.folder()), out.getvalue()]))
"""


@pytest.mark.slow
def test_an_installed_wheel_trains_a_recipe_by_name(tmp_path, photo_shards):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("sr_dist-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel], check=True)
    words = ["demo_pixel", f"--data.train={photo_shards}", "--data.validation=none", "--data.crop=16", "--dry_run"]
    environment = processes.environment() | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", IN_WHEEL, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    codes, folder, out = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0] and folder == str(tmp_path / "site" / "sr_dist" / "configs")
    assert "sr_dist.train" in out and "name: demo_pixel" in out
