from itertools import pairwise

import pytest
import torch
from contracts.errors import error_of
from contracts.training import STEPS, data, fit, student
from lightning.pytorch import Callback, LightningModule
from models.families import batch, build
from transformers import AutoModelForSequenceClassification

from lit_compress.functional import Cubic
from lit_compress.nn import compressible_layers
from lit_compress.strategies import MagnitudePruning, PatternLock


class Watch(Callback):
    """The masks after each optimizer step; entry 0 is before the first."""

    def __init__(self):
        self.masks = {}

    def on_train_batch_start(self, run, module, batch, batch_idx):
        self._look(run.global_step, module)

    def on_train_end(self, run, module):
        self._look(run.global_step, module)

    def _look(self, step, module):
        if step not in self.masks:
            self.masks[step] = {n: layer.weight_mask.clone() for n, layer in compressible_layers(module.student)}

    @property
    def changes(self):
        """Steps after which some mask was another one than before."""
        dense = {name: torch.ones_like(mask) for name, mask in self.masks[0].items()}
        states = [(-1, dense), *self.masks.items()]
        return [
            step
            for (_, old), (step, new) in pairwise(states)
            if any(not torch.equal(old[name], new[name]) for name in new)
        ]

    @property
    def sparsities(self):
        """Fraction of pruned weights after each step, over all layers."""
        return {
            step: sum(int((~mask).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
            for step, masks in self.masks.items()
        }


def upside_down(weight):
    """A criterion that prunes the largest weights."""
    return -weight.abs()


@pytest.fixture
def prune(tiny_teacher, tiny_data, tmp_path):
    def run(trainer_options=None, data_options=None, **arguments):
        module, watch = student(tiny_teacher), Watch()
        datamodule = data(tiny_data, tiny_teacher, **data_options or {})
        fit(module, datamodule, [MagnitudePruning(**arguments), watch], tmp_path, **trainer_options or {})
        return module, watch

    return run


WRONG = {
    "sparsity of one": ({"sparsity": 1.0}, ["MagnitudePruning.sparsity", "1.0", "[0, 1)"]),
    "sparsity in percent": ({"sparsity": 80}, ["MagnitudePruning.sparsity", "80"]),
    "negative sparsity": ({"sparsity": -0.1}, ["MagnitudePruning.sparsity", "-0.1"]),
    "sparsity that is not a number": ({"sparsity": float("nan")}, ["MagnitudePruning.sparsity", "nan"]),
    "negative start": ({"initial_sparsity": -0.5}, ["MagnitudePruning.initial_sparsity", "-0.5"]),
    "initial above final": (
        {"sparsity": 0.5, "initial_sparsity": 0.7},
        ["MagnitudePruning.initial_sparsity", "0.7", "0.5"],
    ),
    "initial of a constant": ({"schedule": "constant", "initial_sparsity": 0.3}, ["MagnitudePruning.initial_sparsity"]),
    "end before start": ({"start": "50%", "end": "20%"}, ["MagnitudePruning.end", "'20%'", "'50%'"]),
    "no unit": ({"start": "3"}, ["MagnitudePruning.start", "'3'", "steps"]),
    "unknown unit": ({"end": "3 hours"}, ["MagnitudePruning.end", "'3 hours'"]),
    "negative distance": ({"every": "-1 steps"}, ["MagnitudePruning.every", "'-1 steps'"]),
    "unknown schedule": ({"schedule": "quadratic"}, ["MagnitudePruning.schedule", "'quadratic'", "cubic"]),
    "unknown scope": ({"scope": "all"}, ["MagnitudePruning.scope", "'all'", "global"]),
    **{
        f"pattern {pattern!r}": ({"pattern": pattern}, ["MagnitudePruning.pattern", repr(pattern), "'2:4'", "'1x4'"])
        for pattern in ("", "2/4", "4:2", "4:4", "0:4", "0x4", "4x", "2:4:8", "structured", "-1x4")
    },
    "no rows of balanced blocks": ({"pattern": "0x4/2"}, ["MagnitudePruning.pattern", "'0x4/2'", "tall_blocks"]),
    "global tall blocks": ({"pattern": "tall_blocks", "scope": "global"}, ["MagnitudePruning.scope", "'tall_blocks'"]),
    "neurons of no blocks": (
        {"permute_neurons": True},
        ["MagnitudePruning.permute_neurons", "'unstructured'", "tall_blocks"],
    ),
    "unquoted in YAML": ({"pattern": "124"}, ["MagnitudePruning.pattern", "'124'"]),  # 2:4 in base 60
    "2:4 at 80 %": ({"pattern": "2:4"}, ["MagnitudePruning.sparsity", "0.8", "'2:4'", "0.5"]),
    "1:4 at 50 %": ({"pattern": "1:4", "sparsity": 0.5}, ["MagnitudePruning.sparsity", "0.5", "'1:4'", "0.75"]),
    "updates of nothing": ({"last_update": "80%"}, ["MagnitudePruning.last_update", "'80%'", "regrowth"]),
    "last update without a unit": ({"regrowth": True, "last_update": "9"}, ["MagnitudePruning.last_update", "'9'"]),
    "global 2:4": (
        {"pattern": "2:4", "sparsity": 0.5, "scope": "global"},
        ["MagnitudePruning.scope", "'2:4'", "layer"],
    ),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_one_line(arguments, words):
    message = error_of(lambda: MagnitudePruning(**arguments))
    assert [word for word in words if word not in message] == []


def test_errors_name_the_class_of_the_user():
    class MyPruning(MagnitudePruning):
        pass

    assert error_of(lambda: MyPruning(sparsity=2)).startswith("MyPruning.sparsity: ")


# Settings that can only be judged once the run and the model are known.
WRONG_IN_A_RUN = {
    "end before start in other units": (
        {"start": "7 steps", "end": "1 epochs"},
        ["MagnitudePruning.end", "step 4", "step 7"],
    ),
    "end after training": ({"end": "9 steps"}, ["MagnitudePruning.end", "step 9", "step 8"]),
    "end epochs after training": ({"end": "3 epochs"}, ["MagnitudePruning.end", "step 12", "step 8"]),
    "last update before the end": (
        {"end": "4 steps", "regrowth": True, "last_update": "2 steps"},
        ["MagnitudePruning.last_update", "step 2", "step 4"],
    ),
    "last update after training": (
        {"regrowth": True, "last_update": "9 steps"},
        ["MagnitudePruning.last_update", "step 9", "step 8"],
    ),
    "more than all": ({"end": "150%"}, ["MagnitudePruning.end", "step 12", "step 8"]),
    "rows that do not divide": ({"pattern": "5x1"}, ["MagnitudePruning.pattern", "'5x1'", "32 x 32", "ignore"]),
    "columns that do not divide": ({"pattern": "1x3"}, ["MagnitudePruning.pattern", "'1x3'", "32 x 32"]),
    "one tall block": ({"pattern": "tall_blocks"}, ["MagnitudePruning.pattern", "'tall_blocks'", "1 blocks", "ignore"]),
    "blocks that all stay": ({"pattern": "8x8/4"}, ["MagnitudePruning.pattern", "'8x8/4'", "4 blocks", "ignore"]),
    "balanced columns": ({"pattern": "8x5/1"}, ["MagnitudePruning.pattern", "'8x5/1'", "32 x 32", "ignore"]),
    "groups that do not divide": (
        {"pattern": "1:3", "sparsity": 1 - 1 / 3},
        ["MagnitudePruning.pattern", "'1:3'", "32 x 32"],
    ),
    "target without a match": ({"targets": ["*.nothing.*"]}, ["MagnitudePruning.targets", "*.nothing.*"]),
    "nothing to ignore": ({"ignore": ["*.nothing.*"]}, ["MagnitudePruning.ignore", "*.nothing.*"]),
    "all ignored": ({"ignore": ["*"]}, ["MagnitudePruning.targets", "ignore"]),
    "bad expression": ({"targets": ["re:("]}, ["MagnitudePruning.targets", "re:("]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG_IN_A_RUN.values(), ids=WRONG_IN_A_RUN)
def test_what_does_not_fit_the_run_is_an_error_before_the_first_step(arguments, words, prune, tmp_path):
    message = error_of(lambda: prune(**arguments))
    assert [word for word in words if word not in message] == []
    assert not list(tmp_path.rglob("*.ckpt"))


# 2 epochs of 4 steps; the masks that steps 0 to 8 may change.
WINDOWS = {
    "every step": ({"start": "0%", "end": "50%", "every": "1 steps"}, [0, 1, 2, 3, 4]),
    "a late start": ({"start": "2 steps", "end": "6 steps", "every": "2 steps"}, [2, 4, 6]),
    "an end that is not a multiple": ({"start": "1 steps", "end": "6 steps", "every": "3 steps"}, [1, 4, 6]),
    "epochs": ({"start": "0.5 epochs", "end": "2 epochs", "every": "0.5 epochs"}, [2, 4, 6, 8]),
    "a distance that rounds to nothing": ({"start": "3 steps", "end": "5 steps", "every": "1%"}, [3, 4, 5]),
    "a distance longer than the window": ({"start": "1 steps", "end": "3 steps", "every": "2 epochs"}, [1, 3]),
    "a single step": ({"start": "5 steps", "end": "5 steps"}, [5]),
    "the very end": ({"start": "100%", "end": "100%"}, [8]),
    "one shot": ({"schedule": "constant", "start": "3 steps", "end": "3 steps"}, [3]),
}


@pytest.mark.parametrize(("arguments", "due"), WINDOWS.values(), ids=WINDOWS)
def test_masks_change_when_they_are_due_and_at_no_other_time(arguments, due, prune):
    settings = {"schedule": "linear", "initial_sparsity": 0.2} if arguments.get("schedule") is None else {}
    _, watch = prune(sparsity=0.9, **settings | arguments)
    assert sorted(watch.masks) == list(range(STEPS + 1))
    assert watch.changes == due
    assert watch.sparsities[STEPS] == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"schedule": "linear"}, [0.2, 0.36, 0.52, 0.68, 0.84]),
        ({"schedule": "cubic"}, [Cubic(initial=0.2, final=0.84)(step / 4) for step in range(5)]),
        ({"schedule": "cosine"}, [0.2, 0.2937, 0.52, 0.7463, 0.84]),
    ],
)
def test_sparsity_follows_the_schedule(arguments, expected, prune):
    _, watch = prune(sparsity=0.84, initial_sparsity=0.2, end="4 steps", every="1 steps", **arguments)
    got = [watch.sparsities[step] for step in range(5)]
    assert got == pytest.approx(expected, abs=1e-3)
    assert [watch.sparsities[step] for step in range(4, STEPS + 1)] == [got[-1]] * 5


