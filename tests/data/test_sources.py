"""Data as people have it: other delimiters and encodings, folders of `datasets`, names of the hub, rare classes."""

import gzip
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sentencepiece import SentencePieceTrainer
from torch.nn import functional as F

from lit_compress.data import (
    LengthGroupedBatches,
    MultiLabelClassification,
    RankedPairs,
    SentencePairs,
    SentenceTexts,
    TextClassification,
    TokenClassification,
)
from lit_compress.data.tables import load_tokenizer
from lit_compress.errors import UserError

TEXTS = ["good film", "bad film", "a great story", "the plot was awful", "a good story", "the film was dull"]
ROWS = {"text": TEXTS, "label": [1, 0, 1, 0, 1, 0]}


@pytest.fixture
def make(tmp_path, tiny_model):
    """A data module of some class: ``make(TextClassification, {"a.csv": "..."}, train_file="a.csv")``."""

    def build(kind, files=(), **options):
        for name, content in dict(files).items():
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for key in ("train_file", "val_file", "test_file", "hub"):
            if key in options:
                options[key] = str(tmp_path / options[key])
        return kind(tokenizer=str(tiny_model), cache_dir=str(tmp_path / "cache"), **options)

    return build


def csv(delimiter=",", rows=ROWS):
    pairs = zip(*rows.values(), strict=True)
    return "".join(f"{text}{delimiter}{label}\n" for text, label in [("text", "label"), *pairs])


def texts(data, loader):
    inputs = [ids for batch in loader for ids in batch.inputs["input_ids"]]
    return sorted(data.tokenizer.decode(ids, skip_special_tokens=True) for ids in inputs)


@pytest.mark.parametrize(("delimiter", "name"), [(";", "a.csv"), ("|", "a.csv"), (",", "a.tsv"), ("\t", "a.csv.gz")])
def test_a_delimiter(make, delimiter, name):
    content = csv(delimiter).encode()
    content = gzip.compress(content) if name.endswith("gz") else content
    data = make(TextClassification, {name: content}, train_file=name, delimiter=delimiter, val_fraction=0.3)
    data.setup("fit")
    assert sorted(texts(data, data.train_dataloader()) + texts(data, data.val_dataloader())) == sorted(TEXTS)
    assert data.labels == ["0", "1"]


@pytest.mark.parametrize("content", [csv(";"), csv(";").replace("good film", "good, or not, film")])
def test_another_delimiter_than_the_default_is_named(make, content):
    data = make(TextClassification, {"a.csv": content}, train_file="a.csv")
    with pytest.raises(UserError, match=r"data\..*';'.*data\.delimiter") as caught:
        data.check_sources()
    assert "data.columns" not in str(caught.value)


def test_lines_of_text_are_no_table_with_commas(make):
    data = make(
        TextClassification, {"a.txt": "a good film, which we have seen twice\na dull one\n"}, train_file="a.txt"
    )
    with pytest.raises(UserError, match=r"for a file without a header give data\.columns") as caught:
        data.check_sources()
    assert "data.delimiter" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_columns": ["text", "label"]}, "data.label_column: 'label' is one of data.text_columns"),
        ({"num_workers": -1}, "data.num_workers: -1 must be at least 0"),
        ({"eval_limit": 0}, "data.eval_limit: 0 must be at least 1"),
        ({"sampling": "weighted"}, "data.sampling: 'weighted' must be shuffled or balanced"),
        ({"class_weights": "equal"}, "data.class_weights: 'equal' must be balanced"),
        ({"class_weights": {"0": 0.0, "1": 1.0}}, "data.class_weights: 0.0 of '0' must be a positive number"),
        ({"task": "regression", "class_weights": "balanced"}, "data.class_weights: has no effect on a regression"),
        ({"task": "regression", "sampling": "balanced"}, "data.sampling: has no effect on a regression"),
    ],
)
def test_options_that_cannot_be(make, options, message):
    with pytest.raises(UserError, match=message):
        make(TextClassification, **{"train_file": "a.csv"} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": "::"}, "data.delimiter: '::' must be one character"),
        ({"train_file": "a.jsonl", "delimiter": ";"}, r"data.delimiter: ';' has no effect on '.*a.jsonl'"),
        ({"train_file": "a.jsonl", "columns": ["x", "y"]}, r"data.columns: \['x', 'y'\] has no effect on '.*a.jsonl'"),
        ({"hub": "a", "delimiter": ";"}, r"data.delimiter: ';' has no effect on '.*a'"),
    ],
)
@pytest.mark.parametrize("kind", [TextClassification, MultiLabelClassification, SentencePairs, RankedPairs])
def test_fields_and_names_of_columns_are_of_files_that_have_them(make, kind, options, message):
    with pytest.raises(UserError, match=message):
        make(kind, **({} if "hub" in options else {"train_file": "a.csv"}) | options)


