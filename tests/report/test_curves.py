import pytest
import yaml
from contracts.training import student_config
from report.results import results
from torch.utils.tensorboard import SummaryWriter

from lit_compress.cli import main
from lit_compress.export.checkpoint import last_checkpoint
from lit_compress.export.run_folder import run_config
from lit_compress.report.curves import curves_figure, training, training_curves

CONFIG = {
    "trainer": {"max_epochs": 2},
    "compression": [
        {"class_path": "lit_compress.MagnitudePruning", "init_args": {"start": "10%", "end": "1 epochs"}},
        {"class_path": "lit_compress.QuantAwareTraining", "init_args": {"start": "50%"}},
        {"class_path": "lit_compress.PatternLock", "init_args": {}},
        {"class_path": "mine.Strategy", "init_args": {"start": 5}},
    ],
}


def ended(step, epoch, whole=True):
    """What the last checkpoint says of where a training ended."""
    loop = {"epoch_loop.batch_progress": {"is_last_batch": whole}, "epoch_progress": {"current": {"ready": epoch}}}
    # A checkpoint at the last batch of an epoch has the number of the one before the next.
    return {"global_step": step, "epoch": max(epoch - 1, 0), "loops": {"fit_loop": loop}}


def write(run, values, first=0):
    with SummaryWriter(str(run)) as writer:
        for step, value in enumerate(values, first):
            writer.add_scalar("train/loss", value, step)
            writer.add_scalar("val/f1", value, step)


def test_what_was_logged_in_two_parts(tmp_path):
    """A resumed run did steps 3 and 4 again."""
    write(tmp_path, [5.0, 4.0, 3.0, 2.5, 2.0])
    write(tmp_path, [2.25, 1.75, 1.5], first=3)
    found = training_curves(tmp_path, "f1", {}, ended(6, 1))
    expected = [[0, 5.0], [1, 4.0], [2, 3.0], [3, 2.25], [4, 1.75], [5, 1.5]]
    assert found == {"values": {"train/loss": expected, "val/f1": expected}, "windows": []}


def test_the_curves_of_a_fit(finished):
    """Its last values are in the events once more, at step 0."""
    found = training_curves(finished, "accuracy", {}, last_checkpoint(finished)[1])
    assert {tag: [step for step, _ in points] for tag, points in found["values"].items()} == {
        "val/loss": [3],
        "val/accuracy": [3],
    }


def test_lightnings_csv(tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,train/loss,val/f1\n0,9,0.5,\n0,19,,0.25\n1,19,0.125,\n")
    found = training_curves(tmp_path, "f1", CONFIG, ended(20, 2))
    assert found["values"] == {"train/loss": [[9, 0.5], [19, 0.125]], "val/f1": [[19, 0.25]]}
    assert found["windows"] == [
        {"name": "MagnitudePruning", "start": 2, "end": 10},
        {"name": "QuantAwareTraining", "start": 10, "end": 20},
    ]


@pytest.mark.parametrize(
    ("trainer", "end", "windows"),
    [
        ({"max_epochs": 4}, ended(20, 2), [(4, 10), (20, 20)]),  # stopped early
        ({"max_epochs": 4, "max_steps": 30}, ended(20, 2), [(3, 10), (15, 20)]),
        ({"max_epochs": -1, "max_steps": 30}, ended(30, 3), [(3, 10), (15, 30)]),
        ({"max_epochs": -1, "max_steps": 25}, ended(25, 2, whole=False), [(12, 25)]),  # epochs are of unknown length
        ({"max_epochs": 4}, ended(13, 1, whole=False), []),
        ({"max_epochs": 4}, ended(0, 0), []),
    ],
)
def test_windows_are_those_of_the_run_as_it_was_planned(tmp_path, trainer, end, windows):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n9,0.5\n")
    found = training_curves(tmp_path, "f1", CONFIG | {"trainer": trainer}, end)["windows"]
    assert [(window["start"], window["end"]) for window in found] == windows


def test_a_window_that_was_not_reached_is_none(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n9,0.5\n")
    entry = {"class_path": "MagnitudePruning", "init_args": {"start": "30 steps", "end": "40 steps"}}
    assert training_curves(tmp_path, "f1", {"compression": [entry]}, ended(20, 1))["windows"] == []


def test_windows_of_a_fit_that_stops_early(tmp_path, tiny_teacher, tiny_data):
    """At step 4 of 8."""
    window = {"sparsity": 0.5, "start": "12.5%", "end": "25%", "every": "1 steps"}
    stop = {"monitor": "val/loss", "mode": "min", "stopping_threshold": 1e6}
    config = student_config(
        tiny_teacher,
        tiny_data,
        compression=[{"class_path": "MagnitudePruning", "init_args": window}],
        trainer={
            "max_epochs": 2,
            "accelerator": "cpu",
            "callbacks": [{"class_path": "EarlyStopping", "init_args": stop}],
        },
    )
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    main(["fit", f"--config={tmp_path / 'task.yaml'}", f"--run={run}"])
    checkpoint = last_checkpoint(run)[1]
    assert checkpoint["global_step"] == 4
    found = training_curves(run, "accuracy", run_config(run, {}), checkpoint)
    assert found["windows"] == [{"name": "MagnitudePruning", "start": 1, "end": 2}]


def test_no_logger(tmp_path):
    assert training_curves(tmp_path, "f1", CONFIG, ended(20, 2)) is None
    assert training(results(curves=None)) is None
    with curves_figure(results(curves=None)) as figure:
        assert figure is None


def test_a_long_curve_is_thinned(tmp_path):
    lines = "".join(f"{step},{step}\n" for step in range(1201))
    (tmp_path / "metrics.csv").write_text("step,train/loss\n" + lines)
    points = training_curves(tmp_path, "f1", {}, ended(1201, 1))["values"]["train/loss"]
    assert 400 <= len(points) <= 500
    assert points[0] == [0, 0.0]


@pytest.mark.parametrize(("tags", "axes"), [(["train/loss", "val/accuracy"], 2), (["val/loss"], 1), (["val/f1"], 1)])
def test_the_dense_model_is_a_line_beside_the_score(tags, axes):
    curves = {"values": {tag: [[0, 0.5], [9, 0.75]] for tag in tags}, "windows": []}
    with curves_figure(results(curves=curves)) as figure:
        assert figure is not None
        assert len(figure.axes) == axes
        drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[-1].lines}
    if tags[-1] == "val/accuracy":
        assert drawn["dense"] == [91.0, 91.0]
        assert drawn["validation"] == [50.0, 75.0]
