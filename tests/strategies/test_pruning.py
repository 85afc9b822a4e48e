"""What each importance looks at, and what each pattern does with it; that pairs are exact is in tests/contracts."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from contracts.errors import error_of
from contracts.training import STEPS, data, fit, student
from lightning.pytorch import Callback
from models.families import build

from lit_compress.models.heads_and_neurons import removable_groups
from lit_compress.modules import LitStudent, ScorePenalty
from lit_compress.nn import compressible_layers, make_compressible
from lit_compress.strategies import Activations, Fisher, Function, MagnitudePruning, Movement, Pruning, Taylor
from lit_compress.strategies.units import GroupUnits

# What the linears belong to that make heads and neurons.
GROUPED = {"self": ["heads"], "intermediate": ["neurons"]}
ONE_SHOT = {"sparsity": 0.6, "schedule": "constant", "start": "3 steps", "end": "3 steps"}


class Passes(Callback):
    """How often the loss is asked for between the steps, by step."""

    def __init__(self, monkeypatch):
        self.asked, original = {}, LitStudent.task_loss

        def counted(module, batch):
            self.asked[module.global_step] = self.asked.get(module.global_step, 0) + 1
            return original(module, batch)

        monkeypatch.setattr(LitStudent, "task_loss", counted)


class Before(Callback):
    """The student as it is when the strategy after this callback looks at it, and its masks after each step."""

    def __init__(self):
        self.states, self.masks, self.kept = {}, {}, {}

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self.states[run.global_step] = {name: value.clone() for name, value in module.student.state_dict().items()}

    def on_train_batch_start(self, run, module, batch, batch_idx):
        layers = dict(compressible_layers(module.student))
        self.masks[run.global_step] = {name: layer.weight_mask.clone() for name, layer in layers.items()}
        self.kept[run.global_step] = {
            name: layer.kept_groups.clone() for name, layer in layers.items() if layer.kept_groups is not None
        }


@pytest.fixture
def prune(tiny_teacher, tiny_data, tmp_path):
    def run(*callbacks, penalties=None, **options):
        module, before = student(tiny_teacher, **({"penalties": penalties} if penalties else {})), Before()
        fit(
            module,
            data(tiny_data, tiny_teacher),
            [before, Pruning(**options), *callbacks],
            Path(tempfile.mkdtemp(dir=tmp_path)),
        )
        return module, before

    return run


def lowest_went(scores, mask, sparsity):
    assert int((~mask).sum()) == round(sparsity * mask.numel())
    assert scores[~mask].max() <= scores[mask].min() * (1 + 1e-5)


def test_activations_are_norms_over_the_tokens_that_are_attended_to(prune, tiny_teacher, tiny_data):
    # As many rows as there are, each drawn once.
    module, before = prune(importance=Activations(batches=4, batch_size=16), **ONE_SHOT)
    model, datamodule = student(tiny_teacher).eval(), data(tiny_data, tiny_teacher)
    weights = {name: value for name, value in before.states[3].items() if "mask" not in name}
    model.student.load_state_dict(weights)
    datamodule.setup("fit")
    inputs, names = {}, [name for name, _ in compressible_layers(module.student)]
    with torch.no_grad():
        for batch in datamodule.train_dataloader():
            mask = batch.inputs["attention_mask"].bool()
            hooks = [
                model.student.get_submodule(name).register_forward_hook(
                    lambda _, given, __, name=name, mask=mask: inputs.setdefault(name, []).append(given[0][mask])
                )
                for name in names
            ]
            model(batch)
            for hook in hooks:
                hook.remove()
    for name in names:
        norms = torch.cat(inputs[name]).square().mean(0).sqrt()
        lowest_went(weights[f"{name}.weight"].abs() * norms, before.masks[3][name], 0.6)
        assert not torch.equal(norms, torch.ones_like(norms))


@pytest.mark.parametrize(("pattern", "rows", "columns"), [("unstructured", 1, 1), ("2x4", 2, 4)])
def test_every_output_reaches_the_sparsity(pattern, rows, columns, prune):
    options = {"start": "1 steps", "end": "6 steps", "every": "1 steps"}
    module, before = prune(importance=Activations(2, 4), pattern=pattern, sparsity=0.75, scope="output", **options)
    for name, layer in compressible_layers(module.student):
        height, width = layer.weight.shape
        blocks = layer.weight_mask.reshape(height // rows, rows, width // columns, columns).float().mean((1, 3))
        assert set(blocks.flatten().tolist()) <= {0.0, 1.0}
        assert ((blocks == 0).sum(1) == round(0.75 * blocks.shape[1])).all()
        assert not (before.masks[4][name] & ~before.masks[3][name]).any()


class Gradients(Callback):
    """The importance of each weight as its definition says, from the gradients of whole training steps."""

    def __init__(self):
        self.sums = {}

    def on_before_optimizer_step(self, run, module, optimizer):
        for name, layer in compressible_layers(module.student):
            product = (layer.weight * layer.weight.grad).abs().detach() if 1 <= run.global_step < 4 else 0
            self.sums[name] = self.sums.get(name, 0) + product


def test_taylor_adds_up_the_training_steps_since_the_last_update(prune):
    gradients = Gradients()
    # Nothing is pruned at the first update, where there is nothing to look at yet.
    window = {"start": "1 steps", "end": "4 steps", "every": "3 steps"}
    module, before = prune(gradients, importance=Taylor(), sparsity=0.5, **window)
    for name, scores in gradients.sums.items():
        assert before.masks[3][name].all()
        lowest_went(scores, before.masks[4][name], 0.5)
    assert not any(layer.weight_scores.any() for _, layer in compressible_layers(module.student))


def test_a_function_gets_what_its_parameters_ask_for(prune):
    seen = {}

    def importance(weight, gradients, input_norms, scale=2.0):
        seen[len(seen)] = (weight.shape, gradients.shape, input_norms.shape)
        assert (gradients >= 0).all()
        assert (input_norms > 0).any()
        return scale * gradients

    prune(importance=Function(importance, batches=2, batch_size=4), **ONE_SHOT)
    assert len(seen) == 12
    assert all(weight == gradients and inputs == weight[1:] for weight, gradients, inputs in seen.values())


SAVED = {
    "2:4, which takes whole weights": ({"sparsity": 0.5, "pattern": "2:4"}, {3: 4, 7: 4}),
    "a count rounded down": ({"sparsity": 0.8, "schedule": "constant"}, {1: 4}),
    "balanced blocks": ({"sparsity": 0.5, "pattern": "4x4/4", "schedule": "linear"}, {3: 4, 5: 4, 6: 4}),
    "neurons": ({"sparsity": 0.1, "pattern": "neurons", "schedule": "constant"}, {1: 4}),
    "two heads": ({"sparsity": 0.5, "pattern": "heads", "schedule": "linear"}, {5: 4}),
    "all layers together": ({"sparsity": 0.8, "scope": "global", "schedule": "constant"}, {1: 4}),
}


@pytest.mark.parametrize(("options", "passes"), SAVED.values(), ids=SAVED)
def test_an_update_that_prunes_nothing_takes_no_passes(options, passes, prune, monkeypatch):
    count = Passes(monkeypatch)
    fisher = Fisher(gradients=4, gradient_batch_size=4, damping=1e-4, block_size=8)
    _, before = prune(importance=fisher, start="1 steps", end="7 steps", every="1 steps", **options)
    assert count.asked == passes
    changed = [
        step
        for step in range(1, STEPS)
        for name, mask in before.masks[step].items()
        if not torch.equal(mask, before.masks[step - 1][name])
    ]
    assert set(changed) == set(passes)


def test_parts_of_an_update_are_of_what_all_layers_together_have_left():
    model = build("bert")
    groups = {"neurons": removable_groups(model, "neurons", "test")}
    names = [name for one in groups["neurons"] for name in (one.consumer, *one.producers)]
    for layer in make_compressible(model, names).values():
        layer.add_mask()
    final = {"neurons": [one.count // 2 for one in groups["neurons"]]}
    units = GroupUnits(model, groups, final, "global")
    units.add_groups()
    first, *others = groups["neurons"]
    # The first layer has lost all that it could lose on the average, the others keep everything.
    model.get_submodule(first.consumer).kept_groups[: first.count // 2] = False
    assert units.reached() == pytest.approx(1 / (1 + len(others)))
    assert replace(units, scope="layer").reached() == 0


WRONG = {
    "a class of ours": (Pruning, {"importance": Activations}, "Pruning.importance: the class Activations "),
    "a class": (Pruning, {"importance": torch.nn.Linear}, "Pruning.importance: the class Linear "),
    "a name": (Pruning, {"importance": "Magnitude"}, "Pruning.importance: 'Magnitude' "),
    "a number": (MagnitudePruning, {"criterion": 3}, "MagnitudePruning.criterion: 3 "),
    "a class in a function": (Pruning, {"importance": Function(Fisher)}, "Pruning.importance: the class Fisher "),
}


@pytest.mark.parametrize(("kind", "options", "line"), WRONG.values(), ids=WRONG)
def test_what_is_no_importance_is_one_line_before_the_training(kind, options, line):
    assert error_of(lambda: kind(**options)).startswith(line)


def test_no_step_matches_names(prune, monkeypatch):
    calls, original = [], Pruning._match

    def counted(self, student):
        calls.append(student)
        return original(self, student)

    class InTraining(Callback):
        def on_train_batch_start(self, run, module, batch, batch_idx):
            calls.clear()  # a checkpoint says how much is pruned

        def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
            assert not calls

    monkeypatch.setattr(Pruning, "_match", counted)
    prune(InTraining(), importance=Taylor(), sparsity=0.5, start="1 steps", end="7 steps", every="1 steps")


def test_only_layers_that_make_up_for_something_are_sampled_again(prune, monkeypatch):
    count = Passes(monkeypatch)
    # One layer at a time: four for the scores, and of those that read neurons two again.
    fisher = Fisher(gradients=4, gradient_batch_size=4, damping=1e-4, block_size=8, memory=5e-4)
    prune(importance=fisher, pattern="neurons", **ONE_SHOT)
    assert count.asked == {3: 4 * (4 + 2)}


def test_scores_of_another_shape_are_one_line(prune):
    def importance(weight):
        return weight.abs().sum(1)

    message = error_of(lambda: prune(importance=importance, **ONE_SHOT))
    assert message.startswith("Pruning.importance: 'importance' gives scores of shape (32,) for a weight of (32, 32)")


def test_what_reads_a_neuron_makes_up_for_it(prune):
    fisher = Fisher(gradients=16, gradient_batch_size=8, damping=1e-4, block_size=16)
    _, before = prune(importance=fisher, pattern="neurons", **ONE_SHOT | {"start": "100%", "end": "100%"})
    module, _ = prune(importance=fisher, pattern="neurons", **ONE_SHOT | {"start": "100%", "end": "100%"})
    for name, layer in compressible_layers(module.student):
        kept, old = layer.weight_mask, before.states[STEPS][f"{name}.weight"]
        reads = layer.kept_groups is not None
        assert torch.equal(layer.weight[kept], old[kept]) is not reads, name


@pytest.mark.parametrize("pattern", ["heads", "neurons"])
def test_groups_with_learned_scores_come_back_until_the_last_update(pattern, prune):
    options = {"start": "0%", "end": "0%", "every": "1 steps", "last_update": "7 steps"}
    module, before = prune(importance=Movement(), pattern=pattern, sparsity=0.5, **options)
    kept = {step: torch.cat(list(groups.values())) for step, groups in before.kept.items() if step >= 2}
    changes = [bool((kept[step] & ~kept[step - 1]).any()) for step in range(3, STEPS)]
    assert any(changes)
    layers = dict(compressible_layers(module.student))
    assert torch.equal(kept[7], torch.cat([one.kept_groups for one in layers.values() if one.kept_groups is not None]))
    for name, layer in layers.items():
        assert not layer.weight[~layer.weight_mask].any()
        if layer.kept_groups is None:  # what makes them learns on until the last update
            assert before.masks[6][name].all()
            assert pattern not in GROUPED[name.split(".")[-2]] or not before.masks[7][name].all()


def test_soft_movement_by_its_importance(prune):
    importance = Movement(method="soft", threshold=0.5)
    options = {"start": "0%", "end": "50%", "every": "1 steps", "last_update": "75%"}
    module, _ = prune(importance=importance, penalties={"scores": ScorePenalty(100.0)}, **options)
    masks = [layer.weight_mask for _, layer in compressible_layers(module.student)]
    assert 0 < sum(int((~mask).sum()) for mask in masks) < sum(mask.numel() for mask in masks)
    assert "Pruning.importance.method: soft" in error_of(lambda: prune(importance=importance, **options))


def test_looking_at_inputs_compiles_nothing_anew(tiny_teacher, tiny_data, tmp_path):
    masks, frames = [], []
    for compiled in (False, True):
        module, counter = student(tiny_teacher), torch._dynamo.testing.CompileCounter()
        if compiled:
            torch._dynamo.reset()
            module.student.compile(backend=counter, dynamic=True)
        pruning = Pruning(Activations(2, 4), sparsity=0.5, start="1 steps", end="3 steps", every="1 steps")
        options = {"max_epochs": 1, "limit_val_batches": 0}
        fit(module, data(tiny_data, tiny_teacher), [pruning], tmp_path / str(compiled), **options)
        masks.append([layer.weight_mask for _, layer in compressible_layers(module.student)])
        frames.append(counter.frame_count)
    assert all(torch.equal(first, second) for first, second in zip(*masks, strict=True))
    assert frames == [0, 1]  # the student as it is trained
