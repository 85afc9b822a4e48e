from itertools import pairwise

import pytest
import torch
from models.families import LISTED, batch, build
from torch.nn import functional as F
from transformers import AutoModel

from lit_compress.models import layout_of
from lit_compress.models.layer_similarity import similarity_sums


def measure(model, *batches):
    return similarity_sums(model, lambda inputs: model(**inputs), batches)


@pytest.mark.parametrize("family", [family for family in LISTED if family != "modernbert"])
def test_cosines_are_those_of_the_hidden_states(family):
    model = build(family, AutoModel)
    with torch.no_grad():
        states = model(**batch(), output_hidden_states=True).hidden_states
    token = -1 if family == "xlnet" else 0
    assert (token == -1) == (layout_of(model).summary_token == "last")
    expected = [
        F.cosine_similarity(a[:, token].double(), b[:, token].double(), dim=-1).sum() for a, b in pairwise(states)
    ]
    sums = measure(model, batch())
    assert sums.dtype == torch.float64
    assert sums[-1] == 2
    # DeBERTa's convolution comes after its first layer and is not part of it.
    skipped = 1 if family == "deberta-v2" else 0
    assert torch.allclose(sums[skipped:-1], torch.stack(expected)[skipped:], atol=1e-6)


def test_a_layer_that_does_nothing_has_a_cosine_of_one():
    model = build("modernbert")  # its layers add to what comes in
    layer = model.base_model.layers[1]
    with torch.no_grad():
        layer.attn.Wo.weight.zero_()
        layer.mlp.Wo.weight.zero_()
    sums = measure(model, batch())
    assert sums[1] / sums[-1] == pytest.approx(1, abs=1e-12)
    assert sums[0] < sums[1]


def test_sums_of_batches_add_up():
    model = build("bert")
    rows = batch(rows=6)
    parts = [{name: value[start : start + 2] for name, value in rows.items()} for start in (0, 2, 4)]
    assert torch.allclose(measure(model, rows), measure(model, *parts))
    assert torch.equal(measure(model, *parts), sum(measure(model, part) for part in parts))


def test_the_model_is_left_as_it_was():
    model = build("bert").train()
    model.bert.encoder.layer[1].eval()
    before = [module.training for module in model.modules()]
    torch.manual_seed(0)
    first = measure(model, batch())
    state = torch.get_rng_state()
    assert torch.equal(measure(model, batch()), first)  # no dropout
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError):
        similarity_sums(model, lambda inputs: 1 / 0, [batch()])
    assert not any(module._forward_hooks for module in model.modules())
