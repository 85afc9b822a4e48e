import re
import tempfile
from pathlib import Path

import pytest
from contracts.training import data, fit, student

from lit_compress import progress
from lit_compress.progress import ProgressLines
from lit_compress.strategies import CompressionMonitor, MagnitudePruning


@pytest.fixture
def lines(tiny_teacher, tiny_data, tmp_path, capsys):
    """What a fit of two epochs of four batches prints, and its trainer."""

    def run(bar, **options):
        strategies = [MagnitudePruning(sparsity=0.5, schedule="constant", end="0%"), CompressionMonitor(1), bar]
        module = student(tiny_teacher, tiny_teacher)
        options = {"enable_progress_bar": True} | options
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        trainer = fit(module, data(tiny_data, tiny_teacher), strategies, root, **options)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")], trainer

    return run


def figures(line):
    return {name: float(value) for name, value in re.findall(r"(\S+) (-?\d[\d.e+-]*)(?:  |$)", line)}


def test_a_line_for_each_batch_and_each_validation(lines):
    printed, _ = lines(ProgressLines(seconds=0))
    assert [" ".join(line.split()[:4]) for line in printed if " batch " in line] == [
        f"epoch {epoch}/2 batch {batch}/4" for epoch in (1, 2) for batch in (1, 2, 3, 4)
    ]
    assert [line.split()[1] for line in printed if " validated " in line] == ["1/2", "2/2"]


def test_a_run_by_steps_counts_to_its_last(lines):
    printed, _ = lines(ProgressLines(seconds=0), max_epochs=-1, max_steps=3)
    assert [" ".join(line.split()[:4]) for line in printed if " batch " in line] == [
        f"epoch 1 batch {batch}/3" for batch in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("options", "total"), [({"max_epochs": 1}, 4), ({"max_epochs": -1, "max_steps": 3}, 3)], ids=["epochs", "steps"]
)
def test_a_run_that_goes_on_inside_an_epoch_counts_to_its_end(
    options, total, tiny_teacher, tiny_data, tmp_path, capsys
):
    def run(name, **more):
        module, bar = student(tiny_teacher, tiny_teacher), ProgressLines(seconds=0)
        fit(module, data(tiny_data, tiny_teacher), [bar], tmp_path / name, enable_progress_bar=True, **options, **more)

    run("whole")
    capsys.readouterr()
    run("rest", ckpt_path=tmp_path / "whole" / "step=2.ckpt")
    printed = [line for line in capsys.readouterr().out.splitlines() if " batch " in line]
    assert [re.search(r"batch \S+", line)[0] for line in printed] == [
        f"batch {batch}/{total}" for batch in range(3, total + 1)
    ]


def test_a_line_has_the_parts_of_the_loss_and_the_sparsity(lines):
    printed, _ = lines(ProgressLines(seconds=0))
    for line in printed:
        assert {"train/loss", "train/task", "train/kd", "train/hidden"} <= figures(line).keys()
    assert {figures(line)["sparsity"] for line in printed[1:]} == {0.5}


def test_figures_are_those_of_the_trainer(lines):
    printed, run = lines(ProgressLines(seconds=0))
    shown = figures(printed[-1])
    assert {"val/loss", "val/accuracy", "val/f1", "val/matthews"} <= shown.keys()
    for name, value in shown.items():
        assert value == pytest.approx(float(run.callback_metrics[name]), rel=1e-3)


def test_lines_keep_their_distance(lines):
    printed, _ = lines(ProgressLines(seconds=3600))
    assert [" ".join(line.split()[2:4]) for line in printed if " batch " in line] == ["batch 1/4"]
    assert len(printed) == 3  # validations are rare enough to be shown always


def test_the_sanity_check_is_silent(lines):
    printed, _ = lines(ProgressLines(seconds=3600), num_sanity_val_steps=2)
    assert " batch 1/4 " in printed[0]


def test_disabled_and_enabled_again(lines):
    progress = ProgressLines(seconds=0)
    progress.disable()
    assert lines(progress)[0] == []
    progress.enable()
    assert len(lines(progress)[0]) == 10


@pytest.mark.parametrize(("limit", "total"), [(2, "2"), (0.5, "2")])
def test_a_shortened_epoch(lines, limit, total):
    printed, _ = lines(ProgressLines(seconds=0), limit_train_batches=limit)
    assert [line.split()[3] for line in printed if " batch " in line] == [f"{b}/{total}" for b in (1, 2)] * 2


def test_training_in_steps_without_a_number_of_epochs(lines):
    printed, _ = lines(ProgressLines(seconds=0), max_epochs=None, max_steps=5)
    assert len([line for line in printed if " batch " in line]) == 5
    assert not [line for line in printed if "None" in line or "/-1" in line]


def test_counted_work_in_a_log_file(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with progress.counted("Predicting", 5_000, "rows", done=1_000) as tell:
        tell(2_000)
    line = capsys.readouterr().err
    assert re.fullmatch(r"Predicting: 2,000 of 5,000 rows, [\d.,e+]+ a second, 0:00:\d\d left\n", line), line


def test_short_work_says_nothing_in_a_log_file(capsys):
    with progress.counted("Predicting", 10) as tell:
        for done in range(10):
            tell(done + 1)
    assert capsys.readouterr() == ("", "")


def test_counted_work_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.counted("Predicting", 10, "rows") as tell:
        tell(10)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "rows/s" in shown
