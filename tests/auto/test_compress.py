"""The command as a stranger runs it, on a tiny model: everything is real but the size."""

import json
from pathlib import Path

import pytest
import yaml

from lit_compress.cli import main

GOOD = ["good film", "great story", "lovely scene", "a funny actor", "the plot was clever", "a warm film"]
BAD = ["bad film", "awful story", "dull scene", "a boring actor", "the plot was stupid", "a cold film"]


def _rows(repetitions: int) -> str:
    pairs = [
        (text, label) for good, bad in zip(GOOD, BAD, strict=True) for text, label in ((good, "up"), (bad, "down"))
    ]
    return "text,label\n" + "".join(f"{text} {i},{label}\n" for i in range(repetitions) for text, label in pairs)


@pytest.fixture(scope="module")
def family(tiny_model, tmp_path_factory):
    """A family that was made by the command in a folder of its own, and what the command said."""
    folder = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("lit_compress.auto.times._LEAST", 6)
        Path("train.csv").write_text(_rows(8))
        Path("val.csv").write_text(_rows(4))
        main(
            f"compress --model={tiny_model} --train=train.csv --val=val.csv --run=fast "
            "--speedup=1.3 --minutes=0.01 --threads=1 --shape=2x8".split()
        )
    return folder


def test_the_family_is_exported_measured_and_reported(family):
    results = json.loads((family / "fast/report.json").read_text())
    members = {each["name"]: each for each in results["members"]}
    assert list(members) == ["int8", "1_3x"]
    assert results["validation"]["rows"] == 48
    for each in members.values():
        assert Path(family, each["file"]).is_file()
        assert 0 <= each["score"] <= 1
        assert each["speedup"] > 0
    page = (family / "fast/report.html").read_text()
    assert "<title>Family of" in page
    stages = yaml.safe_load((family / "fast/recipe.yaml").read_text())["stages"]
    assert "StructuredPruning" in str(stages) or "LayerDropping" in str(stages) or members["1_3x"]["same_as"] == "int8"
