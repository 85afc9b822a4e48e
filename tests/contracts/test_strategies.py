"""What every strategy promises, case by case."""

import inspect
import json
from itertools import pairwise

import pytest
import torch
import torch._dynamo.testing
from contracts.table import ROWS, build, module_options
from contracts.training import ACCUMULATED, STEPS, StopAt, data, differences, fit, fit_through_kills, student
from transformers import AutoModelForSequenceClassification

import lit_compress.strategies
from lit_compress.errors import UserError
from lit_compress.export import fold, load_checkpoint, save_folder, student_from_checkpoint
from lit_compress.functional import sparsity
from lit_compress.nn import MinMaxWeightQuantizer, compressible_layers, describe
from lit_compress.nn.quantizers import FakeQuantizer
from lit_compress.strategies import (
    LowRankEmbedding,
    MagnitudePruning,
    MovementPruning,
    PatternLock,
    Pruning,
    Scheduled,
    SecondOrderPruning,
    Strategy,
    StructuredPruning,
)

CASES = list(ROWS)
MASKING = (MagnitudePruning, MovementPruning, PatternLock, Pruning, SecondOrderPruning, StructuredPruning)
MASKED = [case for case, (kind, _) in ROWS.items() if kind in MASKING]
# What is physically smaller when it is folded: these sum up fewer terms.
GROUPS = ("heads", "neurons")
CUT = [
    case
    for case, (kind, options) in ROWS.items()
    if kind in (StructuredPruning, LowRankEmbedding) or options.get("pattern") in GROUPS
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, sparse_model, tiny_teacher, tiny_data):
    """Each case trained once with a checkpoint per step; shared by the tests that only look."""
    done = {}

    def train(case):
        if case not in done:
            root = tmp_path_factory.mktemp(case.replace(":", "-"))
            module = student(sparse_model, tiny_teacher, **module_options(case))
            run = fit(module, data(tiny_data, sparse_model), [build(case)], root)
            done[case] = module, run, root
        return done[case]

    return train


def batch_of(module, datamodule):
    datamodule.setup("fit")
    return next(iter(datamodule.val_dataloader()))


def test_every_strategy_has_a_row():
    exported = [getattr(lit_compress.strategies, name) for name in lit_compress.strategies.__all__]
    strategies = {kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Strategy)} - {
        Strategy,
        Scheduled,
    }
    assert strategies == {kind for kind, _ in ROWS.values()}


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact(case, trained, sparse_model, tiny_teacher, tiny_data, tmp_path):
    _, first, whole = trained(case)

    def make():
        return student(sparse_model, tiny_teacher, **module_options(case)), data(tiny_data, sparse_model)

    with pytest.raises(StopAt.Killed):
        fit(*make(), [build(case), StopAt(3)], tmp_path)
    # In the middle of either epoch: what a killed run left, and what the whole one had then.
    for last in (tmp_path / "step=3.ckpt", whole / "step=6.ckpt"):
        # Other random numbers are drawn before the resumed run than before the first.
        torch.rand(17)
        root = tmp_path / last.stem
        run = fit(*make(), [build(case)], root, ckpt_path=last)
        assert run.global_step == STEPS
        expected = load_checkpoint(whole / f"step={STEPS}.ckpt")
        got = load_checkpoint(root / f"step={STEPS}.ckpt")
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "lit_compress", "TextClassification"):
            assert differences(expected[part], got[part]) == []
        metrics, same = (
            {name: float(value) for name, value in each.callback_metrics.items() if name != "samples_per_second"}
            for each in (run, first)
        )
        assert metrics == same


@pytest.mark.parametrize("case", CASES)
def test_resume_in_the_middle_of_an_accumulation_is_exact(case, sparse_model, tiny_teacher, tiny_data, tmp_path):
    def make():
        torch.rand(17)
        module = student(sparse_model, tiny_teacher, **module_options(case))
        return module, data(tiny_data, sparse_model, batch_size=8), [build(case)]

    module, datamodule, strategies = make()
    run = fit(module, datamodule, strategies, tmp_path / "whole", each_step=False, **ACCUMULATED)
    assert run.global_step == STEPS
    fit_through_kills(make, tmp_path / "killed", (4, 5, 12))
    expected, got = (load_checkpoint(tmp_path / name / "run/checkpoints/last.ckpt") for name in ("whole", "killed"))
    for part in (
        "global_step",
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "lit_compress",
        "TextClassification",
    ):
        assert differences(expected[part], got[part]) == []


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_has_no_teacher_and_is_plain_data(case, trained):
    _, _, root = trained(case)
    checkpoint = load_checkpoint(root / f"step={STEPS}.ckpt")  # weights_only=True inside
    assert not [key for key in checkpoint["state_dict"] if "teacher" in key]
    json.dumps(checkpoint["lit_compress"])