@pytest.mark.parametrize("kind", [TextClassification, SentencePairs])
def test_a_file_to_predict_need_not_be_of_the_kind_of_the_training_file(make, kind):
    # A run keeps how its training file is read, also for a prediction of another.
    make(kind, predict_file="a.jsonl", delimiter=";", columns=["label", "text"])


def test_texts_alone_have_a_delimiter_of_one_character(make):
    options = {"train_file": "a.csv", "val_file": "b.csv"}
    make(SentenceTexts, **options, delimiter=";")
    with pytest.raises(UserError, match=r"data.delimiter: '::' must be one character"):
        make(SentenceTexts, **options, delimiter="::")


def compressed():
    return gzip.compress(csv(rows={"text": [f"t{n * 7919 % 1000}" for n in range(500)], "label": [0] * 500}).encode())


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", csv().replace("good", "caf\xe9").encode("latin-1"), ["decode", "data.encoding", "latin-1"]),
        ("a.jsonl", '{"text": "caf\xe9", "label": 1}\n'.encode("latin-1"), ["decode", "data.encoding", "latin-1"]),
        ("a.csv.gz", compressed()[:400], ["a.csv.gz", "ended before"]),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:60],
            ["a.jsonl.gz", "ended before"],
        ),
        ("a.csv", "text,label,text\na,1,b\n", ["two columns 'text'"]),
        ("a.jsonl", '{"text": "a", "label": ["x", "y"]}\n', ["'label'", "lists", "MultiLabelClassification"]),
    ],
)
def test_a_file_that_cannot_be_read_as_it_is(make, name, content, parts):
    data = make(TextClassification, {name: content}, train_file=name)
    with pytest.raises(UserError) as caught:
        data.check_sources()
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_latin_1_is_read_when_it_is_named(make):
    content = csv().replace("good", "caf\xe9").encode("latin-1")
    data = make(TextClassification, {"a.csv": content}, train_file="a.csv", encoding="latin-1")
    assert data.rows("train")["text"][0] == "caf\xe9 film"


def test_labels_of_mixed_types_are_names(make):
    lines = "".join(json.dumps({"text": "a film", "label": label}) + "\n" for label in (2, "x", 10))
    data = make(TextClassification, {"a.jsonl": lines}, train_file="a.jsonl", val_fraction=0.3)
    assert data.labels == ["2", "10", "x"]
    data.setup("fit")
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert sorted(torch.cat([batch.targets["labels"] for batch in batches]).tolist()) == [0, 1, 2]


def test_a_folder_of_save_to_disk(make, tmp_path):
    Dataset.from_dict(ROWS).save_to_disk(tmp_path / "saved")
    for options in ({"train_file": "saved"}, {"hub": "saved"}):
        data = make(TextClassification, val_file="saved", **options)
        data.setup("fit")
        assert texts(data, data.train_dataloader()) == texts(data, data.val_dataloader()) == sorted(TEXTS)


@pytest.fixture
def saved_dict(tmp_path):
    splits = {"train": slice(0, 3), "validation": slice(3, 5), "test": slice(5, 6)}
    parts = {name: Dataset.from_dict({key: rows[part] for key, rows in ROWS.items()}) for name, part in splits.items()}
    DatasetDict(parts).save_to_disk(tmp_path / "dict")
    return tmp_path / "dict"


