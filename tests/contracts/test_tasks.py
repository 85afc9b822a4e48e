"""What every task promises: exact resumption, a folder that stock Transformers loads, the command line end to end."""

import json
import pickle

import pytest
import torch
import transformers
import yaml
from contracts import tasks
from contracts.training import ACCUMULATED, StopAt, differences, fit, fit_through_kills, trainer
from transformers import AutoTokenizer

from lit_compress.cli import main
from lit_compress.export import fold, load_checkpoint, save_folder, student_from_checkpoint
from lit_compress.nn import compressible_layers
from lit_compress.strategies import FreezeEmbeddings, MagnitudePruning, QuantAwareTraining

ARCHITECTURES = {
    "embedding": "BertModel",
    "embedding_ranking": "BertModel",
    "masked_lm": "BertForMaskedLM",
    "multi_label_classification": "BertForSequenceClassification",
    "pretraining": "BertForPreTraining",
    "question_answering": "BertForQuestionAnswering",
    "reranking": "BertForSequenceClassification",
    "reranking_lists": "BertForSequenceClassification",
    "token_classification": "BertForTokenClassification",
}
METRICS = {
    "embedding": {"loss", "spearman", "pearson"},
    "embedding_ranking": {"loss", "ndcg_at_10", "mrr_at_10", "recall_at_10"},
    "masked_lm": {"loss", "perplexity", "accuracy"},
    "multi_label_classification": {"loss", "f1_micro", "f1_macro", "exact_match"},
    "pretraining": {"loss", "perplexity", "accuracy", "next_sentence"},
    "question_answering": {"loss", "exact_match", "f1"},
    "reranking": {"loss", "ndcg_at_10", "mrr_at_10", "recall_at_10"},
    "reranking_lists": {"loss", "ndcg_at_10", "mrr_at_10", "recall_at_10"},
    "token_classification": {"loss", "accuracy", "precision", "recall", "f1"},
}


def strategies():
    return [
        MagnitudePruning(sparsity=0.75, end="50%", every="1 steps"),
        QuantAwareTraining(start="50%", freeze_observers="75%"),
    ]


def same_outputs(first, second):
    names = [name for name in first if "logits" in name] or ["last_hidden_state"]
    return all(torch.equal(first[name], second[name]) for name in names)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("task-files")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, files, tiny_model):
    """A student of each task, pruned and quantized, with a checkpoint per step."""
    done = {}

    def train(task):
        if task not in done:
            root = tmp_path_factory.mktemp(task)
            datamodule = tasks.data(task, files, tiny_model)
            module = tasks.student(task, tiny_model, datamodule)
            run = fit(module, datamodule, strategies(), root)
            done[task] = module, datamodule, run, root
        return done[task]

    return train


@pytest.mark.parametrize("task", tasks.TASKS)
def test_resume_in_the_middle_of_an_epoch_is_exact(task, trained, files, tiny_model, tmp_path):
    _, _, whole, root = trained(task)
    batches = whole.num_training_batches
    killed_at = batches + batches // 2  # in the second epoch, whose masks and order differ from the first's
    assert 0 < killed_at - batches < batches
    for resumed, options in ((False, {}), (True, {"ckpt_path": tmp_path / "killed" / f"step={killed_at}.ckpt"})):
        datamodule = tasks.data(task, files, tiny_model)
        module = tasks.student(task, tiny_model, datamodule)
        torch.rand(17)  # what is drawn before a run must not matter
        if resumed:
            fit(module, datamodule, strategies(), tmp_path / "resumed", **options)
        else:
            with pytest.raises(StopAt.Killed):
                fit(module, datamodule, [*strategies(), StopAt(killed_at)], tmp_path / "killed")
    states = [load_checkpoint(folder / f"step={whole.global_step}.ckpt") for folder in (root, tmp_path / "resumed")]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "lit_compress"):
        assert differences(states[0][part], states[1][part]) == []


