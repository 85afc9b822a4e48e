import tempfile
from pathlib import Path

import pytest
import torch
from contracts.errors import error_of
from contracts.training import STEPS, data, fit, student
from lightning.pytorch import Callback

from lit_compress.export import fold
from lit_compress.functional import Cubic
from lit_compress.modules import L1Penalty, ScorePenalty
from lit_compress.nn import compressible_layers
from lit_compress.strategies import FreezeEmbeddings, MovementPruning, QuantAwareTraining


class Watch(Callback):
    """Masks, scores, weights and what a penalty on the scores counts at each step; entry 0 is before the first."""

    def __init__(self):
        self.steps, self.shares = {}, {}

    def on_train_start(self, run, module):
        self._look(run.global_step, module)

    def on_train_batch_start(self, run, module, batch, batch_idx):
        pruning = next(callback for callback in run.callbacks if isinstance(callback, MovementPruning))
        self.shares[run.global_step] = next(iter(pruning.score_factors(run, module).values()), None)

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self._look(run.global_step, module)

    def _look(self, step, module):
        self.steps[step] = {
            name: (layer.weight_mask.clone(), layer.mask_scores.detach().clone(), layer.weight.detach().clone())
            for name, layer in compressible_layers(module.student)
        }

    @property
    def sparsities(self):
        return [
            sum(int((~mask).sum()) for mask, *_ in step.values()) / sum(mask.numel() for mask, *_ in step.values())
            for step in self.steps.values()
        ]


@pytest.fixture
def prune(tiny_teacher, tiny_data, tmp_path):
    def run(*others, penalties=None, **arguments):
        module = student(tiny_teacher, **({"penalties": penalties} if penalties else {}))
        watch = Watch()
        strategies = [MovementPruning(**arguments), *others, watch]
        fit(module, data(tiny_data, tiny_teacher), strategies, Path(tempfile.mkdtemp(dir=tmp_path)))
        return module, watch

    return run


WRONG = {
    "unknown method": ({"method": "l0"}, ["MovementPruning.method", "'l0'", "soft"]),
    "unknown scope": ({"scope": "all"}, ["MovementPruning.scope", "'all'"]),
    "threshold of hard": ({"threshold": 0.1}, ["MovementPruning.threshold", "hard"]),
    "sparsity of soft": ({"method": "soft", "sparsity": 0.0}, ["MovementPruning.sparsity", "soft"]),
    "initial sparsity of soft": ({"method": "soft", "initial_sparsity": 0.1}, ["MovementPruning.initial_sparsity"]),
    "scope of soft": ({"method": "soft", "scope": "global"}, ["MovementPruning.scope", "soft"]),
    "sparsity of one": ({"sparsity": 1.0}, ["MovementPruning.sparsity", "1.0"]),
    "initial above final": (
        {"sparsity": 0.5, "initial_sparsity": 0.7},
        ["MovementPruning.initial_sparsity", "0.5", "0.7"],
    ),
    "threshold of zero": ({"method": "soft", "threshold": 0.0}, ["MovementPruning.threshold", "0.0"]),
    "threshold of one": ({"method": "soft", "threshold": 1.0}, ["MovementPruning.threshold", "1.0"]),
    "no unit": ({"freeze_masks": "3"}, ["MovementPruning.freeze_masks", "'3'"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_one_line(arguments, words):
    message = error_of(lambda: MovementPruning(**arguments))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"freeze_masks": "50%"}, ["MovementPruning.freeze_masks", "step 4", "step 6"]),
        ({"freeze_masks": "9 steps"}, ["MovementPruning.freeze_masks", "step 9", "step 8"]),
        ({"end": "9 steps"}, ["MovementPruning.end", "step 9", "step 8"]),
        ({"method": "soft"}, ["MovementPruning.method", "ScorePenalty", "LitPrunedStudent"]),
        ({"targets": ["*.nothing.*"]}, ["MovementPruning.targets", "*.nothing.*"]),
    ],
)
def test_what_does_not_fit_the_run_is_an_error_before_the_first_step(arguments, words, prune, tmp_path):
    message = error_of(lambda: prune(**arguments))
    assert [word for word in words if word not in message] == []
    assert not list(tmp_path.rglob("*.ckpt"))


def test_soft_with_another_penalty_only(prune):
    assert "ScorePenalty" in error_of(lambda: prune(method="soft", penalties={"l1": L1Penalty()}))


def test_a_score_penalty_without_soft_movement(prune):
    assert "method soft" in error_of(lambda: prune(penalties={"scores": ScorePenalty()}))


