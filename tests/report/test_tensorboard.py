import numpy as np
import pytest
from report.results import HOSTILE, results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from lit_compress.report.hyperparameters import experiment
from lit_compress.report.tensorboard import final_metrics, write_events

PICTURES = {"size": np.zeros((4, 6, 3), np.uint8), "latency": np.full((5, 5, 3), 200, np.uint8)}


@pytest.fixture
def events(tmp_path):
    write_events(tmp_path, results(), PICTURES)
    found = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    found.Reload()
    return found


def test_pictures(events):
    assert set(events.Tags()["images"]) == {"report/size", "report/latency"}
    (image,) = events.Images("report/size")
    assert (image.width, image.height) == (6, 4)


def test_final_metrics(events):
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found == pytest.approx(
        {
            "report/accuracy": 0.89,
            "report/accuracy_dense": 0.91,
            "report/f1": 0.86,
            "report/f1_dense": 0.88,
            "report/encoder_sparsity": 0.75,
            "report/model_megabytes": 8375 / 1e6,
            "report/latency_of_dense": 0.5,
        }
    )


def test_the_verdict_as_text(events):
    (tag,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("report/verdict"))
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert "accuracy: loses between 1.0 and 3.0 points" in text
    assert HOSTILE not in text


def test_the_table_of_settings_has_a_column_for_every_metric_of_the_report():
    described, *_ = experiment({"rate": 0.1}, {"val/accuracy": 0.5, "val/f1": 0.5, "val/loss": 1.0})
    content = metadata.parse_experiment_plugin_data(described.value[0].metadata.plugin_data.content)
    names = [(info.name.group, info.name.tag) for info in content.metric_infos]
    assert ("", "val/accuracy") in names
    assert {tag for group, tag in names if group == "report"} == set(final_metrics(results()))
