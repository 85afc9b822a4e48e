import math

import pytest
import torch
from torch.nn import functional as F

from lit_compress.nn import AttentionQuantizers, MovingAverageQuantizer
from lit_compress.nn.attention import ATTENTION_SLOTS

SYMMETRIC = {"key", "value"}


def operands():
    return torch.randn(2, 3, 5, 4), torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)


def quantizers(*slots):
    module = AttentionQuantizers()
    for slot in slots:
        setattr(module, slot, MovingAverageQuantizer(symmetric=slot in SYMMETRIC))
    return module


def test_empty_it_is_attention():
    query, key, value = operands()
    context, probabilities = AttentionQuantizers()(query, key, value, None, None, 0.0)
    expected = F.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(context, expected.transpose(1, 2), atol=1e-6)
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, 3, 5))


def test_masked_keys_get_nothing_whether_the_mask_is_bool_or_added():
    query, key, value = operands()
    attends = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    attends[0, ..., 4:] = False
    added = torch.zeros(2, 1, 1, 6).masked_fill(~attends, torch.finfo(torch.float32).min)
    module = quantizers(*ATTENTION_SLOTS)
    _, probabilities = module(query, key, value, attends, None, 0.0)
    assert not probabilities[0, ..., 4:].any()
    assert probabilities[1, ..., 4:].any()
    again = quantizers(*ATTENTION_SLOTS)(query, key, value, added, None, 0.0)
    assert all(
        torch.equal(one, other) for one, other in zip(again, module(query, key, value, attends, None, 0.0), strict=True)
    )


@pytest.mark.parametrize("slot", ATTENTION_SLOTS)
def test_each_slot_quantizes_its_tensor(slot):
    query, key, value = operands()
    module = quantizers(slot)
    context, _ = module(query, key, value, None, 0.5, 0.0)

    def grid(name, x):
        return MovingAverageQuantizer(symmetric=name in SYMMETRIC)(x) if name == slot else x

    scores = grid("scores", grid("query", query) @ grid("key", key).transpose(2, 3)) * 0.5
    expected = grid("context", grid("probabilities", scores.softmax(-1)) @ grid("value", value))
    assert torch.equal(context, expected.transpose(1, 2))
    plain, _ = AttentionQuantizers()(query, key, value, None, 0.5, 0.0)
    assert not torch.equal(context, plain)


def test_the_range_of_probabilities_is_that_of_inference():
    query, key, value = operands()
    module = quantizers("probabilities")
    module(10 * query, 10 * key, value, None, None, 0.9)
    # Dropout would have scaled them by ten.
    assert module.probabilities.high <= 1


def test_enabled_when_any_slot_is():
    module = quantizers("query", "value")
    assert module.enabled
    module.query.enabled = False
    assert module.enabled
    module.value.enabled = False
    assert not module.enabled
    assert not AttentionQuantizers().enabled


def test_gradients_pass_through():
    query, key, value = (x.requires_grad_() for x in operands())
    context, _ = quantizers(*ATTENTION_SLOTS)(query, key, value, None, 1 / math.sqrt(4), 0.1)
    context.square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in (query, key, value))
