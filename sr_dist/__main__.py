"""`python -m sr_dist`: the commands and the recipes."""

from __future__ import annotations

import ast
import importlib.util
import runpy
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from sr_dist.core import cli
from sr_dist.core.cli import WIDTH, Word
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError, nearest
from sr_dist.recipe import shipped

FOLDERS = ("shards", "sr_dist")


class Overview(Settings):
    """Lists the commands and the recipes of the package. With the name of a recipe, prints that recipe.

    With the name of a command, runs it: python -m sr_dist train demo is python -m sr_dist.train demo.

    A recipe of your own begins as a copy: python -m sr_dist esrgan_x4 > mine.yaml
    """

    recipe: Annotated[str | None, Word("RECIPE")] = None
    """A recipe to print."""


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    names = [name for name, _ in commands()]
    for module in words[:1] and (words[0], f"sr_dist.{words[0]}"):
        if module in names:
            sys.argv[1:] = words[1:]
            runpy.run_module(module, run_name="__main__", alter_sys=True)  # in this process: Python's own options count
            return 0
    return cli.run(Overview, overview, argv)


def overview(options: Overview) -> None:
    if options.recipe is None:
        print(text())
    elif options.recipe in shipped.names():
        print(copy_of(options.recipe), end="")
    else:
        names = [*shipped.names(), *(name.removeprefix("sr_dist.") for name, _ in commands())]
        raise UserError(f"RECIPE: the package has no recipe or command '{options.recipe}'{nearest(options.recipe, names)}")


def copy_of(recipe: str) -> str:
    """The text of a recipe for a file anywhere: editors find the schema where it is installed."""
    content = (shipped.folder() / f"{recipe}.yaml").read_text(encoding="utf-8")
    return content.replace(f"$schema={shipped.SCHEMA}\n", f"$schema={shipped.folder() / shipped.SCHEMA}\n", 1)


def text() -> str:
    lines = dict(commands())
    width = max(map(len, lines))
    recipes = textwrap.wrap(" ".join(shipped.names()), WIDTH - 2)
    return "\n".join(
        [
            "Commands (python -m COMMAND --help):",
            *(f"  {name:<{width}}  {line}" for name, line in lines.items()),
            "",
            "Recipes (python -m sr_dist RECIPE prints one; python -m sr_dist.train RECIPE trains it):",
            *(f"  {line}" for line in recipes),
        ]
    )


def commands() -> Iterator[tuple[str, str]]:
    """Every command and the first sentence of its help, read without importing it."""
    for package in FOLDERS:
        spec = importlib.util.find_spec(package)
        assert spec and spec.origin
        for path in sorted(Path(spec.origin).parent.glob("[!_]*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
                settings = next(node for node in tree.body if isinstance(node, ast.ClassDef))
                yield f"{package}.{path.stem}", shipped.first_sentence(ast.get_docstring(settings) or "")


if __name__ == "__main__":
    sys.exit(main())