# Batch size, batches to a step, what "1 epochs" to "2 epochs" are: an epoch's last, shorter step is one, too.
@pytest.mark.parametrize(("batch_size", "accumulate", "steps"), [(8, 2, [4, 8]), (10, 2, [4, 8]), (13, 2, [3, 6])])
def test_epochs_are_whole_when_gradients_accumulate(batch_size, accumulate, steps, prune):
    _, watch = prune(
        {"accumulate_grad_batches": accumulate}, {"batch_size": batch_size},
        sparsity=0.8, initial_sparsity=0.2, start="1 epochs", end="2 epochs", every="1 epochs",
    )  # fmt: skip
    assert max(watch.masks) == steps[-1]
    assert watch.changes == steps


def test_groups_fill_up_by_whole_zeros(prune):
    _, watch = prune(sparsity=0.75, pattern="2:8", schedule="linear", end="6 steps", every="1 steps")
    for step, expected in enumerate([0, 1, 2, 3, 4, 5, 6]):
        for mask in watch.masks[step].values():
            assert (mask.reshape(-1, 8).logical_not().sum(1) == expected).all()


def test_the_lowest_magnitudes_go(prune, tiny_teacher):
    before = student(tiny_teacher).student
    _, watch = prune(sparsity=0.3, schedule="constant", start="0%", end="0%")
    for name, mask in watch.masks[0].items():
        weight = before.get_submodule(name).weight.abs()
        assert weight[~mask].max() <= weight[mask].min()


