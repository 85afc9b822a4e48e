import pytest
import torch
from contracts.errors import error_of
from contracts.training import STEPS, data, fit, student
from lightning.pytorch import Callback
from models.families import build as build_family
from torch import nn

from lit_compress.functional import head_scores, neuron_scores
from lit_compress.nn import compressible_layers
from lit_compress.strategies import LayerDropping, MovementPruning, QuantAwareTraining, StructuredPruning


class Watch(Callback):
    """How many groups each marked layer keeps after each optimizer step; entry 0 is before the first."""

    def __init__(self):
        self.kept, self.scores = {}, {}

    def on_train_batch_start(self, run, module, batch, batch_idx):
        self._look(run.global_step, module)

    def on_train_end(self, run, module):
        self._look(run.global_step, module)

    def _look(self, step, module):
        for name, layer in marked(module.student).items():
            self.kept.setdefault(name, {}).setdefault(step, int(layer.kept_groups.sum()))
            self.scores.setdefault(name, {}).setdefault(step, layer.group_scores.clone())


def marked(model):
    return {name: layer for name, layer in compressible_layers(model) if layer.kept_groups is not None}


@pytest.fixture
def prune(tiny_teacher, tiny_data, tmp_path):
    def run(*more, trainer_options=None, **arguments):
        module, watch = student(tiny_teacher), Watch()
        strategies = [StructuredPruning(**arguments), *more, watch]
        fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path, **trainer_options or {})
        return module, watch

    return run


