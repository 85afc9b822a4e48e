import json

import pytest
from auto.family import family

from lit_compress.auto.choose import choose, loss_of
from lit_compress.auto.family_report import save_page, table
from lit_compress.errors import UserError


def test_the_table_compares_with_both_baselines():
    made = table(family())
    rows = {row[0]: row for row in made.rows}
    assert made.header == ("", "accuracy", "gain", "x dense", "x eager", "ms", "texts/s", "file")
    assert rows["dense"][3:6] == ("1.00", "2.00", "8.00")
    assert rows["4x"] == ("4x", "89.5 (87.5–91.5)", "-0.5", "4.00", "8.00", "2.00", "800", "5.0 MB")


def test_the_page_says_what_is_recommended_and_escapes_what_it_was_given(tmp_path, capsys):
    save_page(family(), tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    said = capsys.readouterr().out
    for content in (page, text, said):
        assert "Recommended: 4x, 4.0x the speed of the dense model in fp32" in content.replace("\n", " ")
        assert "8.0x that of Hugging Face eager" in content.replace("\n", " ")
    assert "8x: 4x is that fast already, and is this member." in said
    assert "The recommended model: runs/fast/exports/4x" in said
    assert "<script>" not in page
    assert "onnxruntime.InferenceSession" in text
    assert json.loads((tmp_path / "report.json").read_text())["recommended"] == "4x"
    assert max(map(len, said.splitlines()[:9])) <= 80
    assert "…" not in said
    save_page(family(), tmp_path)  # replaces its own


def test_a_member_that_misses_what_was_asked_says_so(tmp_path, capsys):
    results = family()
    results["members"][1] |= {"asked": 5.0, "planned_twice": True}
    save_page(results, tmp_path)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "4.00x where 5x was asked; planned a second time, by what the first plan measured." in said


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "report.md").write_text("# My thesis\n")
    with pytest.raises(UserError, match="did not write; choose another --run"):
        save_page(family(), tmp_path)
    assert (tmp_path / "report.md").read_text() == "# My thesis\n"


def test_nothing_is_recommended_when_nothing_is_good_enough(tmp_path, capsys):
    results = family()
    results |= choose(results["members"], max_loss=0.0)
    assert results["recommended"] == "int8"
    results |= choose(results["members"][1:], max_loss=0.1)
    save_page(results, tmp_path)
    assert "Recommended: the dense model; no member is faster and loses at most 0.1 points" in capsys.readouterr().out


def test_a_loss_is_in_points_or_in_hundredths_of_the_value():
    difference = {"value": -0.02, "low": -0.03, "high": -0.01}
    entry = {"models": {"dense": {"value": 4.0}}, "differences": {"4x": difference}}
    results = {"score": "m", "comparison": {"metrics": {"m": entry}}, "points": {"m": 100.0}, "lower_is_better": []}
    assert loss_of(results, "4x") == (pytest.approx(2.0), "loses between 1.0 and 3.0 points")
    results |= {"points": {"m": None}, "lower_is_better": ["m"]}
    assert loss_of(results, "4x")[0] == pytest.approx(-0.5)


def undefined(results, *names):
    """A family in which the score of some is not defined, as a correlation with one answer to all is not."""
    nothing = {"value": None, "low": None, "high": None}
    said = {"score": None, "interval": [None, None], "loss": None, "said": "not defined on this data"}
    for member in results["members"]:
        member |= said if member["name"] in names else {}
    if "dense" in names:
        results["comparison"]["metrics"]["accuracy"]["models"]["dense"] = nothing
    return results


def test_a_score_that_is_not_defined_is_a_loss_that_nobody_accepts():
    nothing = {"value": None, "low": None, "high": None}
    entry = {"models": {"dense": {"value": 0.9}}, "differences": {"4x": nothing}}
    results = {"score": "m", "comparison": {"metrics": {"m": entry}}, "points": {"m": 100.0}, "lower_is_better": []}
    assert loss_of(results, "4x") == (None, "not defined on this data")
    entry["models"]["dense"]["value"] = results["points"]["m"] = None
    assert loss_of(results, "4x") == (None, "not defined on this data")
    members = undefined(family(), "4x", "8x")["members"]
    assert choose(members, max_loss=100.0)["recommended"] == "int8"
    assert choose(members[1:], max_loss=100.0)["recommended"] is None


@pytest.mark.parametrize("names", [("4x", "8x"), ("dense", "int8", "4x", "8x")])
def test_a_page_has_members_whose_score_is_not_defined(names, tmp_path, capsys):
    results = undefined(family(), *names)
    save_page(results | choose(results["members"], max_loss=1.0), tmp_path)
    assert "4x: 1 of 2 layers" in (said := capsys.readouterr().out)
    assert "not defined on this data" in said
    row = next(row for row in table(results).rows if row[0] == "4x")
    assert row[1:3] == ("–", "–")
    assert json.loads((tmp_path / "report.json").read_text())["members"][1]["loss"] is None