def test_a_criterion_of_ones_own_decides(prune, tiny_teacher):
    before = student(tiny_teacher).student
    _, watch = prune(sparsity=0.3, schedule="constant", start="0%", end="0%", criterion=upside_down)
    for name, mask in watch.masks[0].items():
        weight = before.get_submodule(name).weight.abs()
        assert weight[~mask].min() >= weight[mask].max()
        assert int((~mask).sum()) == round(0.3 * mask.numel())


def test_pruned_weights_stay_pruned_whatever_the_criterion_says(prune):
    # To this criterion a zero is the most important weight of all.
    _, watch = prune(sparsity=0.8, end="100%", every="1 steps", criterion=upside_down)
    for earlier, later in pairwise(watch.masks[step] for step in range(STEPS + 1)):
        assert not any((later[name] & ~earlier[name]).any() for name in later)
    assert watch.sparsities[STEPS] == pytest.approx(0.8, abs=1e-3)


def test_targets_and_ignore_choose_layers(prune):
    _, watch = prune(sparsity=0.5, targets=["*.attention.*"], ignore=["re:.*layer\\.0.*"])
    assert list(watch.masks[STEPS]) == [
        f"bert.encoder.layer.1.attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")
    ]


@pytest.mark.parametrize("pattern", ["1x4", " 1 x 4 ", "4x1", "16x16"])
def test_global_blocks_share_one_threshold(pattern, prune):
    _, watch = prune(sparsity=0.5, pattern=pattern.strip(), scope="global", schedule="constant", end="0%")
    rows, columns = (int(side) for side in pattern.split("x"))
    pruned = total = 0
    for mask in watch.masks[0].values():
        height, width = mask.shape
        blocks = mask.reshape(height // rows, rows, width // columns, columns).float().mean(dim=(1, 3))
        assert set(blocks.flatten().tolist()) <= {0.0, 1.0}
        pruned, total = pruned + int((blocks == 0).sum()), total + blocks.numel()
    assert pruned == round(0.5 * total)


@pytest.mark.parametrize("permute_neurons", [False, True])
def test_balanced_blocks_are_equally_many_everywhere(permute_neurons, prune):
    # 12 divides neither 32 nor 64 outputs: the last row of blocks has 8 and 4.
    _, watch = prune(sparsity=0.6, pattern="12x4/2", end="100%", every="1 steps", permute_neurons=permute_neurons)
    for step in range(STEPS + 1):
        for mask in watch.masks[step].values():
            blocks = torch.stack([tile.reshape(len(tile), -1, 4).float().mean(dim=(0, 2)) for tile in mask.split(12)])
            assert set(blocks.flatten().tolist()) <= {0.0, 1.0}
            assert len(set(blocks.sum(1).tolist())) == 1
            assert blocks.sum(1)[0] % 2 == 0
    kept = {mask.shape[1]: int(mask[0].sum()) // 4 for mask in watch.masks[STEPS].values()}
    assert kept == {32: 4, 64: 6}  # of 8 and of 16, the even numbers nearest to 40 %


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_neurons_in_another_order_compute_the_same(family):
    module = LightningModule()
    module.student = build(family, **({"hidden_dim": 64} if family == "distilbert" else {"intermediate_size": 64}))
    before, ups = module.student(**batch()).logits, {name: p.clone() for name, p in module.student.named_parameters()}
    strategy = MagnitudePruning(sparsity=0.5, pattern="8x4/1", permute_neurons=True)
    strategy._permute(module.student)  # of plain linears, or of compressible ones
    moved = [name for name, p in module.student.named_parameters() if not torch.equal(p, ups[name])]
    assert len(moved) >= 6
    assert all(torch.equal(p.sort(0).values, ups[n].sort(0).values) or ".weight" in n
               for n, p in module.student.named_parameters())  # fmt: skip
    assert torch.allclose(module.student(**batch()).logits, before, atol=1e-5)


def test_neurons_of_layers_that_are_left_alone_stay(tiny_teacher):
    model = student(tiny_teacher).student
    before = {name: value.clone() for name, value in model.state_dict().items()}
    MagnitudePruning(0.5, pattern="8x4/1", permute_neurons=True, targets=["*.attention.*"])._permute(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_sparsity_prunes_nothing(prune):
    _, watch = prune(sparsity=0.0)
    assert watch.changes == []


def test_revived_weights_until_the_last_update(prune):
    module, watch = prune(sparsity=0.8, end="2 steps", every="1 steps", regrowth=True, last_update="6 steps")
    assert [watch.sparsities[step] for step in range(2, STEPS + 1)] == pytest.approx([0.8] * 7, abs=1e-3)
    back = [
        any((watch.masks[s][n] & ~watch.masks[s - 1][n]).any() for n in watch.masks[s]) for s in range(1, STEPS + 1)
    ]
    assert any(back[2:6])
    assert not any(back[6:])
    for _, layer in compressible_layers(module.student):
        assert not layer.weight[~layer.weight_mask].any()


def test_a_masked_weight_keeps_its_value_only_until_the_last_update(tiny_teacher, tiny_data, tmp_path):
    class Behind(Watch):
        def _look(self, step, module):
            layers = [layer for _, layer in compressible_layers(module.student)]
            self.masks[step] = all(layer.weight[~layer.weight_mask].ne(0).all() for layer in layers)

    behind = Behind()
    options = {"schedule": "constant", "start": "2 steps", "end": "2 steps", "every": "2 steps"}
    pruning = MagnitudePruning(sparsity=0.5, regrowth=True, last_update="6 steps", **options)
    fit(student(tiny_teacher), data(tiny_data, tiny_teacher), [pruning, behind], tmp_path)
    assert [behind.masks[step] for step in range(2, STEPS + 1)] == [True] * 4 + [False] * 3


def test_locked_zeros_are_not_revived(tiny_teacher, tiny_data, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layer." in name and parameter.ndim == 2:
                parameter[:, ::2] = 0
    model.save_pretrained(tmp_path / "sparse")
    module = student(tmp_path / "sparse")
    # A sparsity below that of the pattern would have room for every locked zero.
    pruning = MagnitudePruning(sparsity=0.3, end="2 steps", every="1 steps", regrowth=True, last_update="100%")
    fit(module, data(tiny_data, tiny_teacher), [PatternLock(), pruning], tmp_path / "run")
    for _, layer in compressible_layers(module.student):
        assert not layer.weight_mask[:, ::2].any()
        assert not layer.weight[:, ::2].any()
