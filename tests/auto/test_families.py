import json
from pathlib import Path

import pytest
from auto.family import family

from lit_compress.cli import main


def finished(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "compress.json").write_text("{}")
    (folder / "report.json").write_text(json.dumps(family() | {"recommended": "4x", "why": "the fastest"} | changes))
    return str(folder)


def test_families_of_two_tasks_are_in_one_table(tmp_path, capsys):
    runs = finished(tmp_path / "news"), finished(tmp_path / "films", model="other", command="lit_compress compress two")
    main(["compare", *runs, "--output", str(tmp_path / "both")])
    said = capsys.readouterr().out
    lines = said.splitlines()
    (line,) = (line for line in lines if "films" in line and "4x *" in line)
    assert line.split() == ["films", "4x", "*", "accuracy", "89.5", "(87.5–91.5)", "-0.5", "4.00", "8.00", "5.0", "MB"]
    assert max(map(len, lines[: lines.index("* is the recommended member of its family.")])) <= 80
    assert "news: Recommended: 4x" in said
    page, text = ((tmp_path / "both" / name).read_text() for name in ("report.html", "report.md"))
    assert "<svg" in page
    for content in (page, text):
        assert "lit_compress compress two" in content
    assert list(json.loads((tmp_path / "both/report.json").read_text())) == ["news", "films"]
    main(["compare", *runs, "--output", str(tmp_path / "both")])  # replaces its own


def test_a_member_whose_score_is_not_defined_has_a_dash(tmp_path, capsys):
    members = [each | {"score": None, "interval": [None, None], "loss": None} for each in family()["members"]]
    runs = finished(tmp_path / "news"), finished(tmp_path / "films", members=members, recommended=None)
    main(["compare", *runs, "--output", str(tmp_path / "both")])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "films" in line and " 4x " in line)
    assert line.split()[2:5] == ["accuracy", "–", "–"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "report.json").unlink(), "has no report.json yet; run its"),
        (lambda folder: (folder / "report.json").write_text("{"), "is damaged or of another version"),
        (
            lambda folder: (folder / "compress.json").unlink(),
            "is not a family of `lit_compress compress`, and others are",
        ),
    ],
)
def test_what_is_no_finished_family_is_one_line(spoil, said, tmp_path):
    runs = finished(tmp_path / "a"), finished(tmp_path / "b")
    spoil(Path(runs[1]))
    with pytest.raises(SystemExit, match=said) as caught:
        main(["compare", *runs, "--output", str(tmp_path / "both")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "both").exists()


def test_an_option_of_runs_is_refused_and_files_of_others_stay(tmp_path):
    run = finished(tmp_path / "a")
    with pytest.raises(SystemExit, match="--dense has no effect on families"):
        main(["compare", run, "--output", str(tmp_path / "both"), "--dense=x"])
    (tmp_path / "both").mkdir()
    (tmp_path / "both/report.md").write_text("# My thesis\n")
    with pytest.raises(SystemExit, match=r"report\.md"):
        main(["compare", run, "--output", str(tmp_path / "both")])
    assert (tmp_path / "both/report.md").read_text() == "# My thesis\n"
