"""Strategies and teachers in the Hugging Face Trainer: the same masks and numbers, checkpoints, folders."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lit_compress.errors import UserError
from lit_compress.integrations import add_strategies, add_teacher, save_compressed
from lit_compress.modules import HiddenDistillation, LogitDistillation, RelationDistillation
from lit_compress.strategies import (
    CompressionMonitor,
    GradualLayerDropping,
    LayerDropping,
    LowRankEmbedding,
    MagnitudePruning,
    MovementPruning,
    Pruning,
    QuantAwareTraining,
    SecondOrderPruning,
    StructuredPruning,
)

pytest.importorskip("accelerate", reason="the Hugging Face Trainer needs accelerate")


class Rows(Dataset):
    """Random sentences, whose class is their first token's parity."""

    def __init__(self, count=48):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(5, 30, (count, 8), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        ids = self.ids[row]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": int(ids[0]) % 2}


@pytest.fixture
def make(tiny_teacher, tmp_path):
    """A Trainer of the tiny model; 12 batches of 4 rows in each of 2 epochs."""

    def make(name="run", kind=Trainer, **options):
        torch.manual_seed(0)
        given = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-3, "save_steps": 7}
        given |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 5}
        args = TrainingArguments(str(tmp_path / name), **(given | options))
        model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
        return kind(model=model, args=args, train_dataset=Rows(), eval_dataset=Rows(12), processing_class=tokenizer)

    return make


