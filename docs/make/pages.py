"""The generated pages of the manual: page -> its text. `python -m docs.make` writes them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sr_dist import __main__ as overview
from sr_dist.core import catalogue, cli, plugins, run_layout
from sr_dist.core.config import Settings
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe import resume_rules, shipped
from sr_dist.recipe.sections import Part, Recipe
from sr_dist.tools import fetch
from sr_dist.training import record

ROOT = Path(__file__).resolve().parents[2]
NOTE = "<!-- Written by `python -m docs.make` from the code. Do not edit. -->\n"
PARTS = {  # kind -> the key of the recipe that names one
    "generator": "generator", "discriminator": "discriminator", "classifier": "classifier", "objective": "objective",
    "content": "objective.content", "degradation": "data.degradation", "optimizer": "optimizer", "metric": "metrics",
}  # fmt: skip


def pages() -> dict[str, str]:
    texts = {
        "docs/reference/recipe.md": recipe_page(),
        "docs/reference/parts.md": parts_page(),
        "docs/reference/commands.md": commands_page(),
        "docs/reference/catalogue.md": catalogue_page(),
        "docs/reference/record.md": record_page(),
        "docs/reference/files.md": files_page(),
        **recipe_pages(),
    }
    return {name: f"{text.strip()}\n\n{NOTE}" for name, text in texts.items()}


def table(head: str, rows: list[list[str]]) -> list[str]:
    names = head.split(" | ")
    return [f"| {head} |", "|" + "---|" * len(names), *("| " + " | ".join(map(cell, row)) + " |" for row in rows), ""]


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# -------------------------------------------------------------------------------------------------------------- recipe


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[BaseModel] | None]]:
    """(key, field, the class of its section) of every key, depth first."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        yield f"{prefix}{name}", field, section
        if section and section is not Part:
            yield from keys(section, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def members(annotation: Any) -> Iterator[Any]:
    """The types of which an annotation is a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def kind(annotation: Any) -> str:
    """A type in the reader's words."""
    words = [word(member) for member in members(annotation) if member is not NoneType]
    return " or ".join(dict.fromkeys(words)) + (" or none" if NoneType in members(annotation) else "")


def word(member: Any) -> str:
    origin, arguments = get_origin(member), get_args(member)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        inside = [a for a in arguments if a is not Ellipsis]
        count = "a list" if Ellipsis in arguments else f"{len(inside)} values"
        return f"{count} ({kind(inside[0])})"
    if origin is dict:
        return "a section"
    if isinstance(member, type) and issubclass(member, BaseModel):
        return "a part" if member is Part else "a section"
    names: dict[Any, str] = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
    return names.get(member, "any")


def limits(field: FieldInfo) -> str:
    """` > 0` and the like, from the metadata of the field and of its type."""
    marks = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    present = [*field.metadata, *metadata(field.annotation)]
    words = [f"{sign} {getattr(mark, name)}" for mark in present for name, sign in marks.items() if hasattr(mark, name)]
    return f", {' and '.join(dict.fromkeys(words))}" if words else ""


def metadata(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        for mark in get_args(annotation)[1:]:
            yield from [*mark.metadata, mark] if isinstance(mark, FieldInfo) else [mark]
        yield from metadata(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from metadata(member)


def default(field: FieldInfo, section: type[BaseModel] | None = None) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Part):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        return ""
    if value is None or value in ((), {}, ""):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def options_rows(model: type[BaseModel], prefix: str = "") -> list[list[str]]:
    return [
        [f"`{key}`", kind(field.annotation) + limits(field), default(field, section), describe(field, section)]
        for key, field, section in keys(model, prefix)
    ]


def describe(field: FieldInfo, section: type[BaseModel] | None) -> str:
    return field.description or (section and section is not Part and section.__dict__.get("__doc__")) or ""


def recipe_page() -> str:
    rows = []
    for key, field, section in keys(Recipe):
        may = any(key == name or key.startswith(f"{name}.") for name in resume_rules.FREE)
        kinds = "" if section and section is not Part else kind(field.annotation) + limits(field)
        rows.append([f"`{key}`", kinds, default(field, section), "free" if may else "", describe(field, section)])
    return "\n".join(
        [
            "---",
            "hide: [toc]",
            "---",
            "",
            "# Recipe keys",
            "",
            "Every key of a recipe, in the order in which `--dry_run` prints them. On the command line a key is `--KEY=VALUE`.",
            "*Resume: free* marks keys that may change when a run continues; others need `--resume.allow=KEY`. The options of a",
            "part (a network, an objective, ...) are those of its file: see [Parts](parts.md).",
            "",
            *table("key | type | default | resume | meaning", rows),
        ]
    )


# --------------------------------------------------------------------------------------------------------------- parts


def parts_page() -> str:
    lines = [
        "# Parts",
        "",
        "A part is a file; its name in a recipe is the file's name. `generator: {name: rrdb, num_blocks: 6}` is",
        "`sr_dist/models/generators/rrdb.py` with an option. A dotted name is a file of your own: see [Extend](../extend.md).",
        "",
    ]
    for part, key in PARTS.items():
        lines += [f"## {part.capitalize()}", "", f"Named by `{key}`.", ""]
        for name in plugins.names(PACKAGES[part]):
            module = importlib.import_module(f"{PACKAGES[part]}.{name}")
            lines += [f"### {part}: {name}", "", paragraph(module.__doc__), ""]
            config = getattr(module, "Config", None)
            if config and config.model_fields:
                lines += table("option | type | default | meaning", options_rows(config))
            if better := getattr(module, "BETTER", None):
                needs = getattr(module, "NEEDS", {})
                rows = [[f"`{column}`", direction, needs.get(column, "")] for column, direction in better.items()]
                lines += table("column | better | published weights", rows)
    return "\n".join(lines)


def paragraph(docstring: str | None) -> str:
    return (
        (docstring or "")
        .strip()
        .partition("\n\n")[0]
        .replace("\n", " ")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .removesuffix(":")
    )


# ------------------------------------------------------------------------------------------------------------ commands


def commands_page() -> str:
    lines = [
        "# Commands",
        "",
        "`python -m sr_dist` lists the commands and the recipes; `python -m sr_dist RECIPE` prints a recipe.",
        "",
    ]
    lines += table("command | does", [[f"[`{name}`](#{name.replace('.', '')})", text] for name, text in overview.commands()])
    for name, _ in overview.commands():
        settings = settings_of(importlib.import_module(name))
        words = cli.words_of(settings)
        usage = " ".join(word.head if word.default is None else f"[{word.head}]" for word in words)
        lines += [f"## {name}", "", f"`python -m {name} {usage} [--key=value ...]`", "", *about(settings), ""]
        if words:
            lines += table("word | meaning", [[f"`{word.head}`", word.text] for word in words])
        lines += option_table(settings)
        if name == "shards.build":
            lines += sources()
    codes = [[str(code), text] for code, text in cli.EXIT_CODES.items()]
    return "\n".join([*lines, "## Exit codes", "", *table("code | meaning", codes)])


def settings_of(module: Any) -> type[Settings]:
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Settings)]
    return next(value for value in own if value.__module__ == module.__name__)


