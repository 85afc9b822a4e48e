import json

import pytest
from matplotlib.image import imread

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.planning import measure_latency
from lit_compress.planning.latency_command import parse_shape
from lit_compress.planning.latency_table import LatencyTable


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Takes 2 ms, and one for each layer that is left."""

    def seconds(config, structures, target, rows, tokens, threads):
        times = {name: 0.002 + 0.001 * len(structure.kept) for name, structure in structures.items()}
        return measure_latency.Measured(times)

    monkeypatch.setattr(measure_latency, "measure_structures", seconds)
    monkeypatch.setattr(measure_latency, "HF_ASSETS_CACHE", str(tmp_path / "cache"))


def test_the_table_is_printed_and_saved(tiny_teacher, tmp_path, capsys):
    output = tmp_path / "table"
    main(["latency", str(tiny_teacher), "--target=hf", "--shape=2x16", "--threads=1", f"--output={output}"])
    said = capsys.readouterr().out
    assert "hf at 2 x 16, 1 threads, " in said
    assert "2 layers of 2 heads and 64 neurons" in said
    assert "4.00 ms" in said
    assert max(len(line) for line in said.splitlines() if line.startswith(("│", "┃", "┏", "└"))) <= 80
    table = LatencyTable.from_json(json.loads((output / "latency.json").read_text()))
    assert table.settings["tokens"] == "16"
    assert imread(output / "latency.png").shape[2] >= 3
    main(["latency", str(tiny_teacher), "--target=hf", "--shape=2x16", "--threads=1", f"--output={output}"])
    assert "earlier measurement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shape=128"], "--shape: '128' must be ROWSxTOKENS"),
        (["--shape=0x16"], "--shape: '0x16' must be ROWSxTOKENS"),
        (["--shape=1x129"], "--shape: 129 is above 128, the longest input of model "),
        (["--threads=0"], "--threads: [0] must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_one_line(options, words, tiny_teacher):
    with pytest.raises(SystemExit) as caught:
        main(["latency", str(tiny_teacher), *options])
    line = str(caught.value.code)
    assert words in line
    assert "\n" not in line


def test_an_unknown_target_and_a_missing_model_are_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["latency", "m", "--target=tensorrt"])
    assert "tensorrt" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="does not exist"):
        main(["latency", str(tmp_path / "nothing")])


def test_a_shape():
    assert parse_shape("16x128") == (16, 128)
    with pytest.raises(UserError, match="--shape"):
        parse_shape("1x-8")
