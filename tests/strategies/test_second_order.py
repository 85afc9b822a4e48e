import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from contracts.errors import error_of
from contracts.training import data, fit, student
from lightning.pytorch import Callback

from lit_compress.functional import fisher as functional
from lit_compress.modules import LitStudent, Optimization
from lit_compress.nn import CompressibleLinear, compressible_layers
from lit_compress.strategies import MagnitudePruning, SecondOrderPruning
from lit_compress.strategies.importance import Fisher
from lit_compress.strategies.units import WeightUnits

SAMPLE = {"gradients": 16, "gradient_batch_size": 8, "damping": 1e-4}
ONE_SHOT = {"schedule": "constant", "start": "100%", "end": "100%"}


class Watch(Callback):
    """Losses asked for between the steps, and weights and masks before and after each batch's end."""

    def __init__(self):
        self.before, self.after, self.asked = {}, {}, {}

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self.after[run.global_step] = snapshot(module)


class Before(Callback):
    def __init__(self, watch):
        self.watch = watch

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self.watch.before[run.global_step] = snapshot(module)


def snapshot(module):
    return {
        n: (layer.weight.detach().clone(), layer.weight_mask.clone())
        for n, layer in compressible_layers(module.student)
    }


@pytest.fixture
def prune(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    def run(kind=SecondOrderPruning, **arguments):
        module, watch = student(tiny_teacher), Watch()
        original = type(module).task_loss

        def counted(self, batch):
            watch.asked[self.global_step] = watch.asked.get(self.global_step, 0) + 1
            return original(self, batch)

        monkeypatch.setattr(type(module), "task_loss", counted)
        fit(
            module,
            data(tiny_data, tiny_teacher),
            [Before(watch), kind(**arguments), watch],
            Path(tempfile.mkdtemp(dir=tmp_path)),
        )
        monkeypatch.setattr(type(module), "task_loss", original)
        return module, watch

    return run


WRONG = {
    "2:4": ({"pattern": "2:4", "sparsity": 0.5}, ["SecondOrderPruning", "'2:4'"]),
    "blocks that do not divide": ({"pattern": "4x4"}, ["SecondOrderPruning.block_size", "50", "48"]),
    "no gradients": ({"gradients": 0}, ["SecondOrderPruning.gradients", "0"]),
    "no rows": ({"gradient_batch_size": -1}, ["SecondOrderPruning.gradient_batch_size", "-1"]),
    "no blocks": ({"block_size": 0}, ["SecondOrderPruning.block_size", "0"]),
    "no recomputation": ({"recomputations": 0}, ["SecondOrderPruning.recomputations", "0"]),
    "no damping": ({"damping": 0.0}, ["SecondOrderPruning.damping", "0.0"]),
    "damping that is not a number": ({"damping": float("nan")}, ["SecondOrderPruning.damping", "nan"]),
    "no memory": ({"memory": 0.0}, ["SecondOrderPruning.memory", "0.0"]),
    "groups that do not divide blocks": ({"pattern": "1x4"}, ["SecondOrderPruning.block_size", "50", "48"]),
    "groups larger than blocks": ({"pattern": "1x8", "block_size": 6}, ["SecondOrderPruning.block_size", "6", "8"]),
    "what all pruning checks": ({"sparsity": 1.0}, ["SecondOrderPruning.sparsity", "1.0"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_one_line(arguments, words):
    message = error_of(lambda: SecondOrderPruning(**arguments))
    assert [word for word in words if word not in message] == []


def test_a_layer_larger_than_the_memory_is_an_error_before_the_first_step(prune, tmp_path):
    message = error_of(lambda: prune(memory=1e-4))
    assert [word for word in ("SecondOrderPruning.memory", "0.0001 GiB", "block_size") if word not in message] == []
    assert not list(tmp_path.rglob("*.ckpt"))


def test_gradients_that_are_no_numbers_are_an_error(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    module = student(tiny_teacher)
    monkeypatch.setattr(module, "task_loss", lambda batch: module.task.loss(module(batch), batch) * 1e39)
    strategy = SecondOrderPruning(sparsity=0.5, schedule="constant", start="0%", end="0%", **SAMPLE)
    message = error_of(lambda: fit(module, data(tiny_data, tiny_teacher), [strategy], tmp_path))
    assert message.startswith("SecondOrderPruning.damping: with 0.0001 ")


def test_layers_share_the_memory_without_changing_the_result(prune):
    results = []
    for memory, passes in ((1.0, 1), (1.5e-3, None)):
        module, watch = prune(sparsity=0.6, memory=memory, **ONE_SHOT | SAMPLE)
        results.append(snapshot(module))
        asked = watch.asked[8]
        assert asked == 16 if passes else asked > 16 * 3
    for name, (weight, mask) in results[0].items():
        assert torch.equal(mask, results[1][name][1])
        torch.testing.assert_close(weight, results[1][name][0])


def test_each_recomputation_samples_anew_and_prunes_its_part(prune, monkeypatch):
    written = []
    original = WeightUnits.write

    def noted(self, *arguments):
        original(self, *arguments)
        masks = torch.cat([layer.weight_mask.flatten() for layer in self.layers.values()])
        written.append(float((~masks).double().mean()))

    monkeypatch.setattr(WeightUnits, "write", noted)
    _, watch = prune(sparsity=0.8, recomputations=4, **ONE_SHOT | SAMPLE)
    assert written == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-4)
    assert watch.asked[8] == 4 * 16


def test_no_gradient_is_sampled_when_nothing_is_to_be_pruned(prune):
    _, watch = prune(sparsity=0.5, start="0%", end="4 steps", every="2 steps", **SAMPLE)
    assert watch.asked == {2: 16, 4: 16}  # and not at step 0, where the sparsity is 0


def test_the_weights_that_stay_make_up_for_those_that_go(prune):
    _, watch = prune(sparsity=0.5, **ONE_SHOT | SAMPLE)
    moved = 0
    for name, (weight, mask) in watch.after[8].items():
        old = watch.before[8][name][0]
        assert not weight[~mask].any()
        moved += int((weight != old)[mask].sum())
    assert moved > 0


def test_blocks_of_one_move_nothing(prune):
    _, watch = prune(sparsity=0.5, block_size=1, **ONE_SHOT | SAMPLE)
    for name, (weight, mask) in watch.after[8].items():
        assert torch.equal(weight, watch.before[8][name][0] * mask)


def test_large_damping_prunes_what_magnitude_prunes(prune):
    results = [
        prune(kind, sparsity=0.5, scope="global", **ONE_SHOT | options)[1].after[8]
        for kind, options in ((MagnitudePruning, {}), (SecondOrderPruning, SAMPLE | {"damping": 1e6}))
    ]
    assert all(torch.equal(mask, results[1][name][1]) for name, (_, mask) in results[0].items())


@pytest.mark.parametrize("pattern", ["unstructured", "1x4"])
def test_the_loss_rises_less_than_with_magnitude(pattern, tiny_data, tiny_teacher, tmp_path):
    losses = []
    sample = {"gradients": 64, "gradient_batch_size": 4, "damping": 1e-5, "block_size": 48}
    for kind, options in (
        (MagnitudePruning, {"scope": "global"}),
        (SecondOrderPruning, sample),
        (SecondOrderPruning, sample | {"recomputations": 4}),
    ):
        rows = data(tiny_data, tiny_teacher)
        module = LitStudent(str(tiny_teacher), labels=["0", "1"], optimization=Optimization(learning_rate=3e-3))
        strategy = kind(sparsity=0.8, pattern=pattern, **ONE_SHOT | options)
        fit(module, rows, [strategy], Path(tempfile.mkdtemp(dir=tmp_path)), max_epochs=10, limit_val_batches=0)
        loader = rows.train_dataloader()
        with torch.no_grad():
            losses.append(module.eval().task_loss(loader.collate_fn(loader.dataset[list(range(64))])).item())
    # When this was written 0.536, 0.473, 0.411 (unstructured) and 0.568, 0.509, 0.434; 0.352 before pruning.
    magnitude, second_order, recomputed = losses
    assert recomputed < second_order - 0.02 < magnitude - 0.04


def test_pruned_weights_stay_pruned(prune):
    _, watch = prune(sparsity=0.8, start="0%", end="100%", every="1 steps", **SAMPLE)
    for earlier, later in pairwise(watch.after.values()):
        assert not any((later[name][1] & ~earlier[name][1]).any() for name in later)


def test_an_inverse_that_rounding_has_spoilt_is_refused():
    # Gradients that are large and nearly the same, and hardly a damping: the diagonal comes out below 0.
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(50, generator=generator)
    gradients = 14 * (shared + 0.01 * torch.randn(1, 64, 50, generator=generator))
    inverse = functional.add_gradients_(functional.damped_inverse(50, 50, 1e-7), gradients, 64)
    assert (inverse.diagonal(dim1=1, dim2=2) < 0).any()
    layer = CompressibleLinear(10, 5)
    assert "some scores are no numbers, or below 0" in error_of(Fisher()._saliency, layer, inverse, 1)
