import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.training import data, fit, student
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from lit_compress.errors import UserError
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
