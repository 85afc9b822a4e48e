import pytest
import yaml
from contracts.training import student_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from lit_compress.cli import main
from lit_compress.training.compared_settings import compared_settings


@pytest.fixture(scope="module")
def events(finished):
    found = EventAccumulator(str(finished))
    found.Reload()
    return found


def test_a_run_shows_what_was_chosen_by_short_names(finished):
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    found = compared_settings(settings)
    assert found["MagnitudePruning.sparsity"] == 0.75
    assert found["MagnitudePruning.end"] == "50%"
    assert found["QuantAwareTraining.start"] == "50%"
    assert {"learning_rate", "batch_size", "max_epochs", "seed", "pretrained", "teacher"} <= set(found)
    assert found["teacher"].count("/") == 1  # no folder of this machine
    assert not {"encoding", "tokenizer", "weight_decay", "MagnitudePruning.scope", "MagnitudePruning.criterion"} & set(
        found
    )
    assert len(found) < 20


def test_terms_importances_and_a_second_strategy_have_names():
    taylor = {"class_path": "lit_compress.strategies.importance.Taylor", "init_args": {"score_batches": 3}}
    pruning = {"class_path": "lit_compress.Pruning", "init_args": {"importance": taylor, "sparsity": 0.5}}
    term = {"class_path": "lit_compress.LogitDistillation", "init_args": {"hardness": 0.9, "temperature": 2.0}}
    model = {"class_path": "lit_compress.LitStudent", "init_args": {"distillation": {"kd": term}}}
    found = compared_settings(
        {"model": model, "compression": [pruning, pruning, {"class_path": "lit_compress.PatternLock"}]}
    )
    assert found["kd"] == "LogitDistillation"
    assert found["kd.hardness"] == 0.9
    assert found["Pruning.importance"] == "Taylor"
    assert found["Pruning.importance.score_batches"] == 3
    assert found["Pruning 2.sparsity"] == 0.5
    assert found["PatternLock"] is True


def test_tensorboard_has_the_same_settings(events, finished):
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    logged = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(logged) == set(compared_settings(yaml.safe_load((finished / "config.yaml").read_text())))


def test_every_validation_stays_in_its_curve(events):
    steps = [event.step for event in events.Scalars("val/accuracy")]
    assert steps == sorted(steps)
    assert steps[0] > 0


def test_curves_that_belong_together_share_a_chart(events):
    (proto,) = (event.tensor_proto for event in events.Tensors("custom_scalars__config__"))
    layout = layout_pb2.Layout.FromString(proto.string_val[0])
    charts = {chart.title: [*chart.multiline.tag] for category in layout.category for chart in category.chart}
    assert charts["loss and its parts"] == ["^train/"]
    assert charts["sparsity by layer"] == ["^sparsity/"]


@pytest.mark.parametrize(("strategy", "tags"), [("MagnitudePruning", ["lr"]), ("MovementPruning", ["lr", "lr_scores"])])
def test_the_learning_rate_is_logged_once(strategy, tags, tiny_teacher, tiny_data, tmp_path):
    config = student_config(
        tiny_teacher,
        tiny_data,
        run=str(tmp_path / "run"),
        compression=[{"class_path": strategy, "init_args": {"sparsity": 0.5}}],
        trainer={"max_steps": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    )
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={tmp_path / 'task.yaml'}"])
    found = EventAccumulator(str(tmp_path / "run"))
    found.Reload()
    assert [tag for tag in found.Tags()["scalars"] if tag.startswith("lr")] == tags
    assert [len(found.Scalars(tag)) for tag in tags] == [2] * len(tags)
    assert found.Scalars(tags[-1])[1].value >= found.Scalars("lr")[1].value > 0
