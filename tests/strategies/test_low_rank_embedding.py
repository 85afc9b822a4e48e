import pytest
import torch
from contracts.errors import error_of
from contracts.training import data, fit, student
from lightning.pytorch import Callback
from models.families import BESIDE, FAMILIES, build
from torch import nn
from transformers import AutoModelForMaskedLM

from lit_compress.export import fold
from lit_compress.nn import FactorizedEmbedding
from lit_compress.strategies import FreezeEmbeddings, LowRankEmbedding


class Watch(Callback):
    """Rank in use after each optimizer step; entry 0 is before the first."""

    def __init__(self):
        self.ranks = {}

    def on_train_batch_start(self, run, module, batch, batch_idx):
        self.ranks[run.global_step] = module.student.get_input_embeddings().kept_rank()

    def on_train_end(self, run, module):
        self.ranks[run.global_step] = module.student.get_input_embeddings().kept_rank()


def setup(model, **arguments):
    module = nn.Module()
    module.student = model
    LowRankEmbedding(**arguments).setup(None, module, "validate")
    return model


def test_a_table_starts_as_the_best_factors_of_its_rank(tiny_teacher):
    module = student(tiny_teacher)
    words = module.student.get_input_embeddings().weight.detach().clone()
    setup(module.student, rank=6)
    table = module.student.get_input_embeddings()
    assert table.weight.shape == (len(words), 6)
    error = (table.weight @ table.projection.weight.T - words).norm()
    assert torch.isclose(error, torch.linalg.svdvals(words)[6:].norm(), atol=1e-5)


def test_a_rank_is_a_number_or_a_fraction_of_the_columns(tiny_teacher):
    ranks = [setup(student(tiny_teacher).student, rank=rank).get_input_embeddings().rank for rank in (8, 0.25, 0.001)]
    assert ranks == [8, 8, 1]


def test_with_prunings_training_starts_from_the_same_model(tiny_teacher):
    ids = torch.tensor([[2, 7, 9, 3]])
    dense = student(tiny_teacher).student.eval()
    expected = dense(input_ids=ids).logits
    assert torch.allclose(setup(dense, rank=6, pruning_steps=3)(input_ids=ids).logits, expected, atol=1e-5)


def test_the_rank_falls_in_equal_parts_and_nothing_is_decomposed_again(tiny_teacher, tiny_data, tmp_path):
    module, watch = student(tiny_teacher), Watch()
    strategy = LowRankEmbedding(rank=8, pruning_steps=3, start="1 steps", end="7 steps")
    run = fit(module, data(tiny_data, tiny_teacher), [strategy, watch], tmp_path)
    assert list(watch.ranks.values()) == [32, 32, 32, 24, 24, 16, 16, 8, 8]
    table = module.student.get_input_embeddings()
    for factor in (table.weight, table.projection.weight):
        assert factor.shape[1] == 32
        assert not factor[:, 8:].any()
        assert all(not moment[:, 8:].any() for moment in run.optimizers[0].state[factor].values() if moment.ndim == 2)
    folded = fold(module.student).get_input_embeddings()
    assert torch.equal(folded.weight, table.weight[:, :8])
    assert torch.equal(folded.projection.weight, table.projection.weight[:, :8])


@pytest.mark.parametrize("family", [*FAMILIES, *BESIDE])
def test_every_family_is_factorised_and_computes_almost_the_same(family):
    # 30 words of width 16, or 8: at the full rank only rounding is lost.
    inputs = {"input_ids": torch.tensor([[5, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    model = build(family)
    expected = model(**inputs).logits
    setup(model, rank=1, pruning_steps=1)
    assert isinstance(model.get_input_embeddings(), FactorizedEmbedding)
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)


def test_setting_up_twice_changes_nothing(tiny_teacher):
    for arguments in ({"rank": 6}, {"rank": 6, "pruning_steps": 3}):
        model = setup(student(tiny_teacher).student, **arguments)
        table = model.get_input_embeddings()
        assert setup(model, **arguments).get_input_embeddings() is table


def test_a_factorised_model_is_cut_further(tiny_teacher):
    model = setup(student(tiny_teacher).student, rank=10)
    before = model.get_input_embeddings().weight[:, :4].clone()
    setup(model, rank=4)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_other_tables_by_name(tiny_teacher):
    model = setup(student(tiny_teacher).student, rank=4, targets=["*embeddings"], ignore=["*token_type*"])
    tables = [name for name, module in model.named_modules() if isinstance(module, FactorizedEmbedding)]
    assert tables == ["bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings"]


def test_frozen_tables_stay_frozen_as_factors(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    strategies = [LowRankEmbedding(rank=6), FreezeEmbeddings()]
    fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path, max_steps=1)
    assert not any(p.requires_grad for p in module.student.get_input_embeddings().parameters())


WRONG = {
    "no rank": ({"rank": 0}, ["LowRankEmbedding.rank: 0", "1 or more"]),
    "negative prunings": ({"pruning_steps": -1}, ["LowRankEmbedding.pruning_steps: -1", "0 or more"]),
    "a window without prunings": ({"end": "30%"}, ["LowRankEmbedding.end: '30%' has no effect"]),
    "a start without prunings": ({"start": "30%"}, ["LowRankEmbedding.start: '30%' has no effect"]),
    "a window backwards": ({"pruning_steps": 2, "start": "60%"}, ["LowRankEmbedding.end", "'60%'"]),
    "ignore without targets": ({"ignore": ["*word*"]}, ["LowRankEmbedding.ignore"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case):
    arguments, words = WRONG[case]
    message = error_of(lambda: LowRankEmbedding(**arguments))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("prunings", [0, 2])
@pytest.mark.parametrize("rank", [33, 32, 22])
def test_a_rank_that_makes_nothing_smaller_is_refused(rank, prunings, tiny_teacher):
    model = student(tiny_teacher).student
    rows = model.get_input_embeddings().num_embeddings
    most = (rows * 32 - 1) // (rows + 32)
    message = error_of(lambda: setup(model, rank=rank, pruning_steps=prunings))
    assert f"LowRankEmbedding.rank: {rank} does not make 'bert.embeddings.word_embeddings' of {rows} x 32" in message
    assert f"{most} or less" in message
    setup(model, rank=most)


def test_a_rank_above_that_of_a_factorised_model_is_refused(tiny_teacher):
    model = setup(student(tiny_teacher).student, rank=6)
    assert "has rank 6 already" in error_of(lambda: setup(model, rank=7))
    assert "has rank 6 already" in error_of(lambda: setup(model, rank=6, pruning_steps=2))


def test_a_table_tied_to_a_decoder_is_refused(tiny_model):
    model = AutoModelForMaskedLM.from_pretrained(tiny_model)
    message = error_of(lambda: setup(model, rank=6))
    assert "'bert.embeddings.word_embeddings' shares its weight with 'cls.predictions.decoder'" in message


def test_more_prunings_than_steps_are_refused(tiny_teacher, tiny_data, tmp_path):
    strategy = LowRankEmbedding(rank=6, pruning_steps=5, end="4 steps")
    message = error_of(lambda: fit(student(tiny_teacher), data(tiny_data, tiny_teacher), [strategy], tmp_path))
    assert "LowRankEmbedding.pruning_steps: 5 do not fit" in message


def test_a_network_that_does_not_name_its_words_needs_targets():
    assert "name it" in error_of(lambda: setup(nn.Sequential(nn.Embedding(9, 6)), rank=2))
    assert isinstance(setup(nn.Sequential(nn.Embedding(9, 6)), rank=2, targets=["0"])[0], FactorizedEmbedding)
