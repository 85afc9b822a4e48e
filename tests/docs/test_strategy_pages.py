"""A reader of a strategy's page learns at once what it makes faster."""

import pytest
from docs.blocks import ROOT

OTHERS = ("index", "compression-monitor")  # no strategies of their own
PAGES = [page for page in sorted((ROOT / "docs/strategies").glob("*.md")) if page.stem not in OTHERS]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_it_says_what_becomes_faster_before_anything_else(page):
    beginning = page.read_text().split("\n## ")[0].split("```")[0]
    assert "**Faster:**" in beginning
