import pytest
from report.results import results
from torch.utils.tensorboard import SummaryWriter

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


def write(run, values, first=0):
    with SummaryWriter(str(run)) as writer:
        for step, value in enumerate(values, first):
            writer.add_scalar("train/loss", value, step)
            writer.add_scalar("val/f1", value, step)


def test_what_was_logged_in_two_parts(tmp_path):
    """A resumed run did steps 3 and 4 again."""
    write(tmp_path, [5.0, 4.0, 3.0, 2.5, 2.0])
    write(tmp_path, [2.25, 1.75, 1.5], first=3)
    found = training_curves(tmp_path, "f1", {})
    expected = [[0, 5.0], [1, 4.0], [2, 3.0], [3, 2.25], [4, 1.75], [5, 1.5]]
    assert found == {"values": {"train/loss": expected, "val/f1": expected}, "windows": []}


def test_the_curves_of_a_fit(finished):
    """Its last values are in the events once more, at step 0."""
    found = training_curves(finished, "accuracy", {})
    assert {tag: [step for step, _ in points] for tag, points in found["values"].items()} == {
        "val/loss": [3],
        "val/accuracy": [3],
    }


def test_lightnings_csv(tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,train/loss,val/f1\n0,9,0.5,\n0,19,,0.25\n1,19,0.125,\n")
    found = training_curves(tmp_path, "f1", CONFIG)
    assert found["values"] == {"train/loss": [[9, 0.5], [19, 0.125]], "val/f1": [[19, 0.25]]}
    assert found["windows"] == [
        {"name": "MagnitudePruning", "start": 2, "end": 10},
        {"name": "QuantAwareTraining", "start": 10, "end": 20},
    ]
    without_epochs = training_curves(tmp_path, "f1", CONFIG | {"trainer": {"max_epochs": -1}})
    assert [window["name"] for window in without_epochs["windows"]] == ["QuantAwareTraining"]


def test_no_logger(tmp_path):
    assert training_curves(tmp_path, "f1", CONFIG) is None
    assert training(results(curves=None)) is None
    with curves_figure(results(curves=None)) as figure:
        assert figure is None


def test_a_long_curve_is_thinned(tmp_path):
    lines = "".join(f"{step},{step}\n" for step in range(1201))
    (tmp_path / "metrics.csv").write_text("step,train/loss\n" + lines)
    points = training_curves(tmp_path, "f1", {})["values"]["train/loss"]
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
