"""Every importance with every pattern: the final amount is exact, and a resumed run is the same to the last bit."""

import pytest
import torch
from contracts.errors import error_of
from contracts.table import IMPORTANCES, PATTERNS, pruning
from contracts.training import STEPS, data, differences, fit, student

from lit_compress.export import fold, load_checkpoint, student_from_checkpoint
from lit_compress.nn import compressible_layers
from lit_compress.strategies import Fisher, Movement, Pruning, Taylor

PAIRS = [(importance, pattern) for importance in IMPORTANCES for pattern in PATTERNS]


def check_mask(pattern, mask):
    """Exactly what was asked for, in the pattern."""
    rows, columns = mask.shape
    if pattern == "unstructured":
        assert int((~mask).sum()) == round(0.7 * mask.numel())
    elif pattern == "2:4":
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
    else:
        height, width = (4, 2) if pattern == "4x2" else (8, 4)
        blocks = mask.reshape(rows // height, height, columns // width, width).transpose(1, 2).float().mean((2, 3))
        assert set(blocks.flatten().tolist()) <= {0.0, 1.0}
        if pattern == "4x2":
            assert int((blocks == 0).sum()) == round(0.75 * blocks.numel())
        else:
            assert (blocks.sum(1) == columns // width // 2).all()


@pytest.mark.parametrize(("importance", "pattern"), PAIRS)
def test_a_pair_reaches_its_amount_and_resumes_exactly(importance, pattern, tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    fit(module, data(tiny_data, tiny_teacher), [pruning(importance, pattern)], tmp_path)
    groups = []
    for _, layer in compressible_layers(module.student):
        assert not layer.weight[~layer.weight_mask].any()
        if pattern not in ("heads", "neurons"):
            check_mask(pattern, layer.weight_mask)
        elif layer.kept_groups is not None:
            groups.append((int(layer.kept_groups.sum()), len(layer.kept_groups)))
    assert groups == ({"heads": [(1, 2)] * 2, "neurons": [(16, 64)] * 2}.get(pattern, []))
    last = load_checkpoint(tmp_path / f"step={STEPS}.ckpt")
    assert last["lit_compress"]["unfinished"] == []
    for step in (2, 3):  # before and after an update
        again = student(tiny_teacher)
        path = tmp_path / f"step={step}.ckpt"
        fit(again, data(tiny_data, tiny_teacher), [pruning(importance, pattern)], tmp_path / str(step), ckpt_path=path)
        resumed = load_checkpoint(tmp_path / str(step) / f"step={STEPS}.ckpt")
        for part in ("state_dict", "optimizer_states", "lit_compress"):
            assert differences(last[part], resumed[part]) == []
    alone = student_from_checkpoint(last)
    assert differences(dict(fold(module.student).state_dict()), dict(fold(alone).state_dict())) == []


SENSELESS = {
    "layers": (lambda: Pruning(pattern="layers"), ["Pruning.pattern: 'layers'", "GradualLayerDropping"]),
    "ranks": (lambda: Pruning(Taylor(), "ranks"), ["Pruning.pattern: 'ranks'", "LowRankEmbedding"]),
    "soft movement of blocks": (
        lambda: Pruning(Movement(method="soft"), "1x4"),
        ["Pruning.importance.method: soft", "'1x4'", "hard"],
    ),
    "soft movement of heads": (
        lambda: Pruning(Movement(method="soft"), "heads"),
        ["Pruning.importance.method: soft", "'heads'"],
    ),
    "soft movement to a sparsity": (
        lambda: Pruning(Movement(method="soft"), sparsity=0.5),
        ["Pruning.sparsity: has no effect on method soft"],
    ),
    "groups that the Fisher matrix cuts": (
        lambda: Pruning(Fisher(block_size=50), "1x4"),
        ["Pruning.importance.block_size: 50 is not a multiple of the 4", "48"],
    ),
    "Fisher that comes back": (lambda: Pruning(Fisher(), regrowth=True), ["Pruning.regrowth", "compensated for it"]),
    "Taylor that comes back": (lambda: Pruning(Taylor(), regrowth=True), ["Pruning.regrowth", "no gradient"]),
    "movement that comes back": (lambda: Pruning(Movement(), regrowth=True), ["Pruning.regrowth", "always"]),
    "global N:M": (
        lambda: Pruning(Taylor(), "2:4", sparsity=0.5, scope="global"),
        ["Pruning.scope: global has no meaning for '2:4'"],
    ),
    "global balanced blocks": (
        lambda: Pruning(Movement(), "tall_blocks", scope="global"),
        ["Pruning.scope: global has no meaning for 'tall_blocks'"],
    ),
    "2:4 of each output": (
        lambda: Pruning(pattern="2:4", sparsity=0.5, scope="output"),
        ["Pruning.scope: output has no meaning for '2:4'"],
    ),
    "heads of each output": (
        lambda: Pruning(pattern="heads", scope="output"),
        ["Pruning.scope: output has no meaning for 'heads'"],
    ),
    "neurons sorted by what is not known yet": (
        lambda: Pruning(Taylor(), "tall_blocks", permute_neurons=True),
        ["Pruning.permute_neurons", "Taylor", "Magnitude"],
    ),
    "a statistic that there is not": (
        lambda: Pruning(lambda weight, hessian: weight),
        ["Pruning.importance", "'hessian'", "input_norms, gradients"],
    ),
    "an option of the importance": (lambda: Pruning(Taylor(0)), ["Pruning.importance.score_batches: 0"]),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_a_pair_without_sense_is_refused_with_its_reason(case):
    make, words = SENSELESS[case]
    message = error_of(make)
    assert [word for word in words if word not in message] == []


def test_two_strategies_may_be_given_the_same_importance(tiny_teacher, tiny_data, tmp_path):
    importance = Fisher(gradients=4, gradient_batch_size=4, damping=1e-4, block_size=16)
    window = {"start": "2 steps", "end": "2 steps"}
    attention = Pruning(importance, "2:4", 0.5, targets=["*.attention.*"], **window)
    rest = Pruning(importance, "1x4", 0.5, targets=["*.intermediate.*"], scope="global", **window)
    module = student(tiny_teacher)
    fit(module, data(tiny_data, tiny_teacher), [attention, rest], tmp_path)
    for name, layer in compressible_layers(module.student):
        groups = layer.weight_mask.reshape(-1, 4).sum(1)
        assert torch.equal(groups.unique(), torch.tensor([2] if ".attention." in name else [0, 4])), name