def test_a_folder_of_a_dataset_dict_has_its_splits(make, saved_dict):
    data = make(TextClassification, train_file="dict", test_file="dict")
    data.setup("fit")
    assert texts(data, data.train_dataloader()) == sorted(TEXTS[:3])
    assert texts(data, data.val_dataloader()) == sorted(TEXTS[3:5])
    assert texts(data, data.test_dataloader()) == sorted(TEXTS[5:])
    from_hub = make(TextClassification, hub="dict")
    from_hub.setup("fit")
    assert texts(from_hub, from_hub.val_dataloader()) == sorted(TEXTS[3:5])


def test_a_split_that_a_folder_does_not_have(make, saved_dict):
    data = make(TextClassification, train_file="dict", val_file="dict", hub_val_split="dev")
    with pytest.raises(UserError, match=r"data.val_file: .* has no split 'dev'; it has train, validation, test"):
        data.check_sources()


@pytest.mark.parametrize("content", ['{"spl', "{}", "[]"])
def test_a_folder_that_does_not_say_its_splits(make, saved_dict, content):
    (saved_dict / "dataset_dict.json").write_text(content)
    with pytest.raises(UserError, match=r"data.train_file: dataset_dict.json in .*dict' does not say its splits: .*"):
        make(TextClassification, train_file="dict")


def test_a_limit_of_evaluation(make):
    options = {"train_file": "a.csv", "val_file": "a.csv", "eval_limit": 2}
    data = make(TextClassification, {"a.csv": csv()}, **options)
    data.setup("fit")
    assert len(texts(data, data.train_dataloader())) == 6
    chosen = texts(data, data.val_dataloader())
    again = make(TextClassification, **options)
    again.setup("validate")
    assert len(chosen) == 2
    assert texts(again, again.val_dataloader()) == chosen


RARE = {"text": TEXTS, "label": ["no", "no", "yes", "no", "no", "no"]}


def loss(task, logits, labels):
    return task.loss(SimpleNamespace(logits=logits), SimpleNamespace(targets={"labels": labels}, rows=len(labels)))


@pytest.mark.parametrize("weights", ["balanced", {"no": 0.6, "yes": 3.0}])
def test_class_weights(make, weights):
    options = {"train_file": "a.csv", "val_file": "a.csv", "class_weights": weights}
    task = make(TextClassification, {"a.csv": csv(rows=RARE)}, **options).task
    logits, labels = torch.randn(6, 2), torch.tensor([0, 0, 1, 0, 0, 0])
    each = F.cross_entropy(logits, labels, reduction="none")
    assert loss(task, logits, labels) == pytest.approx(
        float((each * torch.tensor([0.6, 0.6, 3.0, 0.6, 0.6, 0.6])).mean())
    )


@pytest.mark.parametrize(("weights", "wrong"), [({"no": 1.0}, "yes"), ({"no": 1.0, "yes": 2.0, "si": 1.0}, "si")])
def test_class_weights_name_every_class(make, weights, wrong):
    options = {"train_file": "a.csv", "val_file": "a.csv", "class_weights": weights}
    data = make(TextClassification, {"a.csv": csv(rows=RARE)}, **options)
    with pytest.raises(UserError, match=rf"data.class_weights: '{wrong}'"):
        _ = data.task


def test_an_evaluation_does_not_count_the_classes_of_the_training_file(make, tmp_path):
    options = {"train_file": "a.csv", "val_file": "b.csv", "class_weights": "balanced"}
    data = make(TextClassification, {"b.csv": csv(rows=RARE)}, **options)
    data.use_labels(["no", "yes"])
    data.setup("validate")
    assert data.task.labels == ["no", "yes"]


def test_weights_of_several_labels(make):
    rows = [{"text": "a film", "labels": labels} for labels in (["a"], ["a"], ["a", "b"], [], [], [])]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    options = {"train_file": "a.jsonl", "val_file": "a.jsonl", "class_weights": "balanced"}
    task = make(MultiLabelClassification, {"a.jsonl": lines}, **options).task
    logits, labels = torch.randn(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=torch.tensor([1.0, 5.0]))
    assert loss(task, logits, labels) == pytest.approx(float(expected))


