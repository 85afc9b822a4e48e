import copy
import re

import pytest

from lit_compress.report.markdown import markdown, print_table, rows


def size(parameters, nonzeros, dense, values, index):
    return {
        "parameters": parameters,
        "nonzeros": nonzeros,
        "dense_bytes": dense,
        "value_bytes": values,
        "index_bytes": index,
        "compressed_bytes": values + index,
    }


DENSE = {
    "accuracy": {"accuracy": 0.91239, "f1": 0.87654},
    "size": {
        "encoder": size(1_234_567, 1_234_500, 4_938_268, 4_938_268, 0),
        "model": size(2_345_678, 2_345_000, 9_382_712, 9_382_712, 0),
    },
    "latency_ms": {"1": 12.34, "32": 345.67},
}
COMPRESSED = {
    "accuracy": {"accuracy": 0.81239, "f1": 0.77654},
    "size": {
        "encoder": size(1_234_567, 123_450, 4_938_268, 123_450, 154_321),
        "model": size(2_345_678, 1_333_333, 9_382_712, 4_567_894, 154_321),
    },
    "latency_ms": {"1": 11.22, "32": 333.44},
    "accuracy_quantized_inputs": {"accuracy": 0.80139, "f1": 0.76543},
}
RESULTS = {
    "run": "runs/x7",
    "config": "runs/x7/config.yaml",
    "command": "lit_compress report --run runs/x7",
    "machine": {"device": "Some CPU", "threads": "2 of 4", "python": "3.11.1", "torch": "9.8.7"},
    "data": {"validation_rows": 872, "max_length": 66},
    "sparsity": {"layer.0": 0.9},
    "models": {"dense": DENSE, "compressed": COMPRESSED},
}
ROWS = [
    ("accuracy", "0.9124", "0.8124"),
    ("accuracy, inputs quantized too", "", "0.8014"),
    ("f1", "0.8765", "0.7765"),
    ("f1, inputs quantized too", "", "0.7654"),
    ("encoder linears: parameters", "1,234,567", "1,234,567"),
    ("encoder linears: non-zeros", "1,234,500", "123,450"),
    ("encoder linears: in fp32", "4.94 MB", "4.94 MB"),
    ("encoder linears: values + index", "4.94 MB", "0.28 MB"),
    ("encoder linears: against dense fp32", "", "17.8x (values 40.0x)"),
    ("whole model: parameters", "2,345,678", "2,345,678"),
    ("whole model: non-zeros", "2,345,000", "1,333,333"),
    ("whole model: in fp32", "9.38 MB", "9.38 MB"),
    ("whole model: values + index", "9.38 MB", "4.72 MB"),
    ("whole model: against dense fp32", "", "2.0x (values 2.1x)"),
    ("latency, batch 1 x 66 tokens", "12.3 ms", "11.2 ms"),
    ("latency, batch 32 x 66 tokens", "345.7 ms", "333.4 ms"),
]


def alone():
    """A pruned model without a dense one and without quantizers."""
    results = copy.deepcopy(RESULTS)
    del results["models"]["dense"]
    del results["models"]["compressed"]["accuracy_quantized_inputs"]
    return results


def test_rows_are_the_figures():
    assert rows(RESULTS) == ROWS


def test_one_model_has_one_column():
    expected = [(name.replace("dense fp32", "own fp32"), last) for name, _, last in ROWS]
    assert rows(alone()) == [row for row in expected if "inputs quantized" not in row[0]]


def test_ratios_are_to_the_dense_model_and_say_so():
    """69.6 MB of dense fp32 became 21 MB of fp32 and 15 MB as it is stored: 4.6 times smaller, and not 1.4."""
    results = copy.deepcopy(RESULTS)
    results["models"]["dense"]["size"]["model"] = size(17_400_000, 17_400_000, 69_600_000, 69_600_000, 0)
    results["models"]["compressed"]["size"]["model"] = size(5_250_000, 5_250_000, 21_000_000, 15_100_000, 0)
    found = {name: cells for name, *cells in rows(results)}
    assert found["whole model: in fp32"] == ["69.60 MB", "21.00 MB"]
    assert found["whole model: values + index"] == ["69.60 MB", "15.10 MB"]
    assert found["whole model: against dense fp32"] == ["", "4.6x"]
    assert found["whole model: against own fp32"] == ["", "1.4x"]
    assert "encoder linears: against own fp32" not in found
    results["reference"] = {"name": "pretrained", "encoder": 4_938_268, "model": 34_800_000}
    found = {name: cells for name, *cells in rows(results)}
    assert found["whole model: against pretrained fp32"] == ["0.5x", "2.3x"]


def test_every_row_of_the_table_has_as_many_cells_as_models():
    lines = [line for line in markdown(RESULTS).splitlines() if line.startswith("|")]
    assert lines[0] == "| | dense | compressed |"
    assert {line.count("|") for line in lines} == {4}
    assert lines[2:] == ["| " + " | ".join(row) + " |" for row in ROWS]


@pytest.mark.parametrize("results", [RESULTS, alone()], ids=["both", "alone"])
def test_no_number_is_made_up(results):
    given = f"{rows(results)} {results['machine']} {results['data']} {results['run']} {results['command']}"
    text = re.sub(r"\b(fp32|int8)\b", "", markdown(results))
    made, known = ({number.rstrip(".,") for number in re.findall(r"\d[\d.,]*", part)} for part in (text, given))
    assert made <= known


def test_where_and_how_figures_were_made():
    text = markdown(RESULTS)
    for fact in (
        "runs/x7/config.yaml",
        "lit_compress report --run runs/x7",
        "Some CPU",
        "2 of 4",
        "torch 9.8.7",
        "872",
    ):
        assert fact in text


def test_notes_and_picture_only_where_they_belong():
    assert "inputs quantized too*" in markdown(RESULTS)
    assert "inputs quantized too" not in markdown(alone())
    assert "(sparsity.png)" in markdown(RESULTS)
    assert "sparsity.png" not in markdown(RESULTS | {"sparsity": {}})


def test_the_terminal_shows_the_same(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "140")
    print_table(RESULTS, tmp_path)
    shown = capsys.readouterr().out
    assert [cell for row in ROWS for cell in row if cell not in shown] == []
    assert "report.md" in shown


def test_names_with_brackets_are_shown_as_they_are(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "140")
    print_table(RESULTS | {"run": "runs/[bold]x7"}, tmp_path)
    assert "runs/[bold]x7" in capsys.readouterr().out


def test_f1_says_of_which_of_two_labels_it_is(capsys, tmp_path):
    two = RESULTS | {"task": "classification", "labels": ["bad", "good|<b>"]}
    assert "- *f1*: of 'good\\|&lt;b>', the second of the two labels." in markdown(two)
    print_table(two, tmp_path)
    assert "*f1*: of 'good" in capsys.readouterr().out
    for other in ({"labels": ["a", "b", "c"]}, {"labels": None}, {"task": "token_classification"}):
        assert "*f1*" not in markdown(two | other)