@pytest.mark.parametrize("task", [*tasks.TASKS, "stream"])
def test_resume_in_the_middle_of_an_accumulation_is_exact(task, files, tiny_model, tmp_path):
    kind, options = ("masked_lm", {"streaming": True}) if task == "stream" else (task, {})
    length = {"max_steps": 7, "max_epochs": None} if task == "stream" else {}

    def make():
        torch.rand(17)
        datamodule = tasks.data(kind, files, tiny_model, **options)
        return tasks.student(kind, tiny_model, datamodule), datamodule, strategies()

    module, datamodule, callbacks = make()
    fit(module, datamodule, callbacks, tmp_path / "whole", each_step=False, **ACCUMULATED, **length)
    fit_through_kills(make, tmp_path / "killed", (2, 3, 8), **length)
    expected, got = (load_checkpoint(tmp_path / name / "run/checkpoints/last.ckpt") for name in ("whole", "killed"))
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "lit_compress"):
        assert differences(expected[part], got[part]) == []


@pytest.mark.parametrize("task", [*tasks.TASKS, "stream"])
def test_workers_need_not_be_forked(task, files, tiny_model, tmp_path):
    """What a worker of the data loader gets is pickled where processes are not forked: macOS, Windows, Python 3.14."""
    kind, options = ("masked_lm", {"streaming": True}) if task == "stream" else (task, {})
    datamodule = tasks.data(kind, files, tiny_model, **options)
    run = fit(tasks.student(kind, tiny_model, datamodule), datamodule, [], tmp_path, max_steps=2)
    loader = run.train_dataloader
    if task == "stream":
        first, again = (next(iter(batches)) for batches in (loader.batches, pickle.loads(pickle.dumps(loader.batches))))
    else:
        dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
        first, again = loader.collate_fn(loader.dataset[[0, 1, 2]]), collate(dataset[[0, 1, 2]])
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_metrics_are_logged_by_name(task, trained):
    _, _, run, _ = trained(task)
    names = {name.removeprefix("val/") for name in run.callback_metrics if name.startswith("val/")}
    assert names == METRICS[task]
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_folder_that_stock_transformers_loads(task, trained, tmp_path):
    module, datamodule, _, root = trained(task)
    batch = next(iter(datamodule.val_dataloader()))
    module.student.eval()
    save_folder(module.student, datamodule.tokenizer, tmp_path / "model")
    kind = getattr(transformers, f"Auto{ARCHITECTURES[task].removeprefix('Bert')}".replace("AutoFor", "AutoModelFor"))
    loaded, info = kind.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(loaded).__name__ == ARCHITECTURES[task]
    assert not any(info.values())
    inputs = batch.inputs
    with torch.inference_mode():
        assert same_outputs(fold(module.student)(**inputs), loaded.eval()(**inputs))
    again = student_from_checkpoint(load_checkpoint(root / f"step={module.trainer.global_step}.ckpt"))
    assert differences(dict(fold(module.student).state_dict()), dict(fold(again).state_dict())) == []


@pytest.mark.parametrize("task", tasks.TASKS)
def test_strategies_leave_the_head_alone(task, trained):
    module, *_ = trained(task)
    layers = [name for name, _ in compressible_layers(module.student)]
    assert len(layers) == 12
    prefix = "" if ARCHITECTURES[task] == "BertModel" else "bert."
    assert all(name.startswith(f"{prefix}encoder.layer.") for name in layers)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_loss_of_a_task_falls(task, files, tiny_model, tmp_path):
    datamodule = tasks.data(task, files, tiny_model)
    module = tasks.student(task, tiny_model, datamodule, learning_rate=3e-3)
    datamodule.setup("fit")
    batch = next(iter(datamodule.val_dataloader()))
    before = module.eval().task_loss(batch).item()
    fit(module.train(), datamodule, [], tmp_path, max_epochs=6)
    assert module.eval().task_loss(batch).item() < 0.95 * before


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_teacher_of_the_same_task(task, trained, files, tiny_model, tmp_path):
    module, datamodule, *_ = trained(task)
    save_folder(module.student, datamodule.tokenizer, tmp_path / "teacher")
    pupil = tasks.student(task, tiny_model, datamodule, teacher=tmp_path / "teacher")
    assert type(pupil.teacher.model) is type(pupil.student)


