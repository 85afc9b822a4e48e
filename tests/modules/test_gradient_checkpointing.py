"""Layers that compute their activations again: the same loss, gradients and ranges, and less that is kept."""

import pytest
import torch
from contracts.errors import error_of
from contracts.training import data, fit
from lightning.pytorch import Trainer
from models.families import FAMILIES, batch, build
from torch.autograd.graph import saved_tensors_hooks

from lit_compress import (
    AttentionDistillation,
    HiddenDistillation,
    LitStudent,
    LitTeacher,
    LogitDistillation,
    MagnitudePruning,
    MovementPruning,
    QuantAwareTraining,
    RelationDistillation,
)
from lit_compress.models.gradient_checkpointing import enable_gradient_checkpointing
from lit_compress.modules.encoder import seed_step
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.quantizers import FakeQuantizer
from lit_compress.nn.recompute import is_recomputed

TERMS = {
    "none": None,
    "logits": lambda: {"kd": LogitDistillation()},
    "inside": lambda: {
        "hidden": HiddenDistillation(),
        "attention": AttentionDistillation(),
        "relation": RelationDistillation(relation_heads=2),
    },
}
STRATEGIES = {
    "none": list,
    "pruning": lambda: [MagnitudePruning(sparsity=0.5, start="0%", end="50%")],
    "movement": lambda: [MovementPruning(sparsity=0.5, start="0%", end="50%", freeze_masks="50%")],
    "quantization": lambda: [QuantAwareTraining(start="0%", attention="all")],
}


@pytest.fixture
def batches(tiny_model, tiny_data):
    texts = data(tiny_data, tiny_model)
    texts.setup("fit")
    return list(texts.train_dataloader())[:2]


def made(teacher, terms, strategies, checkpointing):
    """A student in training, as a strategy's window has it after its first step."""
    torch.manual_seed(3)
    options = {"teacher": str(teacher), "distillation": terms()} if terms else {}
    module = LitStudent(str(teacher), labels=["0", "1"], gradient_checkpointing=checkpointing, **options)
    for strategy in strategies():
        strategy.setup(Trainer(logger=False), module, "validate")  # the structure alone, without a schedule
    for part in module.student.modules():
        if isinstance(part, FakeQuantizer):
            part.enabled = part.observing = True
        if isinstance(part, CompressibleLinear) and part.weight_mask is not None:
            part.weight_mask.copy_(torch.rand_like(part.weight) < 0.5)
    return module.train()


@pytest.mark.parametrize("strategies", STRATEGIES)
@pytest.mark.parametrize("terms", TERMS)
def test_loss_gradients_and_ranges_are_the_same(terms, strategies, tiny_teacher, batches):
    found = []
    for checkpointing in (False, True):
        module = made(tiny_teacher, TERMS[terms], STRATEGIES[strategies], checkpointing)
        for step, one in enumerate(batches):
            seed_step(0, step, 0)
            loss = module.losses(one)["loss"]
            loss.backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients, dict(module.named_buffers())))
    (plain_loss, plain, ranges), (loss, gradients, ranges_again) = found
    torch.testing.assert_close(loss, plain_loss, rtol=0, atol=1e-6)
    assert plain.keys() == gradients.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-6, msg=name)
    for name, buffer in ranges.items():
        torch.testing.assert_close(ranges_again[name], buffer, rtol=0, atol=0, equal_nan=True, msg=name)
    assert not is_recomputed()


def kept(module, inputs):
    """Bytes that the graph of a forward keeps."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.nbytes
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        module.losses(inputs)
    return total


def test_less_is_kept(tiny_teacher, batches):
    plain, checkpointed = (kept(made(tiny_teacher, None, list, on), batches[0]) for on in (False, True))
    assert checkpointed < plain / 3


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_have_none_are_one_line(family):
    model = build(family)
    if family not in ("albert", "mpnet", "xlnet"):
        enable_gradient_checkpointing(model.train(), "model.gradient_checkpointing")
        model(**batch()).logits.sum().backward()
        return
    said = error_of(enable_gradient_checkpointing, model, "model.gradient_checkpointing")
    assert said.startswith(f"model.gradient_checkpointing: Transformers has none for {type(model).__name__}; leave it")


def test_it_does_not_go_with_compile(tiny_teacher):
    said = error_of(LitTeacher, str(tiny_teacher), ["0", "1"], compile=True, gradient_checkpointing=True)
    assert said.startswith("model.gradient_checkpointing: ")
    assert "model.compile" in said


def test_a_run_ends_with_the_same_model(tiny_teacher, tiny_model, tiny_data, tmp_path):
    ends = []
    for checkpointing in (False, True):
        module = made(tiny_teacher, TERMS["logits"], list, checkpointing)
        strategies = [MagnitudePruning(sparsity=0.5, end="50%"), QuantAwareTraining(start="50%")]
        fit(module, data(tiny_data, tiny_model), strategies, tmp_path / str(checkpointing))
        ends.append(module.student.state_dict())
    plain, checkpointed = ends
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=1e-6, msg=name)
