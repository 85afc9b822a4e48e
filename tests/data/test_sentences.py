import gzip
import json

import pytest
import torch
from contracts import tasks
from contracts.errors import error_of
from transformers import AutoTokenizer

from lit_compress.data import SentencePairs, SentenceTexts


def table(path, rows, header="sentence1\tsentence2\tscore"):
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return path


def scored(path, tokenizer, **options):
    given = {"text_columns": ["sentence1", "sentence2"], "label_column": "score", "score_range": (0, 5)} | options
    return SentencePairs(str(path), tokenizer=str(tokenizer), val_fraction=0.5, **{"pooling": "mean"} | given)


def test_a_batch_has_the_first_texts_and_then_the_second(tmp_path, tiny_model):
    data = tasks.data("embedding", tmp_path, tiny_model)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    tokenizer, rows = AutoTokenizer.from_pretrained(tiny_model), data.table("train")
    index = batch.meta["index"].tolist()
    assert batch.meta["texts"] == 2
    assert batch.inputs["input_ids"].shape[0] == 2 * len(index)
    texts = [rows[row][column] for column in ("sentence1", "sentence2") for row in index]
    expected = tokenizer(texts, padding=True, return_tensors="pt")
    assert all(torch.equal(batch.inputs[name], expected[name]) for name in batch.inputs)
    scores = torch.tensor([float(rows[row]["score"]) / 5 for row in index])
    assert torch.allclose(batch.targets["labels"], scores)


def test_hard_negatives_and_shared_documents(tmp_path, tiny_model):
    data = tasks.data("embedding_ranking", tmp_path, tiny_model)
    data.setup("fit")
    rows = data.table("train")
    for batch in data.train_dataloader():
        index = batch.meta["index"].tolist()
        assert len(batch.inputs["input_ids"]) == 3 * len(index)
        for name, column in (("query", "anchor"), ("document", "positive")):
            texts = [rows[row][column] for row in index]
            same = [[a == b for a in texts] for b in texts]
            ids = batch.targets[name]
            assert (ids[:, None] == ids).tolist() == same


def test_prediction_reads_one_column_and_every_row(tmp_path, tiny_model):
    path = table(tmp_path / "p.tsv", [("a film", "x", "1"), ("", "y", "2")])
    data = scored(path, tiny_model, predict_file=str(path))
    (batch,) = data.predict_dataloader()
    assert batch.inputs["input_ids"].shape[0] == 2
    assert batch.meta["texts"] == 1
    assert not batch.targets


def test_texts_have_no_labels_and_their_validation_has(tmp_path, tiny_model):
    data = tasks.sentence_texts(tmp_path, tiny_model)
    data.setup("fit")
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert (train.meta["texts"], val.meta["texts"]) == (1, 2)
    assert not train.targets
    assert val.targets["labels"].max() <= 1
    assert len(data.table("train")) == 64  # blank lines left out
    assert data.task.needs_teacher


def test_prompts_come_before_the_texts_of_their_column(tmp_path, tiny_model):
    path = table(tmp_path / "p.tsv", [("film", "plot", "1"), ("actor", "scene", "2")])
    data = scored(path, tiny_model, prompts=["a ", "the "])
    data.setup("fit")
    (batch,) = data.val_dataloader()
    read = AutoTokenizer.from_pretrained(tiny_model).batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)
    assert {text.split()[0] for text in read[:1]} == {"a"}
    assert {text.split()[0] for text in read[1:]} == {"the"}
    (_, first), (_, second) = list(data.token_examples())
    assert [ids["input_ids"] for ids in (first, second)] == [
        row[mask.bool()].tolist()
        for row, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text_columns": ["sentence1"]}, "must be two columns, whose texts a score compares"),
        ({"text_columns": ["sentence1"], "label_column": None, "score_range": None}, "must be two columns or more"),
        ({"text_columns": ["sentence1", "sentence1"]}, "must be different columns"),
        ({"text_columns": ["sentence1", "score"]}, "must be different columns"),
        ({"label_column": None}, "data.score_range: has no effect"),
        ({"score_range": (5, 0)}, "must be the lowest and the highest"),
        ({"prompts": ["a"]}, "data.prompts: ['a'] must be 2"),
        ({"pooling": "median"}, "'median' must be one of mean, cls, max"),
        ({"scale": 0}, "data.scale: 0 must be above 0"),
    ],
)
def test_wrong_options(options, said, tmp_path, tiny_model):
    path = table(tmp_path / "p.tsv", [("a", "b", "1")])
    assert said in error_of(scored, path, tiny_model, **options)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (("a", "b", "nan"), {}, "'nan' in row 2"),
        (("a", "b", "6"), {}, "is not from 0 to 5"),
        (("a", "b", "high"), {}, "'high' in row 2"),
        (("a", "b", "4"), {"score_range": None}, "is not from -1 to 1"),
        (("a", " ", "4"), {}, "'sentence2' in row 2"),
    ],
)
def test_wrong_rows(row, options, said, tmp_path, tiny_model):
    path = table(tmp_path / "p.tsv", [("a", "b", "1"), row])
    assert said in error_of(scored(path, tiny_model, **options).check_sources)


