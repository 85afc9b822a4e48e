import gzip
import json
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from lit_compress.data import TokenClassification
from lit_compress.errors import UserError

ROWS = "good\tB-PER\nactor\tO\nis\tO\n\nfilm\tO\nlovely\tB-LOC\ngreat\tI-LOC\n"

TURNED = "\n".join("\t".join(line.split("\t")[::-1]) for line in ROWS.split("\n"))


@pytest.fixture
def make(tmp_path, tiny_model):
    def build(train=ROWS, val=ROWS, name="txt", **settings):
        for split, text in {"train": train, "val": val}.items():
            if text is not None:
                path = tmp_path / f"{split}.{name}"
                path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
                settings.setdefault(f"{split}_file", str(path))
        defaults = {"tokenizer": str(tiny_model), "max_length": 16, "cache_dir": str(tmp_path / "cache")}
        data = TokenClassification(**defaults | settings)
        data.setup("fit")
        return data

    return build


def tagged(data, loader):
    """Words and their tags as batches say them: a word is its pieces, its tag that of the first."""
    rows = []
    for batch in loader:
        for ids, labels, starts in zip(
            batch.inputs["input_ids"], batch.targets["labels"], batch.meta["word_starts"], strict=True
        ):
            row, tokens = [], data.tokenizer.convert_ids_to_tokens(ids)
            for token, label, start in zip(tokens, labels.tolist(), starts.tolist(), strict=True):
                if start:
                    row.append([token, data.labels[label] if label >= 0 else None])
                else:
                    assert label == -100
                    if token.startswith("##"):
                        row[-1][0] += token[2:]
            rows.append([tuple(word) for word in row])
    return sorted(rows)


EXPECTED = [
    [("film", "O"), ("lovely", "B-LOC"), ("great", "I-LOC")],
    [("good", "B-PER"), ("actor", "O"), ("is", "O")],
]


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        (ROWS, "txt", {}),
        (ROWS, "conll.gz", {}),
        (ROWS.replace("\t", " "), "bio", {}),
        (ROWS.replace("\n", "\r\n"), "tsv", {}),
        ("-DOCSTART- -X- O\n\n" + ROWS.replace("\n\n", "\n\n-DOCSTART- (2)\n \n\n") + "\n\n", "txt", {}),
        (ROWS.replace("\t", "\tNN\t"), "txt", {}),
        (TURNED, "txt", {"token_column": 1, "tag_column": 0}),
    ],
    ids=["tabs", "gz", "blanks", "crlf", "docstart", "three columns", "turned around"],
)  # fmt: skip
def test_column_files(make, text, name, settings):
    data = make(text, text, name, **settings)
    assert data.labels == ["O", "B-LOC", "I-LOC", "B-PER"]
    assert tagged(data, data.train_dataloader()) == EXPECTED
    assert tagged(data, data.val_dataloader()) == EXPECTED


def test_tables_with_lists(make, tmp_path):
    rows = {"words": [["good", "actor", "is"], ["film", "lovely", "great"]]}
    rows["ner"] = [["B-PER", "O", "O"], ["O", "B-LOC", "I-LOC"]]
    lines = [json.dumps({name: column[i] for name, column in rows.items()}) for i in range(2)]
    settings = {"token_column": "words", "tag_column": "ner"}
    data = make("\n".join(lines), "\n".join(lines), "jsonl", **settings)
    assert tagged(data, data.train_dataloader()) == EXPECTED
    names = ["O", "B-PER", "B-LOC", "I-LOC"]
    features = Features({"words": List(Value("string")), "ner": List(ClassLabel(names=names))})
    numbers = [[names.index(tag) for tag in row] for row in rows["ner"]]
    Dataset.from_dict({"words": rows["words"], "ner": numbers}, features).to_parquet(tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    data = make(None, None, train_file=path, val_file=path, **settings)
    assert tagged(data, data.val_dataloader()) == EXPECTED


def test_a_word_of_several_pieces_has_its_tag_at_the_first(make):
    # The vocabulary has single letters and the endings ##s and ##ly.
    data = make("goods\tB-PER\nfilms\tO\n", "goods\tB-PER\nfilms\tO\n")
    (batch,) = data.val_dataloader()
    assert data.tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0]) == [
        "[CLS]", "good", "##s", "film", "##s", "[SEP]",
    ]  # fmt: skip
    assert batch.targets["labels"].tolist() == [[-100, 1, -100, 0, -100, -100]]


