"""The whole way of a model to each format and back, for every family and head."""

import pytest
import torch
from export.quantized import tiny_tokenizer
from models.families import FAMILIES, batch, build
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lit_compress.export import from_student, write
from lit_compress.runtimes.engines import open_engine, variants
from lit_compress.runtimes.torch_engine import answers

HEADS = {
    "classification": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "answers": AutoModelForQuestionAnswering,
    "words": AutoModelForMaskedLM,
}
# Largest difference from PyTorch, as a fraction of the largest output. Rounding of tiny random models costs that much.
TOLERANCES = {
    "hf": 0.0,
    "sparse": 0.0,
    "onnx": 1e-4,
    "openvino": 1e-4,
    "packed": 0.2,
    "onnx-int8": 0.2,
    "openvino-int8": 0.2,
    "compressed-tensors": 0.2,
}


# Transformers has no masked language model of XLNet, which learns by permutations.
MODELS = [(head, family) for head in HEADS for family in FAMILIES if (head, family) != ("words", "xlnet")]


@pytest.mark.slow
@pytest.mark.parametrize("to", TOLERANCES)
@pytest.mark.parametrize(("head", "family"), MODELS)
def test_export_load_and_the_same_predictions(head, family, to, tmp_path):
    model = build(family, HEADS[head], initializer_range=0.3)
    given = batch(3, 9)
    given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    plain = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**plain)
    write(from_student(model, tiny_tokenizer(tmp_path)), tmp_path / "out", to)
    engine = open_engine(variants(tmp_path / "out", packed=to == "packed")[0])
    found = answers(engine)(given)
    for name in ("start_logits", "end_logits") if head == "answers" else ("logits",):
        ours, theirs = getattr(found, name), expected[name]
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= TOLERANCES[to] * float(theirs.abs().max())
