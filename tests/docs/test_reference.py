"""The generated pages and the schema of recipes are up to date, complete, and agree with what commands do."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from docs.make.__main__ import files
from docs.make.pages import PARTS, keys
from sr_dist.core import plugins, run_layout
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe import shipped
from sr_dist.recipe.sections import Part, Recipe
from sr_dist.training import record

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
SCHEMA = json.loads((ROOT / "configs" / "schema.json").read_text())


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return files()


def test_generated_pages_are_up_to_date(generated):
    stale = [name for name, text in generated.items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, f"python -m docs.make writes {', '.join(stale)}"


def test_every_recipe_key_has_a_row_with_a_meaning():
    rows = dict(re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", (REFERENCE / "recipe.md").read_text(), re.MULTILINE))
    assert {key for key, _, _ in keys(Recipe)} == rows.keys() and {"data.augment.erase", "zero.discriminator"} <= rows.keys()
    assert not [key for key, meaning in rows.items() if len(meaning.strip()) < 5]


def test_every_recipe_key_and_every_option_of_a_part_is_in_the_schema():
    for key, _, section in keys(Recipe):
        tree = SCHEMA
        for name in key.split("."):
            tree = resolved(tree)["properties"][name]
        assert section is None or section is Part or resolved(tree)["properties"]
    text = (REFERENCE / "parts.md").read_text()
    for kind in PARTS:
        for name in plugins.names(PACKAGES[kind]):
            assert f"### {kind}: {name}\n" in text
    assert "growth" in json.dumps(SCHEMA) and "| `growth` |" in text


def resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """Follows references and optional sections to the object."""
    while "properties" not in tree:
        if "$ref" in tree:
            tree = SCHEMA["$defs"][tree["$ref"].rpartition("/")[2]]
        else:
            tree = next(
                member for member in tree.get("anyOf", tree.get("allOf", ())) if member.keys() & {"$ref", "anyOf", "properties"}
            )
    return tree


@pytest.mark.parametrize("package", ["sr_dist", "shards"])
def test_every_option_of_every_command_is_in_the_reference(package, capsys):
    """The help is what a user sees; the page has each of its options."""
    page = (REFERENCE / "commands.md").read_text().replace("\\|", "|")
    names = [f"{package}.{path.stem}" for path in sorted((ROOT / package).glob("[!_]*.py")) if "def main(" in path.read_text()]
    for name in names:
        assert importlib.import_module(name).main(["--help"]) == 0
        options = re.findall(r"^  (--[\w=|,{}: ]+?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
        part = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert options and part
        assert [option for option in options if f"| `{option}` |" not in part] == [], name


class Yaml12(yaml.SafeLoader):
    """Scalars as editors read them, by YAML 1.2: 1e-4 is a number, `no` is text."""


Yaml12.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))
Yaml12.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def as_editors_read(text: str) -> Any:
    return yaml.load(text, Yaml12)


CHECK = jsonschema.Draft7Validator(SCHEMA)


@pytest.mark.parametrize("name", shipped.names())
def test_recipes_are_valid_under_the_schema_that_their_first_line_names(name):
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=schema.json"
    assert [error.message for error in CHECK.iter_errors(as_editors_read(text))] == []


DEMO = (ROOT / "configs" / "demo.yaml").read_text()


@pytest.mark.parametrize(
    ("line", "replacement"),
    [
        ("  batch: 8", "  bach: 8"),
        ("  batch: 8", "  batch: eight"),
        ("scale: 2", "scale: 5"),
        ("  num_blocks: 1", "  growth: 32"),
        ("  name: acgan", "  name: acgun"),
        ("steps: 150\n", ""),
        ("mse: {weight: 1.0,", "mze: {weight: 1.0,"),
        ('range: "-1..1"', 'range: "1"'),
        ("save_every: 50", "save_every: 0"),
    ],
)
def test_mistakes_that_the_program_refuses_are_marked_by_editors_too(line, replacement, tmp_path, monkeypatch):
    from sr_dist.recipe import checks

    path = tmp_path / "demo.yaml"
    path.write_text(DEMO.replace(line, replacement))
    assert line in DEMO and not CHECK.is_valid(as_editors_read(path.read_text()))
    with pytest.raises(UserError):
        checks.complete(checks.read_recipe(path, {"discriminator.classes": "8"}))


@pytest.mark.parametrize(
    "line", ["keep: 3", "keep: {best: psnr_y}", "validate_every: none", "metrics: psnr,ssim", "save_every: null"]
)
def test_short_forms_that_the_program_takes_are_valid(line, tmp_path):
    from sr_dist.recipe import checks

    key = line.partition(":")[0]
    text = "\n".join([*(row for row in DEMO.splitlines() if not row.startswith(f"{key}:")), line])
    path = tmp_path / "demo.yaml"
    path.write_text(text)
    checks.read_recipe(path, {})
    assert [error.message for error in CHECK.iter_errors(as_editors_read(text))] == []


@pytest.mark.slow
def test_every_column_and_every_file_of_a_run_is_described(write_recipe, tmp_path):
    """A tiny GAN with a classifier's head, validation, and a trace."""
    from processes import run

    gan = {
        "objective": {"name": "srugan", "content": {"l1": 1.0}, "generator_class_weight": 0.1},
        "discriminator": {"name": "acgan", "classes": "manifest", "widths": [8], "features": 8},
        "data": {"trace": "true", "on_corrupt": "substitute", "validation": str(photos_of(write_recipe))},
    }
    run(0, "sr_dist.train", write_recipe(steps=2, validate_every=1, save_every=2, **gan))
    folder = tmp_path / "runs" / "tiny"
    columns = {key for line in (folder / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert columns >= {"loss/class_real", "grad_norm/discriminator", "validation/psnr_y", "reading/accuracy_real"}
    assert [column for column in columns if not record.described(column)] == []
    paths = [path for entry in run_layout.FILES for path in entry.split(", ")]
    patterns = [re.sub("STEP", "[0-9]{7}", re.sub("NETWORK", "[a-z]+", re.sub(r"\bN\b", "[0-9]{3}", path))) for path in paths]
    files_of_run = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert len(files_of_run) > 10
    assert [name for name in files_of_run if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def photos_of(write_recipe) -> str:
    return yaml.safe_load(write_recipe().read_text())["data"]["train"]