def test_remaining_weights_follow_the_schedule(prune):
    _, watch = prune(sparsity=0.8, initial_sparsity=0.2, start="2 steps", end="6 steps", freeze_masks="7 steps")
    schedule = Cubic(initial=0.2, final=0.8)
    expected = [0, 0, *(schedule(step / 4) for step in range(5)), 0.8, 0.8]
    assert watch.sparsities == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_highest_scores_stay(scope, prune):
    _, watch = prune(sparsity=0.6, scope=scope, start="0%", end="50%")
    layers = list(watch.steps[6].values())
    pools = (
        layers if scope == "layer" else [[torch.cat([t.flatten() for t in part]) for part in zip(*layers, strict=True)]]
    )
    for mask, scores, _ in pools:
        assert scores[mask].min() >= scores[~mask].max()
        assert int((~mask).sum()) == round(0.6 * mask.numel())


def test_masks_change_when_they_are_due(prune):
    _, watch = prune(
        sparsity=0.5, initial_sparsity=0.3, start="1 steps", end="4 steps", every="3 steps", freeze_masks="6 steps"
    )
    masks = [torch.cat([mask.flatten() for mask, *_ in step.values()]) for step in watch.steps.values()]
    changed = [step + 1 for step in range(STEPS) if not torch.equal(masks[step], masks[step + 1])]
    assert changed == [1, 4, 6]


def test_hidden_weights_keep_their_values_until_masks_are_frozen(prune):
    _, watch = prune(sparsity=0.7, start="0%", end="50%", freeze_masks="6 steps")
    for name, (mask, _, weight) in watch.steps[5].items():
        assert (weight[~mask] != 0).all(), name
    for step in (6, 7, 8):
        assert not any(weight[~mask].any() for mask, _, weight in watch.steps[step].values())


def test_a_soft_mask_is_the_score_above_the_threshold(prune):
    _, watch = prune(method="soft", threshold=0.5, start="0%", end="50%", penalties={"scores": ScorePenalty(1.0)})
    for step, share in ((2, Cubic(final=1.0)(0.5)), (6, 1.0)):
        for mask, scores, _ in watch.steps[step].values():
            above = scores.sigmoid() > 0.5 * share
            assert (mask | ~above).all()
            # Beside those above, the highest 0.5 % and one.
            assert int((mask & ~above).sum()) <= int(0.005 * mask.numel()) + 1
    assert 0 < watch.sparsities[-1] < 1


def test_the_penalty_grows_with_the_threshold(prune):
    _, watch = prune(
        method="soft", threshold=0.4, start="2 steps", end="6 steps", penalties={"scores": ScorePenalty(1.0)}
    )
    expected = [Cubic(final=1.0)((step - 2) / 4) for step in range(STEPS)]
    assert [watch.shares[step] for step in range(STEPS)] == pytest.approx(expected)


def test_the_penalty_prunes(prune):
    sparsities = [
        prune(method="soft", threshold=0.5, start="0%", end="50%", penalties={"scores": ScorePenalty(weight)})[
            1
        ].sparsities[-1]
        for weight in (1e-6, 1e3)
    ]
    assert sparsities[1] > sparsities[0] + 0.2
    assert sparsities[1] < 1


def test_scores_learn_at_their_own_rate_without_decay(prune):
    module, _ = prune(sparsity=0.5)
    optimizer = module.optimizers().optimizer
    scores = [
        group for group in optimizer.param_groups if any(p is s for p in group["params"] for s in scores_of(module))
    ]
    assert len(scores) == 1
    assert (scores[0]["initial_lr"], scores[0]["weight_decay"]) == (1e-2, 0.0)
    assert {id(p) for p in scores[0]["params"]} == {id(s) for s in scores_of(module)}


def scores_of(module):
    return [layer.mask_scores for _, layer in compressible_layers(module.student)]


def test_with_frozen_embeddings_and_quantization(prune, tiny_teacher):
    before = student(tiny_teacher).student.get_input_embeddings().weight
    module, watch = prune(FreezeEmbeddings(), QuantAwareTraining(start="0%"), sparsity=0.7, end="50%")
    assert torch.equal(module.student.get_input_embeddings().weight, before)
    assert watch.sparsities[-1] == pytest.approx(0.7, abs=1e-3)
    folded = fold(module.student)
    for name, layer in compressible_layers(module.student):
        assert not layer.effective_weight()[~layer.weight_mask].any()
        assert not hasattr(folded.get_submodule(name), "mask_scores")
