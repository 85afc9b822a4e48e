import pytest
from rich.console import Console

from lit_compress.report.terminal import screen_table

HEADER = ("name", "encoder sparsity", "what it says", "ms")
ROWS = [
    ("poor-mans-bert-without-the-upper-half", "80.0%", "undecided, between a loss and a gain", "12345.6 ms"),
    ("[bold]x", "0.0%", "", "1.0 ms"),
]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_cut(width, capsys):
    Console(width=width).print(screen_table("[red]title", HEADER, ROWS, words=("name", "what it says")))
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in shown
    for text in ("[red]title", "[bold]x", "12345.6 ms", "1.0 ms", "80.0%", "undecided,"):
        assert text in shown
    for word in ("encoder", "sparsity"):
        assert word in shown


def test_figures_stay_whole_and_names_go_on_below(capsys):
    Console(width=50).print(screen_table("", HEADER, ROWS, words=("name", "what it says")))
    lines = capsys.readouterr().out.splitlines()
    names = "".join(line.split(" ")[0] for line in lines)
    assert "poor-mans-bert-without-the-upper-half" in names
