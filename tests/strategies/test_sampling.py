import random
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts.training import data, data_config, fit, student
from lightning.pytorch import Callback, LightningDataModule
from models.families import build
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from lit_compress.data import TextClassification
from lit_compress.errors import UserError
from lit_compress.modules import LitStudent, LogitDistillation
from lit_compress.strategies import LayerDropping, Pruning, sampling
from lit_compress.strategies.importance import Taylor
from lit_compress.strategies.sampling import sample_gradients

ROWS = 64


class Sample(Callback):
    """Calls a function with the trainer and the module once, after the third step: in the middle of an epoch."""

    def __init__(self, look):
        self.look, self.found = look, None

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        if run.global_step == 3:
            self.found = self.look(run, module)


@pytest.fixture
def midway(tiny_teacher, tiny_data, tmp_path):
    """Run a function in the middle of a fit and give what it found."""

    def run(look, teacher=None):
        sample = Sample(look)
        fit(
            student(tiny_teacher, teacher),
            data(tiny_data, tiny_teacher),
            [sample],
            Path(tempfile.mkdtemp(dir=tmp_path)),
        )
        return sample.found

    return run


def weights_of(module):
    return [layer.attention.self.query.weight for layer in module.student.bert.encoder.layer]


def take(run, module, batches=4, batch_size=16, draw=0):
    return list(sample_gradients(run, module, weights_of(module), batches, batch_size, draw))