def state(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def sparsity(model):
    masks = [part.weight_mask for part in model.modules() if getattr(part, "weight_mask", None) is not None]
    return sum(int((~mask).sum()) for mask in masks) / sum(mask.numel() for mask in masks)


STRATEGIES = {
    "magnitude and integers": lambda: [MagnitudePruning(0.75, end="50%"), QuantAwareTraining(start="60%")],
    "2:4": lambda: [Pruning(pattern="2:4", sparsity=0.5, end="50%")],
    "movement": lambda: [MovementPruning(sparsity=0.5, start="1 epochs", end="80%")],
    "second order": lambda: [SecondOrderPruning(sparsity=0.5, end="50%", every="25%", gradients=4)],
    "structured": lambda: [StructuredPruning(heads=1, neurons=32, pruning_steps=2)],
    "gradual layers": lambda: [GradualLayerDropping(drop=1)],
    "layers": lambda: [LayerDropping(drop=1)],
    "embedding": lambda: [LowRankEmbedding(rank=16)],
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(name, make, tmp_path):
    whole = make("whole")
    add_strategies(whole, STRATEGIES[name]())
    whole.train()
    again = make("again", max_steps=24)
    add_strategies(again, STRATEGIES[name]())
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-14"))
    expected, found = state(whole), state(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    folder = save_compressed(again, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = Rows().ids[:4]
    with torch.no_grad():
        assert torch.allclose(loaded(batch).logits, again.model.eval()(batch).logits, atol=0.02)


def test_zeros_stay_zeros_and_are_logged(make, tmp_path):
    trainer = make(gradient_accumulation_steps=3)
    add_strategies(trainer, [MagnitudePruning(0.8, end="50%")])
    logged = []

    class Logger(TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            logged.extend([logs["sparsity"]] if "loss" in logs else [])

    trainer.add_callback(Logger())
    trainer.train()
    assert trainer.state.global_step == 8
    assert sparsity(trainer.model) == pytest.approx(0.8, abs=0.005)
    assert logged[-1] == pytest.approx(0.8, abs=0.005)
    loaded = AutoModelForSequenceClassification.from_pretrained(save_compressed(trainer, tmp_path / "out"))
    weight = loaded.bert.encoder.layer[0].attention.self.query.weight
    assert (weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)


def test_masks_are_those_of_the_callback_in_lightning(make):
    """Magnitude pruning at once depends on nothing but the weights."""
    trainer = make()
    add_strategies(trainer, [MagnitudePruning(0.5, schedule="constant", start="0%", end="0%")])
    before = trainer.model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    trainer.train()
    kept = trainer.model.bert.encoder.layer[0].output.dense.weight_mask
    assert torch.equal(kept, before.abs() > before.abs().flatten().kthvalue(before.numel() // 2).values)


def test_a_run_that_stops_early_says_what_is_missing(make, tmp_path):
    trainer = make(max_steps=24)
    add_strategies(trainer, [MagnitudePruning(0.8, start="50%", end="90%")])

    class Stop(Exception):
        pass

    def stop(*_, **__):
        if trainer.state.global_step == 15:
            raise Stop

    trainer.callback_handler.callbacks[-1].on_step_begin = stop
    with pytest.raises(Stop):
        trainer.train()
    folder = save_compressed(trainer, tmp_path / "out")
    assert "not finished" in (folder / "README.md").read_text()


def test_an_evaluation_has_no_terms_and_a_training_has(make, tiny_teacher):
    teacher = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    with torch.no_grad():
        teacher.classifier.weight.mul_(-3)
    plain, taught = make("plain"), make("taught")
    add_teacher(taught, teacher, {"kd": LogitDistillation(hardness=1.0, temperature=1.0)})
    assert plain.evaluate()["eval_loss"] == pytest.approx(taught.evaluate()["eval_loss"])
    plain.train()
    taught.train()
    ids = Rows().ids[:16]
    with torch.no_grad():
        theirs = teacher.eval()(ids).logits.softmax(-1)
        far, near = (
            (trainer.model.eval()(ids).logits.softmax(-1) - theirs).abs().mean() for trainer in (plain, taught)
        )
    assert near < far


def test_accumulated_batches_count_like_one_large_batch(make, tiny_teacher):
    """The labels' loss and the terms, each of them."""
    losses = {}
    for name, options in {
        "large": {"per_device_train_batch_size": 8},
        "small": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    }.items():
        trainer = make(name, max_steps=1, train_sampling_strategy="sequential", optim="sgd", **options)
        for part in trainer.model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        teacher = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
        with torch.no_grad():
            teacher.classifier.weight.mul_(-3)
            for layer in teacher.bert.encoder.layer:
                layer.output.dense.weight.mul_(2)
        add_teacher(trainer, teacher, {"kd": LogitDistillation(0.5), "hidden": HiddenDistillation(1.0)})
        before = state(trainer)
        trainer.train()
        losses[name] = {key: value - before[key] for key, value in state(trainer).items()}
    assert max(value.abs().max() for value in losses["large"].values()) > 1e-5
    assert all(torch.allclose(losses["small"][key], value, atol=1e-7) for key, value in losses["large"].items())


def test_terms_that_look_inside_and_learn(make, tiny_teacher, tmp_path):
    trainer = make()
    teacher = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    terms = {"hidden": HiddenDistillation(projection=True), "relations": RelationDistillation(relation_heads=4)}
    add_teacher(trainer, teacher, terms)
    before = terms["hidden"].projection.weight.detach().clone()
    trainer.train()
    assert not torch.equal(terms["hidden"].projection.weight, before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    folder = save_compressed(trainer, tmp_path / "out")
    names = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert not any("distillation" in name for name in names)
    assert trainer.model.distillation_terms is not None  # the Trainer can be resumed


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("none", "strategies: none are given"),
        ("class", "is not a strategy; give instances"),
        ("callback", "is not a strategy; give instances"),
        ("twice", "this Trainer has some already"),
        ("optimizer", "the Trainer has an optimizer already"),
        ("model_init", "the Trainer has a model_init"),
        ("a term", "distillation_terms.hidden.projection"),
        ("window", "comes after training ends at step 24"),
        ("targets", "MagnitudePruning.targets"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(problem, words, make):
    trainer = make()
    strategies: Any = [MagnitudePruning(0.5)]
    if problem == "none":
        strategies = []
    elif problem == "class":
        strategies = [MagnitudePruning]
    elif problem == "callback":
        strategies = [CompressionMonitor()]
    elif problem == "twice":
        add_strategies(trainer, [MagnitudePruning(0.5)])
    elif problem == "optimizer":
        trainer.create_optimizer()
    elif problem == "model_init":
        trainer.model_init = lambda: trainer.model
    elif problem == "a term":
        teacher = copy.deepcopy(trainer.model)
        add_teacher(trainer, teacher, {"hidden": HiddenDistillation(projection=True)})
        strategies = [MagnitudePruning(0.5, targets=["*"])]
    elif problem == "window":
        strategies = [MagnitudePruning(0.5, end="100 steps")]
    elif problem == "targets":
        strategies = [MagnitudePruning(0.5, targets=["nothing.*"])]
    with pytest.raises(UserError, match=words):
        add_strategies(trainer, strategies)


def test_a_model_is_no_teacher_of_itself(make):
    trainer = make()
    with pytest.raises(UserError, match="load it a second time"):
        add_teacher(trainer, trainer.model)
    trainer.model_init = lambda: trainer.model
    with pytest.raises(UserError, match="teacher: the Trainer has a model_init"):
        add_teacher(trainer, copy.deepcopy(trainer.model))


def test_the_best_model_is_one_that_is_compressed(make, tmp_path):
    """Scores fall while weights go: the best of all would be the first."""
    values = iter(range(10, 0, -1))
    options = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    trainer = make(eval_strategy="steps", eval_steps=4, **options | {"save_steps": 4})
    trainer.compute_metrics = lambda _: {"score": next(values)}
    add_strategies(trainer, [MagnitudePruning(0.75, end="50%"), QuantAwareTraining(start="60%")])
    trainer.train()
    assert trainer.state.best_global_step == 16  # quantization begins at step 14
    assert sparsity(trainer.model) == pytest.approx(0.75, abs=0.005)
    folder = save_compressed(trainer, tmp_path / "out")
    assert "not finished" not in (folder / "README.md").read_text()


def test_a_run_that_is_resumed_at_its_end_is_quantized(make, tmp_path):
    def strategies():
        return [MagnitudePruning(0.75, end="50%"), QuantAwareTraining(start="60%")]

    whole, again = make("whole"), make("again", max_steps=24)
    add_strategies(whole, strategies())
    whole.train()
    add_strategies(again, strategies())
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-24"))
    first, second = (save_compressed(trainer, tmp_path / name) for trainer, name in ((whole, "a"), (again, "b")))
    assert (first / "compression.json").read_text() == (second / "compression.json").read_text()
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_loaders_do_not_pile_up(make):
    trainer = make()
    add_strategies(trainer, [MagnitudePruning(0.75, end="50%"), QuantAwareTraining(start="60%")])
    trainer.train()
    assert len(trainer.accelerator._dataloaders) <= 3


def test_adapters_are_refused(make):
    trainer = make()
    trainer.model._hf_peft_config_loaded = True
    with pytest.raises(UserError, match="merge_and_unload"):
        add_strategies(trainer, [MagnitudePruning(0.5)])


def test_a_teacher_of_other_labels_is_refused(make, tiny_teacher):
    teacher = AutoModelForSequenceClassification.from_pretrained(
        tiny_teacher, num_labels=3, ignore_mismatched_sizes=True
    )
    with pytest.raises(UserError, match="it has 3 labels and the model 2"):
        add_teacher(make(), teacher)


def test_a_sentence_transformer_is_trained_with_its_own_trainer(tiny_model, tmp_path):
    st: Any = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from datasets import Dataset as Table

    losses: Any = pytest.importorskip(
        "sentence_transformers.sentence_transformer.losses", reason="sentence-transformers is older than 6"
    )

    model = st.SentenceTransformer(str(tiny_model), device="cpu")
    rows = {"sentence1": ["a good film", "a dull plot"] * 8, "sentence2": ["a great film", "bad acting"] * 8}
    table = Table.from_dict(rows | {"score": [0.9, 0.2] * 8})
    options = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_steps": 8}
    args = st.SentenceTransformerTrainingArguments(str(tmp_path / "run"), **options)
    trainer = st.SentenceTransformerTrainer(model, args, train_dataset=table, loss=losses.CosineSimilarityLoss(model))
    add_strategies(trainer, [MagnitudePruning(0.75, end="50%"), QuantAwareTraining(start="60%")])
    trainer.train()
    expected = model.encode(["a good film"])
    save_compressed(trainer, tmp_path / "out")
    folded = AutoModel.from_pretrained(tmp_path / "out")
    assert (folded.encoder.layer[0].output.dense.weight == 0).float().mean() == pytest.approx(0.75, abs=0.01)
    with torch.no_grad():
        found = folded(**model.tokenizer(["a good film"], return_tensors="pt")).last_hidden_state.mean(1)
    assert torch.cosine_similarity(found, torch.tensor(expected)).item() > 0.99
    loaded = st.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert np.abs(loaded.encode(["a good film"]) - found.numpy()).max() < 1e-5


@pytest.fixture
def st() -> Any:
    """The library; where it is there, a part of it that is gone fails a test instead of leaving it out."""
    return pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")


def encoder_with(st, modules, tiny_model, pooling="cls"):
    transformer = modules.Transformer(str(tiny_model), max_seq_length=12)
    dense = modules.Dense(32, 12, activation_function=torch.nn.Tanh())
    parts = [transformer, modules.Pooling(32, pooling), dense, modules.Normalize()]
    prompts = {"prompts": {"query": "the "}, "default_prompt_name": "query"}
    return st.SentenceTransformer(modules=parts, device="cpu", **prompts)


def test_what_is_around_the_transformer_is_saved_with_it(st, tiny_model, tmp_path):
    from sentence_transformers import models as modules

    model = encoder_with(st, modules, tiny_model)
    args = st.SentenceTransformerTrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
    trainer = st.SentenceTransformerTrainer(model, args)
    text = ["a good film, and the plot is very dull and the actor was not in it"]
    expected = model.encode(text)
    save_compressed(trainer, tmp_path / "out")
    loaded = st.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert np.abs(loaded.encode(text) - expected).max() < 1e-5
    assert loaded.max_seq_length == 12
    assert np.array_equal(model.encode(text), expected)  # as before
    assert not hasattr(model[0].auto_model, "sentence_dense")
    assert not hasattr(model[0].auto_model.config, "sentence_embedding")


def test_modules_that_are_not_known_are_left_out_which_is_said(st, tiny_model, tmp_path, caplog):
    from sentence_transformers import models as modules

    model = encoder_with(st, modules, tiny_model, "weightedmean")
    args = st.SentenceTransformerTrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
    save_compressed(st.SentenceTransformerTrainer(model, args), tmp_path / "out")
    assert "the transformer alone is saved, because the SentenceTransformer: its pooling is weightedmean" in caplog.text
    assert not (tmp_path / "out/modules.json").exists()


def test_a_prompt_that_would_be_lost_is_refused_before_the_training(st, tiny_model, tmp_path):
    from sentence_transformers import cross_encoder

    options = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
    model = st.CrossEncoder(str(tiny_model), num_labels=1, device="cpu", **options)
    args = cross_encoder.CrossEncoderTrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
    with pytest.raises(UserError, match="default_prompt_name 'q'"):
        add_strategies(cross_encoder.CrossEncoderTrainer(model, args), [MagnitudePruning(0.5)])


def test_a_reranker_keeps_what_becomes_of_its_logits(st, tiny_model, tmp_path):
    from sentence_transformers import cross_encoder

    model = st.CrossEncoder(str(tiny_model), num_labels=1, activation_fn=torch.nn.Identity(), device="cpu")
    args = cross_encoder.CrossEncoderTrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
    trainer = cross_encoder.CrossEncoderTrainer(model, args)
    pairs = [("a film", "a good film"), ("a film", "very cold")]
    expected = model.predict(pairs)
    save_compressed(trainer, tmp_path / "out")
    loaded = st.CrossEncoder(str(tmp_path / "out"), device="cpu")
    assert isinstance(loaded.activation_fn, torch.nn.Identity)
    assert np.abs(loaded.predict(pairs) - expected).max() < 1e-5