@pytest.mark.parametrize("case", MASKED)
def test_zeros_stay_zero(case, trained):
    module, run, _ = trained(case)
    for _, layer in compressible_layers(module.student):
        assert not layer.weight[~layer.weight_mask].any()
        moments = run.optimizers[0].state[layer.weight]
        assert not moments["exp_avg"][~layer.weight_mask].any()
        assert not moments["exp_avg_sq"][~layer.weight_mask].any()


def test_pattern_lock_keeps_the_loaded_pattern(trained, sparse_model):
    module, _, _ = trained("pattern-lock")
    loaded = AutoModelForSequenceClassification.from_pretrained(sparse_model)
    for name, layer in compressible_layers(module.student):
        assert torch.equal(layer.weight_mask, loaded.get_submodule(name).weight != 0)


@pytest.mark.parametrize(("case", "fraction"), [("magnitude", 0.8), ("movement", 0.7)])
def test_unstructured_sparsity_is_exact(case, fraction, trained):
    module, _, _ = trained(case)
    for _, layer in compressible_layers(module.student):
        assert int((~layer.weight_mask).sum()) == round(fraction * layer.weight.numel())


@pytest.mark.parametrize(
    ("case", "fraction"),
    [("magnitude-global", 0.7), ("second-order", 0.8), ("second-order-recomputed", 0.7), ("movement-global", 0.6)],
)
def test_global_sparsity_is_exact(case, fraction, trained):
    module, _, _ = trained(case)
    masks = [layer.weight_mask for _, layer in compressible_layers(module.student)]
    pruned, total = sum(int((~mask).sum()) for mask in masks), sum(mask.numel() for mask in masks)
    assert pruned == round(fraction * total)
    assert len({sparsity(mask) for mask in masks}) > 1


def test_two_of_four_hold_everywhere(trained):
    module, _, _ = trained("magnitude-2:4")
    for _, layer in compressible_layers(module.student):
        assert (layer.weight_mask.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize(("case", "height", "width"), [("magnitude-blocks", 4, 2), ("second-order-blocks", 1, 4)])
def test_blocks_hold_everywhere(case, height, width, trained):
    module, _, _ = trained(case)
    for _, layer in compressible_layers(module.student):
        rows, columns = layer.weight.shape
        blocks = layer.weight_mask.reshape(rows // height, height, columns // width, width).transpose(1, 2)
        blocks = blocks.reshape(-1, height * width).sum(1)
        assert set(blocks.tolist()) <= {0, height * width}
        assert int((blocks == 0).sum()) == round(0.75 * len(blocks))


MONOTONE = ["magnitude", "second-order", "second-order-blocks", "pruning-taylor", *CUT]


@pytest.mark.parametrize("case", [case for case in MONOTONE if "movement" not in case])
def test_masks_are_monotone(case, trained):
    _, _, root = trained(case)
    states = [load_checkpoint(root / f"step={step}.ckpt")["state_dict"] for step in range(1, STEPS + 1)]
    for name in [name for name in states[0] if name.endswith(("_mask", "kept_groups"))]:
        for earlier, later in pairwise(states):
            assert not (later[name] & ~earlier[name]).any()


@pytest.mark.parametrize(("case", "frozen"), [("movement", 6), ("movement-soft", 7)])
def test_learned_masks_come_back_until_they_are_frozen(case, frozen, trained):
    _, _, root = trained(case)
    states = [load_checkpoint(root / f"step={step}.ckpt")["state_dict"] for step in range(1, STEPS + 1)]
    names = [name for name in states[0] if name.endswith("weight_mask")]
    before, after = states[:frozen], states[frozen - 1 :]
    assert any((later[n] & ~earlier[n]).any() for n in names for earlier, later in pairwise(before))
    assert all(torch.equal(earlier[n], later[n]) for n in names for earlier, later in pairwise(after))
    hidden = [before[-2][name.removesuffix("_mask")][~before[-2][name]] for name in names]
    assert all(weights.any() for weights in hidden)


@pytest.mark.parametrize("case", CASES)
def test_fold_equals_training_form(case, trained, tiny_data, sparse_model):
    module, _, _ = trained(case)
    batch = batch_of(module, data(tiny_data, sparse_model))
    model = module.student.eval()
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, FakeQuantizer)]
    quantizers = [module for name, module in modules if not name.endswith("weight_quantizer")]
    with torch.inference_mode():
        # A plain model has quantizers of nothing but weights; everything else must be the same to the last bit, unless
        # sums are shorter than they were.
        was = [quantizer.enabled for quantizer in quantizers]
        for quantizer in quantizers:
            quantizer.enabled = False
        expected = module(batch).logits
        for quantizer, enabled in zip(quantizers, was, strict=True):
            quantizer.enabled = enabled
        folded = fold(model)
        assert not any(isinstance(module, FakeQuantizer) for module in folded.modules())
        assert not list(compressible_layers(folded))
        got = folded(input_ids=batch.inputs["input_ids"], attention_mask=batch.inputs["attention_mask"]).logits
    if case in CUT:
        dense = AutoModelForSequenceClassification.from_pretrained(sparse_model)
        assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in dense.parameters())
        assert torch.allclose(expected, got, atol=1e-5)
    else:
        assert torch.equal(expected, got)