def about(settings: type[Settings]) -> list[str]:
    """The docstring; indented blocks become code."""
    return [escape(line) if not line.startswith("  ") else f"  {line}" for line in (inspect.getdoc(settings) or "").splitlines()]


def escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("*_", "\\*_")


def option_table(settings: type[Settings]) -> list[str]:
    rows = [
        [f"`{option.head}`", "**required**" if option.default is None else option.default and f"`{option.default}`", option.text]
        for option in cli.options_of(settings)
    ]
    return table("option | default | meaning", rows) if rows else []


def sources() -> list[str]:
    from shards.pixels import Preparation
    from shards.source import load_source, source_names

    lines = ["### How each image is prepared", "", "In this order; with none of these the bytes are stored unchanged.", ""]
    lines += option_table(Preparation)
    for name in source_names():
        source = load_source(name)
        lines += [f"### source: {name}", "", paragraph(source.__doc__), "", *option_table(source.Config)]
    return lines


# ----------------------------------------------------------------------------------------------------------- catalogue


def catalogue_page() -> str:
    entries = catalogue.read()
    lines = [
        "# Catalogue",
        "",
        "What [`sr_dist.fetch`](../fetch.md) knows, from `sr_dist/core/catalogue.yaml`. *Checked with*: the published digests;",
        "`sha256:8` are its first 8 digits; files that are *unchecked* are trusted at the first fetch. *Source*: who publishes",
        "them, or has measured them. Licences are given in short: read theirs before you publish.",
        "",
    ]
    for kind, title in fetch.TITLES.items():
        of_kind = {name: entry for name, entry in entries.items() if entry.kind == kind}
        rows = [
            [name_cell(name, e), e.purpose, fetch.size_text(e), fetch.digest_text(e), sources_of(e), e.licence]
            for name, e in of_kind.items()
        ]
        lines += [f"## {title}", "", *table("name | for | size | checked with | source | licence", rows)]
        lines += ["Afterwards:", "", "```"]
        lines += [e.next.replace("{to}", "datasets").replace("{weights}", "$SR_DIST_WEIGHTS") for e in of_kind.values()]
        lines += ["```", ""]
    addresses = [[f"`{name}`", file.address] for name, entry in entries.items() for file in entry.files]
    return "\n".join([*lines, "## Addresses", "", *table("name | address", addresses)])