def test_a_word_that_the_tokenizer_drops_keeps_its_place(make):
    rows = "good\tB-PER\n\u200b\tO\nfilm\tO\n"
    data = make(rows, rows)
    (batch,) = data.train_dataloader()
    assert int(batch.meta["word_starts"].sum()) == 3
    assert data.tokenizer.unk_token_id in batch.inputs["input_ids"][0]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("keep", [("film", "I-LOC"), ("is", "I-LOC"), ("it", "B-LOC"), ("a", "O")]),
        ("IOB2", [("film", "B-LOC"), ("is", "I-LOC"), ("it", "B-LOC"), ("a", "O")]),
        ("BIOES", [("film", "B-LOC"), ("is", "E-LOC"), ("it", "S-LOC"), ("a", "O")]),
    ],
)
def test_schemes(make, scheme, expected):
    rows = "film I-LOC\nis I-LOC\nit B-LOC\na O\n"
    data = make(rows, rows, scheme=scheme)
    assert tagged(data, data.val_dataloader()) == [expected]


def long_sentence(count=30):
    """Words with an entity of two every third word."""
    return "".join(f"film {'B-LOC' if i % 3 == 0 else 'I-LOC' if i % 3 == 1 else 'O'}\n" for i in range(count))


def test_a_long_sentence_becomes_windows_between_entities(make):
    data = make(long_sentence(), long_sentence(), max_length=12)
    rows = [[tag for _, tag in row] for row in tagged(data, data.train_dataloader())]
    assert sum(map(len, rows)) == 30
    assert all(row[0] != "I-LOC" for row in rows)
    starts = [example["first_word"] for batch in data.train_dataloader() for example in batch.meta["examples"]]
    assert sorted(starts) == [0, 9, 18, 27]


@pytest.mark.parametrize("long_sentences", ["window", "cut"])
def test_evaluation_divides_a_sentence_as_prediction_does(make, tmp_path, long_sentences):
    path = tmp_path / "all.txt"
    path.write_text(long_sentence())
    files = {"test_file": str(path), "predict_file": str(path)}
    data = make(long_sentence(), long_sentence(), max_length=12, long_sentences=long_sentences, **files)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        starts = [example["first_word"] for batch in loader for example in batch.meta["examples"]]
        assert sorted(starts) == [0, 10, 20]


def test_an_entity_longer_than_a_window_is_cut(make):
    rows = "film B-LOC\n" + "is I-LOC\n" * 20
    data = make(rows + "\na O\n", rows, max_length=8)
    assert [len(row) for row in tagged(data, data.train_dataloader())].count(6) == 3


def test_a_long_training_sentence_can_be_cut(make, caplog):
    data = make(long_sentence(), long_sentence(), max_length=12, long_sentences="cut")
    assert [len(row) for row in tagged(data, data.train_dataloader())] == [10]
    assert "20 words" in caplog.text


def test_predictions_keep_the_order_and_need_no_tags(make, tmp_path):
    path = tmp_path / "predict.txt"
    path.write_text("film\nis\t\n\n" + "good\n" * 20 + "\na\n")
    data = make(predict_file=str(path), max_length=12)
    (batch,) = data.predict_dataloader()
    places = [(example["sentence"], example["first_word"]) for example in batch.meta["examples"]]
    assert places == [(0, 0), (1, 0), (1, 10), (2, 0)]
    assert (batch.targets["labels"] == -100).all()
    assert batch.meta["word_starts"].sum(1).tolist() == [2, 10, 10, 1]


