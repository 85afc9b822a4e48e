import json

import pytest
import torch
from contracts.errors import error_of
from datasets import ClassLabel, Dataset, Features, List, Value

from lit_compress.data import MultiLabelClassification

TEXTS = ["good film", "bad plot", "the story", "a scene"]
LISTS = [["x", "y"], [], ["z"], ["10", "x"]]


@pytest.fixture
def make(tmp_path, tiny_model):
    def make(rows, suffix=".jsonl", **options):
        path = tmp_path / f"train{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif suffix == ".parquet":
            rows.to_parquet(path)
        else:
            path.write_text(rows)
        files = {"train_file": str(path), "val_file": str(path), "cache_dir": str(tmp_path / "cache")}
        return MultiLabelClassification(**files | {"tokenizer": str(tiny_model), "batch_size": 8} | options)

    return make


def targets(data):
    """Labels of each text, by text."""
    found = {}
    for batch in data.val_dataloader():
        assert batch.targets["labels"].dtype == torch.float32
        texts = data.tokenizer.batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)
        for text, row in zip(texts, batch.targets["labels"].tolist(), strict=True):
            found[text] = [label for label, there in zip(data.labels, row, strict=True) if there]
    return found


EXPECTED = dict(zip(TEXTS, [["x", "y"], [], ["z"], ["10", "x"]], strict=True))


def test_lists(make):
    data = make([{"text": text, "labels": labels} for text, labels in zip(TEXTS, LISTS, strict=True)])
    assert data.labels == ["10", "x", "y", "z"]
    assert targets(data) == EXPECTED


@pytest.mark.parametrize("separator", [",", " ; "])
def test_labels_in_one_field(make, separator):
    lines = [f"{text}\t{separator.join(labels)}" for text, labels in zip(TEXTS, LISTS, strict=True)]
    data = make("\n".join(["text\ttags", *lines]) + "\n", ".tsv", label_column="tags", label_separator=separator)
    assert targets(data) == EXPECTED


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_columns_of_0_and_1(make, suffix):
    names = ["x", "y", "z"]
    rows = [{"text": text} | {name: int(name in labels) for name in names} for text, labels in zip(TEXTS, LISTS, strict=True)]  # noqa: E501  # fmt: skip
    if suffix == ".csv":
        rows = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n"
    data = make(rows, suffix, label_columns=["y", "x", "z"])
    assert data.labels == ["y", "x", "z"]
    assert targets(data) == dict(zip(TEXTS, [["y", "x"], [], ["z"], ["x"]], strict=True))


def test_lists_of_numbers_that_have_names(make):
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["p", "q"]))})
    data = make(Dataset.from_dict({"text": ["good", "bad"], "labels": [[1], [0, 1]]}, features), ".parquet")
    assert targets(data) == {"good": ["q"], "bad": ["p", "q"]}


@pytest.mark.parametrize(
    ("rows", "options", "parts"),
    [
        ([{"text": "a", "labels": []}], {}, ["data.label_column: no row of ", "'labels'", "data.label_columns"]),
        ([{"text": "a", "labels": 3}], {}, ["data.label_column: 3 ", "not a list"]),
        (
            [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": ["x", None]}],
            {},
            ["data.label_column: ", "row 2 of"],
        ),
        ([{"text": "a", "mine": ["x"]}], {}, ["data.label_column: 'labels' is not a column", "mine"]),
        ([{"text": "a", "x": 2}], {"label_columns": ["x"]}, ["data.label_columns: 2 in column 'x' must be 0 or 1"]),
        ([{"text": "a", "x": ""}], {"label_columns": ["x"]}, ["data.label_columns: '' in column 'x' must be 0 or 1"]),
        ([{"text": "a", "x": 1}], {"label_columns": ["y"]}, ["data.label_columns: 'y' is not a column"]),
        ([{"text": "a", "labels": ["x"]}], {"threshold": 1.0}, ["data.threshold: 1.0"]),
        ([{"text": "a", "labels": ["x"]}], {"label_columns": []}, ["data.label_columns: []"]),
        ([{"text": "a", "labels": ["x"]}], {"label_separator": ""}, ["data.label_separator"]),
    ],
)
def test_wrong_labels(make, rows, options, parts):
    message = error_of(lambda: make(rows, **options).setup("fit"))
    assert [part for part in parts if part not in message] == []


def test_a_label_that_never_occurs_in_training(make, tmp_path):
    data = make([{"text": "a", "labels": ["x"]}])
    data.files["val"] = str(tmp_path / "val.jsonl")
    (tmp_path / "val.jsonl").write_text('{"text": "a", "labels": ["x"]}\n{"text": "b", "labels": ["w"]}\n')
    message = error_of(data.setup, "validate")
    assert message.startswith("data.val_file: label 'w' in row 2 ")


def test_no_list_is_no_label(make):
    data = make([{"text": "good", "labels": ["x"]}, {"text": "bad", "labels": None}])
    assert targets(data) == {"good": ["x"], "bad": []}
