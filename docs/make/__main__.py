"""Writes the generated pages of the manual and the schema of recipes:  python -m docs.make"""

from __future__ import annotations

import json

from docs.make import plan_page
from docs.make.pages import ROOT, pages
from docs.make.schema import schema


def files() -> dict[str, str]:
    """Every generated file, by its path in the repository, except docs/plan.md, which takes a minute."""
    return {**pages(), "configs/schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"}


if __name__ == "__main__":
    for name, text in {**files(), plan_page.PATH: plan_page.page()}.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(name)