def test_every_row_is_drawn_once_without_dropout_or_teacher(midway, tiny_teacher):
    def look(run, module):
        sampled = take(run, module, ROWS // 8, 8)
        loader = run.datamodule.train_dataloader()
        whole = loader.collate_fn(loader.dataset[list(range(ROWS))])
        module.eval()
        expected = torch.autograd.grad(module.task.loss(module(whole), whole), weights_of(module))
        module.train()
        return sampled, expected

    sampled, expected = midway(look, tiny_teacher)
    assert len(sampled) == 8
    for index, gradient in enumerate(expected):
        torch.testing.assert_close(torch.stack([pair[index] for pair in sampled]).mean(0), gradient)


def test_rows_come_again_in_another_order(midway):
    first, second = midway(lambda run, module: take(run, module, 2, ROWS))
    torch.testing.assert_close(first[0], second[0])
    halves = midway(lambda run, module: take(run, module, 4, ROWS // 2))
    torch.testing.assert_close(halves[0][0] + halves[1][0], halves[2][0] + halves[3][0])
    assert not torch.allclose(halves[0][0], halves[2][0])
    assert not torch.allclose(halves[0][0], halves[3][0])


def test_the_same_step_and_draw_give_the_same_gradients(midway):
    def look(run, module):
        torch.rand(3)
        return [take(run, module, draw=draw)[0][0] for draw in (0, 0, 1)]

    once, again, other = midway(look)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(once, midway(look)[0])


def state_of(run, module):
    """Modes, positions in the data, and generators of random numbers."""
    return (
        [m.training for m in module.modules()],
        run.train_dataloader.state_dict(),
        run.datamodule.state_dict(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


def test_nothing_is_left_behind(midway):
    def look(run, module):
        module.student.bert.pooler.eval()  # a mode that somebody chose
        gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
        before = state_of(run, module)
        take(run, module)
        after = state_of(run, module)
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(parameter.grad, gradient)
        return before, after

    before, after = midway(look)
    assert before == after


def test_training_goes_on_as_if_nothing_had_happened(tiny_teacher, tiny_data, tmp_path):
    states = []
    for name, strategies in (("with", [Sample(take)]), ("without", [])):
        module = student(tiny_teacher)
        fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path / name)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_loader_of_ones_own(tiny_teacher, tiny_data, tmp_path):
    module, source = student(tiny_teacher), data(tiny_data, tiny_teacher)
    source.setup("fit")
    table = source.train_dataloader().dataset
    rows = [{name: table[name][i] for name in table.column_names} for i in range(ROWS)]

    def collate(chosen):
        return source.collate({name: [row[name] for row in chosen] for name in rows[0]})

    found = []

    class Look(Callback):
        def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
            found.extend(take(run, module, 2, ROWS))

    class Own(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(rows, batch_size=16, collate_fn=collate)

    fit(module, Own(), [Look()], tmp_path, max_steps=1)
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][0].any()


def test_a_stream_has_no_rows_to_draw(midway):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ()

    class Run:
        global_step, global_rank, world_size = 0, 0, 1
        train_dataloader = DataLoader(Stream(), batch_size=4)

    with pytest.raises(UserError, match="data: pruning draws training examples") as caught:
        midway(lambda run, module: list(sample_gradients(Run(), module, weights_of(module), 1, 4)))
    assert "\n" not in str(caught.value)


def test_a_module_without_a_task_loss():
    class Run:
        global_step, global_rank = 0, 0

    with pytest.raises(UserError, match=r"compression: .*task_loss.*Linear"):
        next(sample_gradients(Run(), torch.nn.Linear(1, 1), [], 1, 1))


class Sevens(TextClassification):
    """Changes its batches before they go to the device."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        ids = torch.full_like(batch.inputs["input_ids"], 7)
        return batch._replace(inputs=batch.inputs | {"input_ids": ids})


@pytest.mark.parametrize("who", ["gradients", "layers", "teacher"])
def test_what_is_drawn_goes_through_the_hooks_of_the_data(who, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    seen, forward = [], BertEmbeddings.forward

    def look(self, input_ids, *args, **options):
        seen.append(input_ids)
        return forward(self, input_ids, *args, **options)

    monkeypatch.setattr(BertEmbeddings, "forward", look)
    strategies = {
        "gradients": [Pruning(importance=Taylor(4), sparsity=0.5, schedule="constant", start="0%", end="0%")],
        "layers": [LayerDropping(drop=1, which="contribution")],
        "teacher": [],
    }
    module = student(tiny_teacher)
    if who == "teacher":
        options = {"distillation": {"kd": LogitDistillation()}, "teacher_cache": str(tmp_path / "cache")}
        module = LitStudent(str(tiny_teacher), str(tiny_teacher), labels=["0", "1"], **options)
    source = Sevens(tokenizer=str(tiny_teacher), **data_config(tiny_data)["init_args"])
    fit(module, source, strategies[who], tmp_path / "run", max_steps=2)
    assert len(seen) > 2
    assert all((ids == 7).all() for ids in seen)


# Layers by what is particular to their inputs: batch or tokens first, filled windows, relative positions.
LOOKED_AT = {
    "bert": ("bert", {}, "encoder.layer.1.attention.self.query"),
    "xlnet": ("xlnet", {}, "layer.1.ff.layer_1"),
    "longformer": ("longformer", {"attention_window": [4, 4, 4]}, "encoder.layer.1.attention.self.query"),
    "longformer-neurons": ("longformer", {"attention_window": [4, 4, 4]}, "encoder.layer.1.intermediate.dense"),
    # With the weights of the tokens for the relative positions, as DeBERTa-v3 has it.
    "deberta": (
        "deberta-v2",
        {"share_att_key": True, "conv_kernel_size": 0},
        "encoder.layer.1.attention.self.query_proj",
    ),
}


@pytest.mark.parametrize("length", [4, 7])
@pytest.mark.parametrize("family", LOOKED_AT)
def test_norms_of_inputs_are_those_of_the_tokens_of_each_text(family, length, monkeypatch):
    kind, settings, name = LOOKED_AT[family]
    model = build(kind, AutoModel, **settings)
    texts = [torch.randint(5, 30, (tokens,)) for tokens in (length, 2, 3, 1)]
    inputs: list = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, given, __: inputs.append(given[0]))
    total = torch.zeros(16)
    for text in texts:
        inputs.clear()
        with torch.no_grad():
            model(input_ids=text[None], attention_mask=torch.ones(1, len(text), dtype=torch.long))
        total += inputs[0].reshape(-1, 16)[: len(text)].square().sum(0)
    hook.remove()

    ids, mask = torch.zeros(2, 4, length, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(-len(text), None) if family == "xlnet" else slice(len(text))
        ids[row, place], mask[row, place] = text, 1

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = model

        def task_loss(self, batch):
            self.student(input_ids=ids, attention_mask=mask)

    monkeypatch.setattr(sampling, "sample_batches", lambda *_: [None])
    run = SimpleNamespace(precision_plugin=SimpleNamespace(train_step_context=nullcontext))
    found = sampling.sample_input_norms(run, Module(), {name: model.get_submodule(name)}, 1, 4)[name]
    torch.testing.assert_close(found, (total / sum(map(len, texts))).sqrt(), rtol=1e-3, atol=1e-5)