def test_held_out_sentences_do_not_lose_tags(make):
    rows = ROWS + "\n" + "film\tO\n\n" * 20
    data = make(rows, None, val_fraction=0.2, limit=5)
    assert data.labels == ["O", "B-LOC", "I-LOC", "B-PER"]
    assert len(tagged(data, data.train_dataloader())) == 5
    assert len(tagged(data, data.val_dataloader())) == 4


def test_padding_has_no_label(make):
    data = make("film\tO\n\n" + ROWS)
    (batch,) = data.train_dataloader()
    assert ((batch.targets["labels"] == -100) | batch.inputs["attention_mask"].bool()).all()
    assert torch.equal(batch.targets["labels"] != -100, batch.meta["word_starts"])


@pytest.mark.parametrize(
    ("settings", "key", "part"),
    [
        ({"val": "film\tB-NEW\n"}, "data.val_file", "'B-NEW' in sentence 1"),
        ({"train": "film\nfilm\n"}, "data.train_file", "line 1"),
        ({"train": ROWS + "it\n"}, "data.train_file", "line 8"),
        ({"val": ROWS + "it\t\n"}, "data.val_file", "line 8"),
        ({"train": ROWS + "it\t \tPRP\n", "tag_column": 1}, "data.train_file", "line 8"),
        ({"token_column": 1, "tag_column": -1}, "data.train_file", "line 1"),
        ({"train": "film O\n"}, "data.tag_column", "['O']"),
        ({"train": ROWS + "it\n", "token_column": 1, "tag_column": 0}, "data.train_file", "line 8"),
        ({"train": "\n\n"}, "data.train_file", "no rows"),
        ({"train": ""}, "data.train_file", "is empty"),
        ({"train_file": "missing.txt"}, "data.train_file", "does not exist"),
        ({"tag_column": "ner"}, "data.tag_column", "give a number"),
        ({"scheme": "IOB3"}, "data.scheme", "'IOB3'"),
        ({"train": "film NN\nis VB\n", "scheme": "BIOES"}, "data.scheme", "'NN'"),
        ({"long_sentences": "split"}, "data.long_sentences", "'split'"),
        ({"max_length": 2}, "data.max_length", "2"),
    ],
)
def test_mistakes(make, settings, key, part):
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert str(caught.value).startswith(f"{key}: "), str(caught.value)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "settings", "key", "part"),
    [
        ({"tokens": ["a", "film"], "tags": ["O"]}, {}, "data.train_file", "2 words and 1 tags"),
        ({"tokens": ["a"], "tags": ["O"]}, {"tag_column": "ner"}, "data.tag_column", "'ner' is not a column"),
        ({"tokens": "a film", "tags": ["O", "O"]}, {}, "data.token_column", "no lists"),
        ({"tokens": ["a"], "tags": ["O"]}, {"tag_column": 1}, "data.tag_column", "named columns"),
    ],
)
def test_mistakes_in_tables(make, row, settings, key, part):
    text = json.dumps(row) + "\n"
    with pytest.raises(UserError) as caught:
        make(text, text, "jsonl", **settings)
    assert str(caught.value).startswith(f"{key}: "), str(caught.value)
    assert part in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val", "predict"])
@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"tokens": None, "tags": None}, "token_column"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "token_column"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "tag_column"),
        ({"tokens": [], "tags": None}, "tag_column"),
    ],
)
def test_a_missing_word_or_tag_is_said_with_its_row(make, tmp_path, split, row, key):
    right = {"tokens": ["a", "film"], "tags": ["O", "B-X"]}
    files = {f"{name}_file": str(tmp_path / f"{name}.jsonl") for name in ("train", "val", "predict")}
    for name, path in files.items():
        rows = [right, row] if name == f"{split}_file" else [right, right]
        Path(path).write_text("".join(json.dumps(each) + "\n" for each in rows))
    if split == "predict" and key == "tag_column":
        assert make(None, None, **files).predict_count() == 2
        return
    with pytest.raises(UserError, match=rf"^data\.{key}: .*row 2 of .*{split}\.jsonl"):
        make(None, None, **files)