def name_cell(name: str, entry: catalogue.Entry) -> str:
    return ", ".join(f"`{word}`" for word in (name, *entry.aliases))


def sources_of(entry: catalogue.Entry) -> str:
    return "; ".join(dict.fromkeys(file.source for file in entry.files if file.source))


# ------------------------------------------------------------------------------------------------------- record, files


def record_page() -> str:
    return "\n".join(
        [
            "# metrics.jsonl",
            "",
            "A JSON object per line: one every `log_every` steps, and one per validation. A value that is not finite is `null`.",
            "Losses are means over all images of the step, already multiplied by their weights: to compare two terms with",
            "different weights, divide.",
            "",
            *table("column | meaning", [[f"`{column}`", text] for column, text in record.COLUMNS.items()]),
        ]
    )


def files_page() -> str:
    codes = [[str(code), text] for code, text in cli.EXIT_CODES.items()]
    return "\n".join(
        [
            "# Files and exit codes",
            "",
            "## The run folder",
            "",
            "`runs/NAME/` holds everything of a run. STEP has seven digits or more, N is a rank or a node.",
            "",
            *table("path | has", [[f"`{path}`", text] for path, text in run_layout.FILES.items()]),
            "## Exit codes",
            "",
            "Of every command. `accelerate launch` turns every failure into 1.",
            "",
            *table("code | meaning", codes),
        ]
    )


# ------------------------------------------------------------------------------------------------------------- recipes

FAMILIES = {  # page -> its title, and patterns of recipes
    "pixel": ("Pixel losses", ("srcnn_*", "srresnet_*", "rrdb_*", "realesrnet_*", "swinir_x4")),
    "gan": (
        "GANs",
        (
            "srgan_x*",
            "srgan_vgg22_*",
            "srgan_mse_x4",
            "esrgan_x*",
            "r3gan_*",
            "esrgan_finetune_*",
            "realesrgan_*",
            "swinir_gan_*",
        ),
    ),
    "srugan": ("SR-UGAN and ImageNet", ("demo*", "srugan_*", "imagenet_*")),
    "digits": ("Digits", ("*mnist*", "classifier_digits")),
    "faces": ("Faces", ("classifier_*", "srcgan_*", "esrgan_*16to64")),
}


def family(name: str) -> str:
    return next(page for page, (_, patterns) in FAMILIES.items() if any(fnmatch(name, pattern) for pattern in patterns))


def recipe_pages() -> dict[str, str]:
    lines = [
        "# Recipes",
        "",
        "A recipe is trained by its name, `python -m sr_dist.train esrgan_x4`, and printed by `python -m sr_dist esrgan_x4`.",
        "The pages of this section have the header of every recipe: what it trains, its first stage, its data, the paper's",
        "numbers, and where we leave the paper. [Published numbers](expected.md) are on a page of their own.",
        "",
    ]
    for page, (title, _) in FAMILIES.items():
        rows = [[f"[`{n}`]({page}.md#{n})", shipped.title(n)] for n in shipped.names() if family(n) == page]
        lines += [f"## {title}", "", *table("recipe | trains", rows)]
    index = {"docs/recipes/index.md": "\n".join(lines)}
    return index | {f"docs/recipes/{page}.md": recipe_page_of(page) for page in FAMILIES}


def recipe_page_of(page: str) -> str:
    lines = [f"# {FAMILIES[page][0]}", ""]
    for name in shipped.names():
        if family(name) == page:
            lines += [f"## {name}", "", *header_lines(name), ""]
    return "\n".join(lines)


def header_lines(name: str) -> list[str]:
    """The header as a paragraph; commands, which are indented, as code."""
    lines: list[str] = []
    for line in shipped.header(name).splitlines():
        is_code, was_code = line.startswith("  "), bool(lines) and lines[-1].startswith("    ")
        if lines and is_code != was_code:
            lines.append("")
        lines.append(f"    {line.strip()}" if is_code else re.sub(r"([*_<])", r"\\\1", line))
    return lines