WRONG = {
    "nothing to remove": ({}, ["StructuredPruning.heads", "heads or neurons"]),
    "no head": ({"heads": 0}, ["StructuredPruning.heads: 0", "1 or more"]),
    "negative": ({"neurons": -3}, ["StructuredPruning.neurons: -3"]),
    "a whole fraction": ({"neurons": 1.0}, ["StructuredPruning.neurons: 1.0", "(0, 1)"]),
    "no number": ({"neurons": float("nan")}, ["StructuredPruning.neurons: nan"]),
    "scope": ({"heads": 1, "scope": "model"}, ["StructuredPruning.scope: 'model'", "layer, global"]),
    "criterion": ({"heads": 1, "criterion": "random"}, ["StructuredPruning.criterion: 'random'", "taylor, magnitude"]),
    "no prunings": ({"heads": 1, "pruning_steps": 0}, ["StructuredPruning.pruning_steps: 0"]),
    "scores of magnitude": (
        {"heads": 1, "pruning_steps": 1, "end": "0%", "criterion": "magnitude", "score_batches": 3},
        ["StructuredPruning.score_batches: 3 has no effect"],
    ),
    "scores during training": ({"heads": 1, "score_batches": 3}, ["StructuredPruning.score_batches: 3 has no effect"]),
    "no batch": (
        {"heads": 1, "pruning_steps": 1, "end": "0%", "score_batches": 0},
        ["StructuredPruning.score_batches: 0"],
    ),
    "no head of a layer": ({"heads": [2, 0]}, ["StructuredPruning.heads: 0 must be", "1 or more"]),
    "each layer of a global scope": (
        {"neurons": [9, 4], "scope": "global"},
        ["StructuredPruning.neurons: [9, 4]", "global", "use scope layer"],
    ),
    "end before start": ({"heads": 1, "start": "50%", "end": "10%"}, ["StructuredPruning.end", "'10%'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case):
    arguments, words = WRONG[case]
    message = error_of(lambda: StructuredPruning(**arguments))
    assert all(word in message for word in words), message


REFUSED = {
    "as many heads as there are": (
        {"heads": 2, "pruning_steps": 2},
        ["StructuredPruning.heads: 2 removes nothing", "more than 2"],
    ),
    "more neurons than there are": (
        {"neurons": 65, "pruning_steps": 2},
        ["StructuredPruning.neurons: 65 removes nothing"],
    ),
    "numbers for other layers": (
        {"heads": [2, 1, 1], "pruning_steps": 2},
        ["StructuredPruning.heads: [2, 1, 1] has 3 numbers", "are 2"],
    ),
    "no numbers": ({"neurons": [], "pruning_steps": 2}, ["StructuredPruning.neurons: [] has 0 numbers"]),
    "more than one layer has": (
        {"neurons": [8, 65], "pruning_steps": 2},
        ["StructuredPruning.neurons: 65 is more than the 64 neurons of layer 1"],
    ),
    "all that each layer has": (
        {"neurons": [64, 64], "pruning_steps": 2},
        ["StructuredPruning.neurons: [64, 64] removes nothing"],
    ),
    "more prunings than steps": ({"heads": 1, "end": "3 steps"}, ["StructuredPruning.pruning_steps: 10", "step 3"]),
    "a window after the run": ({"heads": 1, "end": "99 steps"}, ["StructuredPruning.end", "99"]),
    "many prunings before training": (
        {"heads": 1, "end": "0%", "pruning_steps": 2},
        ["StructuredPruning.pruning_steps: 2"],
    ),
    "targets without heads": (
        {"heads": 1, "targets": ["*.intermediate.dense"]},
        ["StructuredPruning.targets", "heads could be removed", "attention.output.dense"],
    ),
    "an ignore that matches nothing": ({"heads": 1, "ignore": ["*.nothing"]}, ["StructuredPruning.ignore"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_run_or_the_model_is_refused_before_training(case, prune):
    arguments, words = REFUSED[case]
    message = error_of(lambda: prune(**arguments))
    assert all(word in message for word in words), message


def test_a_family_without_removable_heads_is_refused_with_its_reason():
    module = nn.Module()
    module.student = build_family("xlnet")
    assert error_of(lambda: StructuredPruning(heads=1).setup(None, module, "validate")).startswith(
        "StructuredPruning.heads: "
    )


def test_widths_fall_in_equal_parts_through_the_window(prune):
    _, watch = prune(heads=1, neurons=16, pruning_steps=3, start="1 steps", end="7 steps")
    for name, kept in watch.kept.items():
        expected = [2, 2, 2, 2, 2, 1, 1, 1, 1] if "attention" in name else [64, 64, 64, 48, 48, 32, 32, 16, 16]
        assert list(kept.values()) == expected, name
    assert len(watch.kept) == 4


def test_a_list_says_what_each_layer_keeps(prune):
    _, watch = prune(heads=[2, 1], neurons=[0.25, 64], pruning_steps=3, start="1 steps", end="7 steps")
    assert [list(kept.values()) for kept in watch.kept.values()] == [
        [2] * 9,
        [64, 64, 64, 48, 48, 32, 32, 16, 16],
        [2, 2, 2, 2, 2, 1, 1, 1, 1],
        [64] * 9,
    ]


def test_amounts_of_uneven_layers_are_sums(prune):
    module, _ = prune(heads=[1, 2], neurons=[40, 7], pruning_steps=1, end="0%", criterion="magnitude")
    strategy = StructuredPruning(heads=[1, 2], neurons=[30, 7])
    assert strategy.amounts(module) == ("3 heads, 37 neurons", "3 heads, 47 neurons")


def test_a_list_counts_the_layers_that_dropping_left(tiny_teacher, tiny_data, tmp_path):
    def run(*order):
        dropping, pruning = LayerDropping(keep=[1]), StructuredPruning(neurons=[9], pruning_steps=1, end="0%")
        strategies = [{"drop": dropping, "prune": pruning}[name] for name in order]
        module = student(tiny_teacher)
        fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path / order[0], max_steps=1)
        return [int(layer.kept_groups.sum()) for layer in marked(module.student).values()]

    assert run("drop", "prune") == [9]
    assert "after LayerDropping, which comes before" in error_of(run, "prune", "drop")


def test_less_than_a_quarter_of_a_layer_is_said(prune, caplog):
    prune(neurons=15, heads=1, pruning_steps=2)  # of 64 and of 2
    found = [record.getMessage() for record in caplog.records if " are left" in record.getMessage()]
    assert [message.partition(",")[0] for message in found] == [
        "StructuredPruning.neurons: 15 of 64 neurons of a layer are left"
    ]


def test_importance_is_collected_in_the_window_and_forgotten_at_each_pruning(prune):
    _, watch = prune(neurons=16, pruning_steps=2, start="1 steps", end="5 steps")
    for scores in watch.scores.values():
        assert [bool(score.any()) for score in scores.values()] == [
            *(False, False, True, False, True),
            *(False, False, False, False),
        ]


def test_a_pruned_group_collects_no_importance(prune):
    module, watch = prune(neurons=16, pruning_steps=2, start="0 steps", end="6 steps")
    for name, scores in watch.scores.items():
        gone = ~marked(module.student)[name].kept_groups
        assert int((scores[5] == 0).sum()) >= int(gone.sum()) // 2


class Gradients(Callback):
    """Importance as its definition says, from the gradients of whole training steps."""

    def __init__(self, until):
        self.until, self.sums = until, {}

    def on_before_optimizer_step(self, run, module, optimizer):
        if run.global_step >= self.until:
            return
        for name, layer in compressible_layers(module.student):
            product = (layer.weight * layer.weight.grad).abs().detach()
            self.sums[name] = self.sums.get(name, 0) + product


def test_the_least_important_by_the_gradients_of_training_go(prune):
    gradients = Gradients(until=4)
    module, _ = prune(gradients, heads=1, neurons=10, pruning_steps=1, start="0%", end="4 steps")
    for index in range(2):
        prefix = f"bert.encoder.layer.{index}"
        layers = marked(module.student)
        heads = head_scores(gradients.sums[f"{prefix}.attention.output.dense"], 2)
        assert layers[f"{prefix}.attention.output.dense"].kept_groups.tolist() == (heads == heads.max()).tolist()
        neurons = neuron_scores(
            gradients.sums[f"{prefix}.intermediate.dense"], gradients.sums[f"{prefix}.output.dense"]
        )
        kept = set(layers[f"{prefix}.output.dense"].kept_groups.nonzero().flatten().tolist())
        assert kept == set(neurons.topk(10).indices.tolist())


def test_magnitude_leaves_the_largest(prune, tiny_teacher):
    dense = student(tiny_teacher).student
    module, _ = prune(heads=1, neurons=10, pruning_steps=1, end="0%", criterion="magnitude")
    for index in range(2):
        layer, marks = dense.bert.encoder.layer[index], marked(module.student)
        neurons = neuron_scores(layer.intermediate.dense.weight.abs(), layer.output.dense.weight.abs())
        kept = marks[f"bert.encoder.layer.{index}.output.dense"].kept_groups.nonzero().flatten()
        assert set(kept.tolist()) == set(neurons.topk(10).indices.tolist())
        heads = head_scores(layer.attention.output.dense.weight.abs(), 2)
        assert marks[f"bert.encoder.layer.{index}.attention.output.dense"].kept_groups.tolist() == [
            bool(heads[0] > heads[1]),
            bool(heads[1] > heads[0]),
        ]


def test_a_head_and_a_neuron_are_masked_on_both_sides(prune):
    module, _ = prune(heads=1, neurons=10, pruning_steps=1, end="0%", score_batches=2)
    layers = dict(compressible_layers(module.student))
    for index in range(2):
        prefix = f"bert.encoder.layer.{index}"
        neurons = layers[f"{prefix}.output.dense"].kept_groups
        assert torch.equal(layers[f"{prefix}.output.dense"].weight_mask, neurons.expand(32, 64))
        assert torch.equal(layers[f"{prefix}.intermediate.dense"].weight_mask, neurons[:, None].expand(64, 32))
        heads = layers[f"{prefix}.attention.output.dense"].kept_groups.repeat_interleave(16)
        assert torch.equal(layers[f"{prefix}.attention.output.dense"].weight_mask, heads.expand(32, 32))
        for part in ("query", "key", "value"):
            mask = layers[f"{prefix}.attention.self.{part}"].weight_mask
            assert torch.equal(mask, heads[:, None].expand(32, 32))


def test_a_global_scope_gives_uneven_layers_with_the_same_sum(prune):
    module, _ = prune(neurons=16, scope="global", pruning_steps=1, end="0%", criterion="magnitude")
    widths = [int(layer.kept_groups.sum()) for layer in marked(module.student).values()]
    assert sum(widths) == 32
    assert widths[0] != widths[1]


def test_targets_choose_layers(prune):
    module, _ = prune(heads=1, neurons=8, pruning_steps=1, end="0%", score_batches=1, ignore=["*.layer.1.*"])
    assert set(marked(module.student)) == {
        "bert.encoder.layer.0.attention.output.dense",
        "bert.encoder.layer.0.output.dense",
    }
    assert not any(".layer.1." in name for name, _ in compressible_layers(module.student))


class Trace(Callback):
    """What scoring before the first step could have left behind; between the two, the strategy runs."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, run, module):
        state = {name: value.clone() for name, value in module.state_dict().items() if "group" not in name}
        self.seen.append(
            {
                "state": {name: value for name, value in state.items() if "mask" not in name and value.ndim < 2},
                "random": torch.get_rng_state(),
                "modes": [m.training for m in module.modules()],
                "gradients": [p.grad for p in module.parameters()],
                "data": run.train_dataloader.state_dict(),
                "moments": len(run.optimizers[0].state),
            }
        )


def same(first, second):
    return {
        key: all(torch.equal(a, second[key][n]) for n, a in first[key].items())
        if key == "state"
        else torch.equal(first[key], second[key])
        if key == "random"
        else first[key] == second[key]
        for key in first
    }


def test_scoring_before_training_leaves_no_trace(tiny_teacher, tiny_data, tmp_path):
    module, before, after = student(tiny_teacher), Trace(), Trace()
    strategies = [
        before,
        QuantAwareTraining(start="0%"),
        StructuredPruning(neurons=8, pruning_steps=1, end="0%"),
        after,
    ]
    fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path, max_epochs=1)
    assert all(same(before.seen[0], after.seen[0]).values())
    assert {int(layer.kept_groups.sum()) for layer in marked(module.student).values()} == {8}


def test_scoring_before_training_is_the_importance_for_the_task(tiny_teacher, tiny_data, tmp_path):
    # One batch of all rows, whatever their order.
    dense, datamodule = student(tiny_teacher).eval(), data(tiny_data, tiny_teacher, batch_size=64)
    datamodule.setup("fit")
    dense.task_loss(next(iter(datamodule.train_dataloader()))).backward()
    kept = []
    for run in ("a", "b"):
        # The teacher has no say.
        module = student(tiny_teacher, tiny_teacher if run == "b" else None)
        strategy = StructuredPruning(neurons=20, pruning_steps=1, end="0%", score_batches=1)
        fit(module, data(tiny_data, tiny_teacher, batch_size=64), [strategy], tmp_path / run, max_steps=1)
        kept.append([layer.kept_groups for layer in marked(module.student).values()])
        torch.rand(9)
    for index, (first, again) in enumerate(zip(*kept, strict=True)):
        layer = dense.student.bert.encoder.layer[index]
        weights = [linear.weight for linear in (layer.intermediate.dense, layer.output.dense)]
        scores = neuron_scores(*((weight * weight.grad).abs().detach() for weight in weights))
        assert torch.equal(first, again)
        assert set(first.nonzero().flatten().tolist()) == set(scores.topk(20).indices.tolist())


def test_layers_that_learn_their_masks_are_refused(prune):
    message = error_of(lambda: prune(MovementPruning(), neurons=8, pruning_steps=1))
    assert "StructuredPruning.targets" in message
    assert "learns its mask" in message


def test_accumulated_gradients_count_optimizer_steps(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    run = fit(
        module,
        data(tiny_data, tiny_teacher, batch_size=4),
        [StructuredPruning(neurons=16, pruning_steps=2)],
        tmp_path,
        accumulate_grad_batches=4,
    )
    assert run.global_step == STEPS
    assert {int(layer.kept_groups.sum()) for layer in marked(module.student).values()} == {16}
