import pytest
from contracts.training import data, fit, student
from torch import nn
from transformers import AutoModelForMaskedLM

from lit_compress.errors import UserError
from lit_compress.strategies import FreezeEmbeddings


def trainable(module):
    return {name for name, p in module.student.named_parameters() if p.requires_grad}


TABLES = {f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}


@pytest.mark.parametrize(
    ("arguments", "frozen"),
    [
        ({}, TABLES),
        ({"targets": ["*.word_embeddings"]}, {"bert.embeddings.word_embeddings.weight"}),
        ({"ignore": ["re:.*token_type.*"]}, TABLES - {"bert.embeddings.token_type_embeddings.weight"}),
    ],
)
def test_tables_are_frozen_and_nothing_else(arguments, frozen, tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    every = trainable(module)
    run = fit(module, data(tiny_data, tiny_teacher), [FreezeEmbeddings(**arguments)], tmp_path, max_steps=1)
    assert every - trainable(module) == frozen
    names = {p: name for name, p in module.named_parameters()}
    optimized = {names[p].removeprefix("student.") for group in run.optimizers[0].param_groups for p in group["params"]}
    assert optimized == every - frozen


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": ["*.encoder.*"]}, ["FreezeEmbeddings.targets", "'*.encoder.*'", "Embedding"]),
        ({"targets": []}, ["FreezeEmbeddings.targets"]),
        ({"ignore": ["*.nothing"]}, ["FreezeEmbeddings.ignore", "'*.nothing'"]),
        ({"ignore": ["*embeddings*"]}, ["FreezeEmbeddings.targets", "ignore"]),
    ],
)
def test_a_freeze_that_freezes_nothing_is_an_error(arguments, words, tiny_teacher, tiny_data, tmp_path):
    with pytest.raises(UserError) as caught:
        fit(student(tiny_teacher), data(tiny_data, tiny_teacher), [FreezeEmbeddings(**arguments)], tmp_path)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_tied_decoder_freezes_with_its_table(tiny_model):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = AutoModelForMaskedLM.from_pretrained(tiny_model)

    holder = Holder()
    FreezeEmbeddings().setup(None, holder, "fit")
    decoder = holder.student.get_output_embeddings()
    assert not decoder.weight.requires_grad
    assert decoder.bias.requires_grad