def test_balanced_sampling_shows_each_class_as_often(make):
    rows = {"text": [f"w{n}" for n in range(400)], "label": ["yes" if n % 10 == 0 else "no" for n in range(400)]}
    options = {"train_file": "a.csv", "val_file": "a.csv", "sampling": "balanced", "batch_size": 16}
    data = make(TextClassification, {"a.csv": csv(rows=rows)}, **options)
    data.setup("fit")
    counts = torch.cat([batch.targets["labels"] for batch in data.train_dataloader()]).bincount()
    assert int(counts.sum()) == 400
    assert abs(int(counts[0]) - 200) < 50
    validated = torch.cat([batch.targets["labels"] for batch in data.val_dataloader()]).bincount()
    assert validated.tolist() == [360, 40]


def test_sampled_batches_follow_from_seed_and_epoch():
    lengths, weights = np.arange(1, 41), np.where(np.arange(40) < 4, 9.0, 1.0)
    drawn = [list(LengthGroupedBatches(lengths, 8, seed=seed, weights=weights)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    ranks = [LengthGroupedBatches(lengths, 4, True, 1, 2, rank, weights) for rank in (0, 1)]
    together = [sorted(first + second) for first, second in zip(*ranks, strict=True)]
    assert together == [sorted(batch) for batch in drawn[0]]


def test_tags_by_the_names_of_the_hub(make, tmp_path):
    names = ClassLabel(names=["O", "B-PER", "I-PER"])
    features = Features({"tokens": List(Value("string")), "pos_tags": List(Value("int64")), "ner_tags": List(names)})
    rows = {"tokens": [["a", "good", "film"]] * 4, "pos_tags": [[0, 1, 2]] * 4, "ner_tags": [[0, 1, 2]] * 4}
    table = Dataset.from_dict(rows, features=features)
    DatasetDict(train=table, validation=table).save_to_disk(tmp_path / "conll")
    for options in ({"train_file": "conll"}, {"hub": "conll"}):
        data = make(TokenClassification, max_length=16, **options)
        data.setup("fit")
        assert data.labels == ["O", "B-PER", "I-PER"]
        assert next(iter(data.val_dataloader())).targets["labels"][0].tolist() == [-100, 0, 1, 2, -100]


def test_tags_that_are_numbers_are_in_the_order_of_their_values(make):
    lines = json.dumps({"tokens": ["a"] * 12, "tags": [*range(11, -1, -1)]}) + "\n"
    data = make(TokenClassification, {"a.jsonl": lines}, train_file="a.jsonl", val_file="a.jsonl", max_length=32)
    assert data.labels == [str(number) for number in range(12)]


@pytest.mark.parametrize("name", ["spm.model", "spiece.model", "sentencepiece.bpe.model"])
def test_a_tokenizer_that_needs_sentencepiece(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>")
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    with pytest.raises(
        UserError, match=rf"data.tokenizer: .*{name}.* needs 'sentencepiece'.*lit_compress\[sentencepiece"
    ):
        load_tokenizer(str(tmp_path), "data.tokenizer")


def test_a_tokenizer_of_sentencepiece_is_read(tmp_path):
    names = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
    (tmp_path / "text.txt").write_text("\n".join(f"the good film number {number}" for number in range(300)))
    SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=40,
        user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
        **names,
    )
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    tokenizer = load_tokenizer(str(tmp_path), "data.tokenizer")
    assert tokenizer.decode(tokenizer("the good film")["input_ids"], skip_special_tokens=True) == "the good film"


def test_a_validation_file_is_what_is_validated_on_with_a_dataset_of_the_hub(make, tmp_path):
    rows = Dataset.from_dict(ROWS)
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
    data = make(TextClassification, {"own.csv": "text,label\nmy own film,1\nmy other film,0\n"}, hub="saved")
    data = make(TextClassification, hub="saved", val_file="own.csv")
    assert data.table("val")["text"][:] == ["my own film", "my other film"]
    assert len(data.table("train")) == len(TEXTS)
