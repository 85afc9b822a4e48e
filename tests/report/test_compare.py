import html
import json
import os
import re
import shutil

import pytest
from report.browser import browser, needs_chromium
from report.results import HOSTILE, NEW, results

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.report import compare as module
from lit_compress.report.compare import compare_runs


@pytest.fixture(scope="session")
def compared(finished, tmp_path_factory):
    """Two copies of a run, of which one has a report already, and their comparison."""
    root = tmp_path_factory.mktemp("compared")
    for name in ("measured", "known"):
        shutil.copytree(finished, root / name)
    known = {name: value for name, value in results(run="runs/known").items() if name not in NEW}
    (root / "known" / "report").mkdir()
    (root / "known" / "report" / "report.json").write_text(json.dumps(known))
    main(["compare", str(root / "measured"), str(root / "known"), f"--output={root / 'out'}"])
    return root


def test_both_runs_are_in_all_three_files(compared):
    found = json.loads((compared / "out/report.json").read_text())
    assert list(found) == ["measured", "known"]
    assert found["known"]["models"] == results()["models"]
    assert (compared / "measured/report/report.html").is_file()
    for name in ("report.md", "report.html"):
        text = (compared / "out" / name).read_text()
        assert "measured" in text
        assert "known" in text
        assert "loses between 1.0 and 3.0 points" in text


def test_other_data_is_not_on_the_same_front(compared):
    found = json.loads((compared / "out/report.json").read_text())
    # 16 rows of one file and 400 of another: each is compared with its own dense model alone.
    text = (compared / "out/report.html").read_text()
    assert len(re.findall(r'<section id="group-\d+"', text)) == 2
    assert set(found["known"]["pareto"]) == {"size", "latency"}


def test_the_page_has_a_front_for_size_and_latency(compared):
    text = (compared / "out/report.html").read_text()
    assert {"figure-size-0", "figure-latency-0"} <= set(re.findall(r'id="(figure-[^"]+)"', text))
    assert HOSTILE not in text


def test_nothing_is_measured_twice(compared, monkeypatch):
    monkeypatch.setattr(module, "measure_run", None)
    compare_runs([str(compared / "measured"), str(compared / "known")], str(compared / "again"))
    assert (compared / "again/report.md").is_file()
    compare_runs([str(compared / "known")], str(compared / "again"))  # replaces its own
    assert list(json.loads((compared / "again/report.json").read_text())) == ["known"]


@pytest.mark.parametrize("change", ["older", "damaged", "earlier version"])
def test_a_report_that_is_not_up_to_date_is_made_again(change, compared, tmp_path, monkeypatch):
    run = shutil.copytree(compared / "known", tmp_path / "run")
    saved = run / "report" / "report.json"
    if change == "older":
        os.utime(saved, (0, 0))
    else:
        saved.write_text("{" if change == "damaged" else json.dumps(results(schema=1)))
    asked = []

    def measured(*arguments, **options):
        asked.append(arguments[0])
        return results()

    monkeypatch.setattr(module, "measure_run", measured)
    compare_runs([str(run)], str(tmp_path / "out"))
    assert asked == [run]


def test_two_runs_of_one_name_are_told_apart(compared, monkeypatch):
    monkeypatch.chdir(compared)
    for folder in ("one", "two"):
        shutil.copytree("known", f"{folder}/student")
    compare_runs(["one/student", "two/student/"], "both")
    assert list(json.loads((compared / "both/report.json").read_text())) == ["one/student", "two/student"]


def test_a_run_given_twice(compared):
    with pytest.raises(UserError, match="names a run twice"):
        compare_runs([str(compared / "known"), str(compared / "known") + "/"], "out")


