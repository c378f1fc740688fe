"""The page Plan has the command's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.make import plan_page

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_page_plan_is_up_to_date():
    assert (ROOT / plan_page.PATH).read_text(encoding="utf-8") == plan_page.page(), "python -m docs.make writes it"
