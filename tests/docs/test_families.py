"""The table of docs/families.md is that of lit_compress/models/layout.py."""

import pytest
from docs.blocks import ROOT
from models.families import build

from lit_compress.errors import UserError
from lit_compress.models.attention import attention_modules
from lit_compress.models.layout import LAYOUTS

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/families.md").read_text().splitlines()
    if line.startswith("| `") and "model_type" not in line
]


def test_every_family_has_a_row():
    assert {row[0].strip("`") for row in ROWS} == set(LAYOUTS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_says_what_the_family_can(row):
    family, masks, attention, layers, heads, neurons, _, fused = row
    unsupported = LAYOUTS[family.strip("`")].unsupported
    assert masks.startswith("yes") == ("attention_masks" not in unsupported)
    assert heads.startswith("yes") == ("heads" not in unsupported)
    assert ("(7)" in heads) == ("uneven_heads" in unsupported)
    assert neurons.startswith("yes") == ("neurons" not in unsupported)
    assert layers.startswith("yes") == ("layers" not in unsupported)
    assert ("(2)" in layers) == ("first_layer" in unsupported)
    assert fused.startswith("yes") == ("fused" not in unsupported)
    try:
        attention_modules(build(family.strip("`")), "attention")
    except UserError:
        assert attention == "no (4)"
    else:
        assert attention == "yes"