def test_no_such_run(tmp_path):
    with pytest.raises(SystemExit, match=r"--run.*nowhere"):
        main(["compare", str(tmp_path / "nowhere"), f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def two_classes(**changes):
    """With a verdict as long as they come."""
    given = results(labels=["bad", "good"], **changes)
    for entry in given["comparison"]["metrics"].values():
        few = {"low": -0.031, "high": 0.12, "few": True, "worse": 0, "better": 4, "p": 0.125}
        entry["differences"]["compressed"] |= few
    return given


VERDICT = "undecided, between a loss of 3.1 points and a gain of 12.0: only 4 predictions changed, 0 for the worse"


@pytest.fixture
def two(tmp_path, compared):
    for name in ("poor-mans-bert-without-the-upper-half", "oberta"):
        shutil.copytree(compared / "known", tmp_path / name)
        given = two_classes(run=name)
        given["models"]["compressed"]["size"]["model"] |= {"parameters": 109_483_778, "compressed_bytes": 438_000_000}
        (tmp_path / name / "report" / "report.json").write_text(json.dumps(given))
    return tmp_path


def test_the_tables_fit_a_window_with_the_whole_verdict(two, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    compare_runs([str(path) for path in sorted(two.iterdir())], str(two / "out"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    good, small, *_ = "\n".join(lines).split("\n\n")
    column = next(line for line in lines if "to dense" in line).index("to dense")
    said = [line[column:].strip() for line in good.partition("─\n")[2].splitlines()]
    assert " ".join(filter(None, said)) == f"{VERDICT} {VERDICT}"
    assert "2.00x" in small


def test_the_page_has_the_whole_verdict_in_a_cell_that_wraps(two):
    compare_runs([str(path) for path in sorted(two.iterdir())], str(two / "out"))
    text = (two / "out" / "report.html").read_text()
    cells = re.findall(rf"<td([^>]*)>{re.escape(VERDICT)}</td>", text)
    assert cells
    assert set(cells) == {' class="long"'}
    assert re.search(r"^td\.long[^{]*\{ white-space: normal;", text, re.MULTILINE)


@needs_chromium
def test_the_page_shows_the_whole_verdict(two, tmp_path_factory):
    compare_runs([str(path) for path in sorted(two.iterdir())], str(two / "out"))
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.open((two / "out/report.html").as_uri(), 1400)
        assert VERDICT in page.evaluate("document.body.innerText")
        cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert page.evaluate(cut) == 0


def test_f1_says_of_which_class(two):
    compare_runs([str(two / "oberta")], str(two / "out"))
    for name in ("report.html", "report.md"):
        assert html.unescape((two / "out" / name).read_text()).count("f1 of 'good'") == 1


def timed(batch):
    given = two_classes()
    for model, milliseconds in (("dense", 30.0), ("compressed", 10.0)):
        given["models"][model]["latency_ms"] = {batch: milliseconds, "64": milliseconds}
    return given


def test_a_speed_says_the_batch_that_was_measured(two):
    (two / "oberta/report/report.json").write_text(json.dumps(timed("8")))
    compare_runs([str(path) for path in sorted(two.iterdir())], str(two / "out"))
    table = (two / "out/report.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith(("| oberta", "| poor"))]
    assert {line.count("3.00x (batch 8)") for line in rows if "MB" in line and "oberta" in line} == {1}
    assert {line.count("2.00x |") for line in rows if "MB" in line and "poor" in line} == {1}
    captions = html.unescape((two / "out/report.html").read_text())
    assert "latency as a ratio to dense, batch 8" in captions
    assert "latency as a ratio to dense, batch 1;" in captions


def test_a_metric_that_one_run_lacks_is_a_dash(two):
    given = two_classes()
    for model in given["models"].values():
        del model["accuracy"]["f1"]
        model["accuracy"]["no_answer_f1"] = 0.5
    given["comparison"]["metrics"]["no_answer_f1"] = given["comparison"]["metrics"].pop("f1")
    given["points"]["no_answer_f1"] = 100.0
    (two / "oberta/report/report.json").write_text(json.dumps(given))
    runs = [str(two / "poor-mans-bert-without-the-upper-half"), str(two / "oberta")]
    for order in (runs, runs[::-1]):
        compare_runs(order, str(two / "out"))
        lines = (two / "out/report.md").read_text().partition("All metrics")[2].splitlines()
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        header, rows = table[0], {row[0]: dict(zip(table[0][1:], row[1:], strict=True)) for row in table[2:4]}
        assert sorted(header[1:]) == ["accuracy", "f1 of 'good'", "no_answer_f1"]
        assert rows["oberta"]["f1 of 'good'"] == rows["poor-mans-bert-without-the-upper-half"]["no_answer_f1"] == "–"
        assert rows["oberta"]["no_answer_f1"] == "50.0"