def test_equal_scores_measure_nothing(tmp_path, tiny_model):
    path = table(tmp_path / "p.tsv", [("a", "b", "1"), ("c", "d", "1.0")])
    assert "all scores of" in error_of(scored(path, tiny_model, val_file=str(path)).check_sources)
    scored(path, tiny_model).rows("train")  # which a loss can do something with


def test_a_batch_of_one_pair_has_no_negatives(tmp_path, tiny_model):
    path = table(tmp_path / "p.tsv", [("a", "b", "1"), ("c", "d", "1")])
    options = {"label_column": None, "score_range": None, "batch_size": 1}
    assert "data.batch_size: 1 leaves no negatives" in error_of(scored, path, tiny_model, **options)
    scored(path, tiny_model, text_columns=["sentence1", "sentence2", "score"], **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"text_column": "body"}, "data.text_column: 'body'"), ({"pair_columns": ["a", "b"]}, "data.pair_columns: 'a'")],
)
def test_errors_name_the_option_that_was_given(options, said, tmp_path, tiny_model):
    train, val = tmp_path / "t.jsonl", table(tmp_path / "p.tsv", [("a", "b", "1"), ("c", "d", "2")])
    train.write_text('{"text": "a film"}\n')
    data = SentenceTexts(str(train), str(val), score_range=(0, 5), tokenizer=str(tiny_model), max_length=16, **options)
    assert error_of(data.check_sources).startswith(said)


def test_a_prompt_of_a_column_is_no_prompt_of_texts(tiny_model):
    given = {"tokenizer": str(tiny_model), "val_file": "a.tsv", "prompts": ["a ", "b "]}
    assert "give data.prompt" in error_of(SentenceTexts, **given)


def test_a_file_of_one_column(tmp_path, tiny_model):
    path = table(tmp_path / "p.tsv", [("a",), ("b",)], header="sentence1")
    assert "'sentence2'" in error_of(scored(path, tiny_model).check_sources)


def test_texts_alone_cannot_be_validated_on(tmp_path, tiny_model):
    path = tasks.texts(tmp_path / "t.txt")
    assert "data.val_file: missing" in error_of(lambda: SentenceTexts(str(path), tokenizer=str(tiny_model)))


def test_lines_are_texts_whatever_the_ending(tmp_path, tiny_model):
    path = tmp_path / "wiki.train.tokens.gz"
    path.write_bytes(gzip.compress(b" = a film = \n \nthe plot\n"))
    data = tasks.sentence_texts(tmp_path / "d", tiny_model)
    data = SentenceTexts(str(path), data.files["val"], score_range=(0, 5), tokenizer=str(tiny_model), max_length=16)
    data.setup("fit")
    assert len(next(iter(data.train_dataloader())).inputs["input_ids"]) == 2


def test_texts_in_a_column(tmp_path, tiny_model):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in ("a film", "the plot")))
    data = tasks.sentence_texts(tmp_path / "d", tiny_model)
    data = SentenceTexts(
        str(path), data.files["val"], text_column="body", score_range=(0, 5), tokenizer=str(tiny_model), max_length=16
    )
    data.setup("fit")
    assert len(next(iter(data.train_dataloader())).inputs["input_ids"]) == 2