@pytest.mark.parametrize("case", CASES)
def test_hugging_face_round_trip(case, trained, tiny_data, sparse_model, tmp_path):
    module, _, _ = trained(case)
    datamodule = data(tiny_data, sparse_model)
    batch = batch_of(module, datamodule)
    module.student.eval()
    save_folder(module.student, datamodule.tokenizer, tmp_path / "model")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    folded = fold(module.student)
    assert differences(dict(loaded.state_dict()), dict(folded.state_dict())) == []
    with torch.inference_mode():
        got, expected = loaded.eval()(**inputs).logits, folded(**inputs).logits
    # Odd shapes lie in memory otherwise than they did, and kernels may round the last bit otherwise.
    assert torch.allclose(got, expected, atol=1e-6) if case in CUT else torch.equal(got, expected)
    assert "lit_compress_" not in (tmp_path / "model" / "config.json").read_text()


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_alone_gives_the_student_back(case, trained):
    module, _, root = trained(case)
    again = student_from_checkpoint(load_checkpoint(root / f"step={STEPS}.ckpt"))
    assert describe(again) == describe(module.student)
    assert differences(dict(fold(module.student).state_dict()), dict(fold(again).state_dict())) == []


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_says_what_a_run_that_ends_there_leaves_undone(case, trained):
    _, _, root = trained(case)
    checkpoints = [load_checkpoint(root / f"step={step}.ckpt") for step in range(1, STEPS + 1)]
    entries = [checkpoint["lit_compress"]["unfinished"] for checkpoint in checkpoints]
    amounts = [_compressed(checkpoint) for checkpoint in checkpoints]
    done = [not entry for entry in entries]
    assert done == sorted(done)
    assert done[-1]
    assert [amount for amount, finished in zip(amounts, done, strict=True) if finished and amount != amounts[-1]] == []
    assert amounts[0] == amounts[-1] or not done[0]
    for step, entry in enumerate(entries, 1):
        for left in entry:
            assert (left["strategy"], left["step"], left["of"]) == (ROWS[case][0].__name__, step, STEPS)
            assert left["end"] == done.index(True) + 1
            assert left["asked"] != left["reached"]


def _compressed(checkpoint):
    """How much of each kind of compression there is: zeros of masks, closed layers, columns gone, quantizers on."""
    state, manifest = checkpoint["state_dict"], checkpoint["lit_compress"]["manifest"]
    kinds = ("weight_mask", "kept_groups", "rank_mask", "layer_open")
    counts = {kind: sum(int((~v).sum()) for name, v in state.items() if name.endswith(kind)) for kind in kinds}
    slots = [slot for entries in manifest.values() for entry in entries.values() for slot in entry.values()]
    return counts | {"on": sum(1 for slot in slots if isinstance(slot, dict) and slot.get("enabled"))}


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("qat")])
def test_quantized_weights_lie_on_their_grid(case, trained):
    module, _, _ = trained(case)
    for _, layer in compressible_layers(module.student):
        weight, quantizer = layer.effective_weight(), layer.weight_quantizer
        assert isinstance(quantizer, MinMaxWeightQuantizer)
        assert quantizer.enabled
        steps = weight / (quantizer.scale[:, None] if quantizer.per_channel else quantizer.scale)
        assert (steps - steps.round()).abs().max() < 1e-3
        assert steps.abs().max() <= 127.001


