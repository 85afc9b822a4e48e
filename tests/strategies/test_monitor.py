import math
from types import SimpleNamespace

import pytest
from contracts.training import STEPS, data, fit, student
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_compress.nn import compressible_layers
from lit_compress.strategies import CompressionMonitor, MagnitudePruning, QuantAwareTraining
from lit_compress.strategies import monitor as monitor_module
from lit_compress.strategies.monitor import layer_sparsity, sparsity_heatmap, total_sparsity


@pytest.fixture
def watch(tiny_teacher, tiny_data, tmp_path):
    """A fit that writes every step's figures, read back from the event file."""

    def run(*callbacks, every=1, logger=None, **options):
        module = student(tiny_teacher)
        logger = logger or TensorBoardLogger(tmp_path, name="", version="")
        strategies = [*callbacks, CompressionMonitor(every)]
        options = {"logger": logger, "log_every_n_steps": 1} | options
        fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path, **options)
        events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
        return module, events.Reload()

    return run


def series(events, name):
    return {event.step: event.value for event in events.Scalars(name)}


def test_sparsity_of_all_and_of_each_layer(watch):
    ignore = ["*.output.dense"]
    module, events = watch(
        MagnitudePruning(
            sparsity=0.8, initial_sparsity=0.2, schedule="linear", end="4 steps", every="1 steps", ignore=ignore
        )
    )
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("sparsity")}
    assert tags == {"sparsity", *(f"sparsity/{name}" for name, _ in compressible_layers(module.student))}
    # Logged under the step that has just been taken, counted from 0: after it, masks of step + 1 hold.
    expected = {step: 0.2 + 0.15 * min(step + 1, 4) for step in range(STEPS)}
    for tag in tags:
        assert series(events, tag) == pytest.approx(expected, abs=2e-3)


def test_total_sparsity_weighs_layers_by_their_size(watch):
    module, events = watch(
        MagnitudePruning(sparsity=0.75, schedule="constant", end="0%", targets=["*.query"]),
        MagnitudePruning(sparsity=0.25, schedule="constant", end="0%", targets=["*.intermediate.*"]),
    )
    expected = (0.75 * 32 * 32 + 0.25 * 32 * 64) / (32 * 32 + 32 * 64)
    assert total_sparsity(module.student) == pytest.approx(expected)
    assert series(events, "sparsity")[STEPS - 1] == pytest.approx(expected)
    assert set(layer_sparsity(module.student).values()) == {0.75, 0.25}


def test_without_masks_only_speed_is_logged(watch):
    _, events = watch(QuantAwareTraining(start="50%"))
    assert not [tag for tag in events.Tags()["scalars"] if "sparsity" in tag]
    assert set(series(events, "samples_per_second")) == set(range(STEPS))
    assert events.Tags()["images"] == []


@pytest.mark.parametrize("seconds_of_validation", [0, 100])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_speed_counts_training_alone(every, seconds_of_validation, watch, monkeypatch):
    now = 0.0
    monkeypatch.setattr(monitor_module, "time", SimpleNamespace(perf_counter=lambda: now))

    class Clock(Callback):
        """Two seconds a batch, and more for each validation."""

        def on_train_batch_start(self, *_):
            nonlocal now
            now += 2.0

        def on_validation_batch_start(self, *_):
            nonlocal now
            now += seconds_of_validation

    _, events = watch(Clock(), every=every)
    assert set(series(events, "samples_per_second").values()) == {8.0}


def test_figure_and_histograms_after_each_validation(watch):
    module, events = watch(MagnitudePruning(), QuantAwareTraining(start="50%"))
    assert [image.step for image in events.Images("sparsity_map")] == [4, 8]
    # Quantization starts with the second epoch.
    names = [f"weight_scale/{name}" for name, _ in compressible_layers(module.student)]
    assert events.Tags()["histograms"] == names
    for name, layer in zip(names, dict(compressible_layers(module.student)).values(), strict=True):
        (histogram,) = events.Histograms(name)
        assert histogram.step == 8
        scale = layer.weight_quantizer.scale
        assert histogram.histogram_value.num == layer.out_features
        assert histogram.histogram_value.min == pytest.approx(scale.min().item())
        assert histogram.histogram_value.max == pytest.approx(scale.max().item())


@pytest.mark.parametrize("logger", [False, CSVLogger])
def test_other_loggers_do_no_harm(logger, watch, tmp_path):
    module, _ = watch(MagnitudePruning(), logger=logger and logger(tmp_path / "csv"))
    assert total_sparsity(module.student) == pytest.approx(0.8, abs=1e-3)


def test_the_monitor_changes_nothing(tiny_teacher, tiny_data, tmp_path):
    states = []
    for name, callbacks in (("with", [CompressionMonitor(1)]), ("without", [])):
        module = student(tiny_teacher)
        fit(module, data(tiny_data, tiny_teacher), [MagnitudePruning(), *callbacks], tmp_path / name)
        states.append(module.state_dict())
    assert all(states[0][name].equal(states[1][name]) for name in states[1])


def cells(figure):
    """The rows and columns of a heat map, and the text and the value of each cell."""
    (axes,) = figure.axes
    rows, columns = (
        [label.get_text() for label in ticks] for ticks in (axes.get_yticklabels(), axes.get_xticklabels())
    )
    values = axes.get_images()[0].get_array()
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    return {
        (row, column.replace("\n", ".")): (texts.get((x, y), ""), float(values.filled(math.nan)[y, x]))
        for y, row in enumerate(rows)
        for x, column in enumerate(columns)
    }


def test_heat_map():
    per_layer = {"bert.encoder.layer.0.attention.self.query": 0.5, "bert.encoder.layer.0.output.dense": 0.25}
    per_layer |= {name.replace("0", "11"): value + 0.4 for name, value in per_layer.items()}
    assert cells(sparsity_heatmap(per_layer)) == {
        ("0", "attention.self.query"): ("0.50", 0.5),
        ("0", "output.dense"): ("0.25", 0.25),
        ("11", "attention.self.query"): ("0.90", 0.9),
        ("11", "output.dense"): ("0.65", 0.65),
    }


def test_heat_map_of_uneven_names_leaves_cells_empty():
    per_layer = {"h.0.q": 0.5, "h.1.ffn.2.dense": 0.25, "h.1.q": 0.75, "pooler": 1.0}
    got = cells(sparsity_heatmap(per_layer))
    assert {cell: text for cell, (text, _) in got.items() if text} == {
        ("0", "q"): "0.50",
        ("1", "q"): "0.75",
        ("1", "ffn.2.dense"): "0.25",
        ("-", "pooler"): "1.00",
    }
    assert len(got) == 9
    assert sum(math.isnan(value) for _, value in got.values()) == 5


@pytest.mark.parametrize("names", [["pooler"], ["layer.0.q"], [f"layer.{i}.{m}" for i in range(24) for m in "qkvoab"]])
def test_heat_map_can_be_drawn(names, tmp_path):
    sparsity_heatmap(dict.fromkeys(names, 0.5)).savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