@pytest.mark.parametrize("kind", ["masked_lm", "pretraining"])
def test_frozen_embeddings_of_a_language_model(kind, files, tiny_model, tmp_path):
    """The decoder is the word embeddings: bit-identical over training, while its bias and the layers learn."""
    datamodule = tasks.data(kind, files, tiny_model)
    module = tasks.student(kind, tiny_model, datamodule)
    decoder, table = module.student.get_output_embeddings(), module.student.get_input_embeddings()
    assert decoder.weight is table.weight
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    run = fit(module, datamodule, [FreezeEmbeddings(), *strategies()], tmp_path)
    assert decoder.weight is table.weight
    assert torch.equal(decoder.weight, before["bert.embeddings.word_embeddings.weight"])
    assert not torch.equal(decoder.bias, before["cls.predictions.bias"])
    assert not any(p is table.weight for group in run.optimizers[0].param_groups for p in group["params"])
    save_folder(module.student, datamodule.tokenizer, tmp_path / "model")
    exported = getattr(transformers, ARCHITECTURES[kind]).from_pretrained(tmp_path / "model")
    assert torch.equal(exported.get_output_embeddings().weight, decoder.weight)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_command_line_from_fit_to_report(task, files, tiny_model, tmp_path, capsys):
    datamodule = tasks.data(task, files, tiny_model)
    options = {"train_file": datamodule.files["train"], "val_file": datamodule.files["val"]}
    options |= {"test_file": datamodule.files["val"], "predict_file": datamodule.files["val"]}
    options |= {"max_length": datamodule.max_length, "batch_size": 8}
    if task == "question_answering":
        options["doc_stride"] = 8
    if task.startswith("embedding"):
        names = ("text_columns", "label_column", "score_range", "pooling", "normalize")
        options |= {name: getattr(datamodule, name) for name in names}
        options["score_range"] = options["score_range"] and [*options["score_range"]]
    if task.startswith("reranking"):
        options |= {"text_columns": datamodule.text_columns, "label_column": datamodule.label_column}
        options["score_range"] = datamodule.score_range and [*datamodule.score_range]
    if task == "pretraining":
        options["packing"] = "segment_pairs"
    config = {
        "run": str(tmp_path / "run"),
        "model": {"class_path": "LitTeacher", "init_args": {"pretrained": str(tiny_model)}},
        "data": {"class_path": type(datamodule).__name__, "init_args": options},
        "compression": [{"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.5, "end": "50%"}}],
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={tmp_path / 'task.yaml'}"])
    saved = f"--config={tmp_path / 'run' / 'config.yaml'}"
    capsys.readouterr()
    for command in ("validate", "test", "predict"):
        main([command, saved, "--ckpt_path=last"])
    shown = capsys.readouterr().out
    assert all(f"test/{name}" in shown for name in METRICS[task])
    main(["export", f"--run={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURES[task]]
    AutoTokenizer.from_pretrained(tmp_path / "out")
    main(["report", f"--run={tmp_path / 'run'}", f"--dense={tmp_path / 'out'}", "--repetitions=1", "--batch_sizes=[1]"])
    results = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    accuracy = results["models"]["compressed"]["accuracy"]
    assert accuracy == results["models"]["dense"]["accuracy"]
    assert set(accuracy) == METRICS[task] - {"loss"}
    # What the report measures without a trainer is what the trainer logged.
    measured = trainer_metrics(task, files, tiny_model, tmp_path)
    for name, value in accuracy.items():
        assert measured[f"val/{name}"] == pytest.approx(value, rel=1e-5), name


def trainer_metrics(task, files, tiny_model, tmp_path):
    datamodule = tasks.data(task, files, tiny_model)
    module = tasks.student(task, tmp_path / "out", datamodule)
    (values,) = trainer(tmp_path, []).validate(module, datamodule, verbose=False)
    return values