@pytest.mark.parametrize("case", ["qat", "qat-embeddings", "qat-attention"])
def test_frozen_observers_keep_their_range(case, trained):
    _, _, root = trained(case)
    observing, at_freeze, at_end = (load_checkpoint(root / f"step={step}.ckpt")["state_dict"] for step in (5, 6, STEPS))
    ranges = [name for name in at_end if name.endswith((".low", ".high", "quantizer.scale", "quantizer.zero_point"))]
    assert ranges
    assert all(torch.equal(at_freeze[name], at_end[name]) for name in ranges)
    assert not all(torch.equal(observing[name], at_freeze[name]) for name in ranges)


def test_frozen_embeddings_do_not_move(trained, sparse_model):
    module, run, _ = trained("freeze-embeddings")
    loaded = AutoModelForSequenceClassification.from_pretrained(sparse_model)
    before = loaded.get_input_embeddings().weight
    assert torch.equal(module.student.get_input_embeddings().weight, before)
    norm = module.student.base_model.embeddings.LayerNorm.weight
    assert not torch.equal(norm, loaded.base_model.embeddings.LayerNorm.weight)
    assert not any(
        p is module.student.get_input_embeddings().weight for g in run.optimizers[0].param_groups for p in g["params"]
    )


@pytest.mark.parametrize("case", [case for case in CASES if "targets" in inspect.signature(ROWS[case][0]).parameters])
def test_a_target_that_matches_nothing_is_an_error(case, sparse_model, tiny_data, tmp_path):
    strategy = build(case, targets=["*.no_such_module.*"])
    with pytest.raises(UserError, match="no_such_module") as caught:
        fit(student(sparse_model), data(tiny_data, sparse_model), [strategy], tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize("case", CUT)
def test_a_smaller_student_is_trained_on(case, trained, tiny_data, tiny_teacher, tmp_path):
    # Its folder starts, and teaches, the next stage: which resumes exactly and gives its own model back.
    module, _, _ = trained(case)
    module.student.eval()
    save_folder(module.student, data(tiny_data, tiny_teacher).tokenizer, tmp_path / "model")
    states, folder = [], tmp_path / "model"
    for name, ckpt_path in (("whole", None), ("resumed", tmp_path / "whole" / "step=3.ckpt")):
        again = student(folder, folder)
        fit(again, data(tiny_data, folder), [build("magnitude"), build("qat")], tmp_path / name, ckpt_path=ckpt_path)
        states.append(dict(again.state_dict()))
    assert differences(*states) == []
    alone = student_from_checkpoint(load_checkpoint(tmp_path / "resumed" / f"step={STEPS}.ckpt"))
    assert differences(dict(fold(again.student).state_dict()), dict(fold(alone).state_dict())) == []
    shapes = {name: p.shape for name, p in fold(module.student).named_parameters()}
    assert {name: p.shape for name, p in fold(alone).named_parameters()} == shapes


@pytest.mark.parametrize("first", ["magnitude", "structured"])
def test_order_changes_neither_keys_nor_values(first, sparse_model, tiny_data, tmp_path):
    states = []
    for order in (1, -1):
        module = student(sparse_model)
        strategies = [build(case) for case in (first, "qat", "low-rank", "freeze-embeddings")][::order]
        fit(module, data(tiny_data, sparse_model), strategies, tmp_path / str(order))
        states.append(dict(module.state_dict()))
    assert differences(*states) == []


def test_sparsity_survives_quantization(sparse_model, tiny_data, tmp_path):
    module = student(sparse_model)
    fit(module, data(tiny_data, sparse_model), [build("magnitude"), build("qat")], tmp_path)
    for _, layer in compressible_layers(module.student):
        assert not layer.effective_weight()[~layer.weight_mask].any()


@pytest.mark.parametrize("drop", ["layer-drop", "layer-drop-gradual"])
def test_heads_neurons_ranks_and_layers_go_together(drop, trained, sparse_model, tiny_data, tmp_path):
    # A student of uneven layers loses one of them, and heads and ranks, in its next stage.
    module, _, _ = trained("structured-global")
    datamodule = data(tiny_data, sparse_model)
    folder = save_folder(module.student.eval(), datamodule.tokenizer, tmp_path / "first")
    again = student(folder)
    structured = StructuredPruning(heads=1, neurons=0.5, pruning_steps=2)
    strategies = [build(drop), structured, build("low-rank")]
    fit(again, datamodule, strategies, tmp_path / "run")
    again.student.eval()
    folder = save_folder(again.student, datamodule.tokenizer, tmp_path / "second")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert len(loaded.bert.encoder.layer) == 1
    alone = student_from_checkpoint(load_checkpoint(tmp_path / "run" / f"step={STEPS}.ckpt"))
    expected = dict(fold(again.student).state_dict())
    assert differences(expected, dict(loaded.state_dict())) == []
    assert differences(expected, dict(fold(alone).state_dict())) == []


def test_structured_pruning_goes_with_the_others_on_the_same_layers(sparse_model, tiny_data, tmp_path):
    module = student(sparse_model)
    datamodule = data(tiny_data, sparse_model)
    strategies = [build(case) for case in ("magnitude", "qat", "structured", "low-rank")]
    fit(module, datamodule, strategies, tmp_path / "run")
    module.student.eval()
    for _, layer in compressible_layers(module.student):
        assert not layer.effective_weight()[~layer.weight_mask].any()
    folder = save_folder(module.student, datamodule.tokenizer, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, entry in json.loads((folder / "compression.json").read_text())["linears"].items():
        weight = model.get_submodule(name).weight
        # What was cut out is in neither figure: the scales and the sparsity are those of what is left.
        assert len(entry["scales"]["weight"]) == len(weight)
        assert entry["sparsity"] == pytest.approx(int((weight == 0).sum()) / weight.numel())
        integers = weight / torch.tensor(entry["scales"]["weight"])[:, None]
        assert (integers - integers.round()).abs().max() < 1e-3


def test_a_locked_pattern_is_never_revived_by_pruning(sparse_model, tiny_data, tmp_path):
    module = student(sparse_model)
    fit(module, data(tiny_data, sparse_model), [PatternLock(), MagnitudePruning(sparsity=0.3)], tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(sparse_model)
    for name, layer in compressible_layers(module.student):
        zero = loaded.get_submodule(name).weight == 0
        assert not layer.weight_mask[zero].any()


def test_pattern_lock_through_quantization_and_export(sparse_model, tiny_data, tmp_path):
    module, datamodule = student(sparse_model), data(tiny_data, sparse_model)
    fit(module, datamodule, [PatternLock(), build("qat-everything")], tmp_path / "run")
    save_folder(module.student, datamodule.tokenizer, tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(sparse_model)
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    for name, layer in compressible_layers(module.student):
        zero = loaded.get_submodule(name).weight == 0
        assert torch.equal(layer.weight_mask, ~zero)
        # Quantization may round more weights to zero; it takes none back.
        assert not layer.effective_weight()[zero].any()
        assert not exported.get_submodule(name).weight[zero].any()


def test_pattern_lock_refuses_a_dense_model(tiny_model, tiny_data, tmp_path):
    with pytest.raises(UserError, match="no target has zeros"):
        fit(student(tiny_model), data(tiny_data, tiny_model), [PatternLock()], tmp_path)


def test_resume_after_a_shortened_epoch(sparse_model, tiny_data, tmp_path):
    states = []
    for name, ckpt_path in (("whole", None), ("resumed", tmp_path / "whole" / "step=3.ckpt")):
        module = student(sparse_model)
        datamodule = data(tiny_data, sparse_model)
        fit(module, datamodule, [build("magnitude")], tmp_path / name, limit_train_batches=3, ckpt_path=ckpt_path)
        states.append(dict(module.state_dict()))
    assert differences(*states) == []


def test_accumulated_gradients_count_optimizer_steps(sparse_model, tiny_data, tmp_path):
    module = student(sparse_model)
    datamodule = data(tiny_data, sparse_model, batch_size=4)
    run = fit(module, datamodule, [build("magnitude")], tmp_path, accumulate_grad_batches=4)
    assert run.global_step == STEPS
    for _, layer in compressible_layers(module.student):
        assert int((~layer.weight_mask).sum()) == round(0.8 * layer.weight.numel())


def test_compiled_student_does_not_recompile_when_masks_change(sparse_model, tiny_data, tmp_path):
    module = student(sparse_model)
    # Fixed shapes, so that nothing but a mask could be the cause.
    fit(module, data(tiny_data, sparse_model), [build("magnitude"), build("qat-weights-only")], tmp_path)
    batch = batch_of(module, data(tiny_data, sparse_model))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    module.student.eval()
    module.student.compile(backend=counter, fullgraph=True)
    with torch.no_grad():
        before = module(batch).logits
        assert counter.frame_count == 1
        for _, layer in compressible_layers(module.student):
            layer.weight_mask.zero_()
        after = module(batch).logits
    assert counter.frame_count == 1
    assert not torch.equal(before, after)
