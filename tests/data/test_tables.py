import gzip
import json

import pytest
from datasets import Dataset, load_dataset

from lit_compress.data.tables import load_table, load_tokenizer, tokenize
from lit_compress.errors import UserError

KEY = "data.train_file"


@pytest.fixture
def load(tmp_path):
    """Write a file, read it as a table."""

    def write_and_load(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_table(str(path), KEY, **options)

    return write_and_load


def says(caught, *parts):
    """The message is one line, begins with the key and has every part."""
    message = str(caught.value)
    assert message.startswith(f"{KEY}: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message


ROWS = {"sentence": ["a good film", "NA", "null", "nan", ""], "label": ["x", "y", "NA", "null", "x"]}
TABS = "sentence\tlabel\na good film\tx\nNA\ty\nnull\tNA\nnan\tnull\n\tx\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", TABS),
        ("a.txt", TABS),
        ("a.tsv", TABS.replace("\n", "\r\n")),
        ("a.tsv", b"\xef\xbb\xbf" + TABS.encode()),
        ("a.tsv.gz", gzip.compress(TABS.encode(), mtime=0)),
        ("a.csv", TABS.replace("\t", ",")),
        ("a.csv.gz", gzip.compress(TABS.replace("\t", ",").encode(), mtime=0)),
        (
            "a.jsonl",
            '{"sentence":"a good film","label":"x"}\n{"sentence":"NA","label":"y"}\n{"sentence":"null","label":"NA"}\n'
            '{"sentence":"nan","label":"null"}\n{"sentence":"","label":"x"}\n',
        ),
    ],
    ids=["tsv", "txt", "crlf", "bom", "tsv.gz", "csv", "csv.gz", "jsonl"],
)
def test_formats_agree_and_na_is_text(load, name, content):
    assert load(name, content).to_dict() == ROWS


def test_parquet(tmp_path):
    Dataset.from_dict(ROWS).to_parquet(tmp_path / "a.parquet")
    assert load_table(str(tmp_path / "a.parquet"), KEY).to_dict() == ROWS


def test_a_lone_quotation_mark_in_a_tsv_is_text(load):
    table = load("a.tsv", 'sentence\tlabel\n"a film\tx\nof 12" and more\ty\n"whole"\tx\n')
    assert table["sentence"][:] == ['"a film', 'of 12" and more', '"whole"']


def test_quoted_fields_of_a_csv_hold_commas_newlines_and_quotes(load):
    table = load("a.csv", 'sentence,label\n"a, b\nand ""c""",x\nplain,y\n')
    assert table["sentence"][:] == ['a, b\nand "c"', "plain"]


@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_columns_name_a_file_without_a_header(load, name, separator):
    table = load(name, f"gj04{separator}a film\nbc{separator}not it\n", columns=["source", "sentence"])
    assert table.to_dict() == {"source": ["gj04", "bc"], "sentence": ["a film", "not it"]}


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_text_that_looks_like_numbers_is_read_as_written(load, name):
    separator = "\t" if name == "a.tsv" else ","
    table = load(name, f"sentence{separator}label\n007{separator}x\n1.50{separator}y\n")
    assert table["sentence"][:] == ["007", "1.50"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_that_looks_like_dates_is_read_as_written(tmp_path, name, encoding):
    more = {"n": 1, "at": "2020-01-01"}
    rows = [
        {"text": "2020-01-01", "label": "2020-01-01T10:00:00Z", "tags": ["2020-01-01"], "more": more},
        {"text": "2021-05-01 10:00:00", "tags": ["2020-05-01", None], "more": None, "count": 0.5},
    ]
    content = json.dumps(rows) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows)
    content = content.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    table = load_table(str(tmp_path / name), "key", encoding=encoding, cache_dir=str(tmp_path / "cache"))
    columns = table.column_names
    assert {*columns} == {"text", "label", "tags", "more", "count"}
    expected = [{name: row.get(name) for name in columns} for row in rows]
    found = table.to_list()
    assert found[0] == expected[0]
    assert {**found[1], "more": None} == expected[1]


def test_a_list_of_dates_and_labels_of_several_types_are_read_as_written(load):
    assert load("a.json", ' ["2020-01-01", "2020-05-01"]')["text"][:] == ["2020-01-01", "2020-05-01"]
    table = load("b.jsonl", '{"text": "2020-01-01", "label": 1}\n{"text": "2020-05-01", "label": "x"}\n')
    assert table.to_list() == [{"text": "2020-01-01", "label": 1}, {"text": "2020-05-01", "label": "x"}]


def test_the_kind_of_a_column_does_not_follow_from_its_first_rows(load):
    # The reader looks at ten thousand rows at a time.
    table = load("a.tsv", "sentence\tlabel\n" + "1984\t1\n" * 10_001 + "a film\tunknown\n")
    assert table[10_001] == {"sentence": "a film", "label": "unknown"}


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.tsv", "sentence\tlabel\ncafé\tx\n"), ("a.jsonl", '{"sentence":"café","label":"x"}\n')],
    ids=["tsv", "jsonl"],
)
class TestEncoding:
    def test_another_one(self, load, name, content):
        assert load(name, content.encode("latin-1"), encoding="latin-1")[0]["sentence"] == "café"

    def test_bytes_that_are_no_text(self, load, name, content):
        with pytest.raises(UserError) as caught:
            load(name, content.encode("latin-1"))[0]
        says(caught, name)

    def test_bytes_that_are_no_text_replaced(self, load, name, content):
        assert load(name, content.encode("latin-1"), encoding_errors="replace")[0]["sentence"] == "caf\ufffd"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.tsv", "", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.tsv.gz", gzip.compress(b"", mtime=0), ""),
        ("a.tsv", "\n\n", ""),
        ("a.tsv", "sentence\tlabel\n", "a header and no rows"),
        ("a.csv", "sentence,label\n", "a header and no rows"),
        ("a.xlsx", "x", "'.xlsx'; known are .tsv"),
        ("noname", "x", "unknown format"),
        ("a.gz", "x", "unknown format"),
        ("a.tsv", "sentence\tlabel\ngood\tx\nbad\ty\tz\n", "line 3"),
        ("a.tsv", "sentence\tlabel\ngood\tx\t0\nbad\ty\t1\n", ""),  # each row has a field too many
        ("a.csv", "text;label\na film;x\nlong, dull;y\n", "';', so set data.delimiter"),
        ("a.jsonl", '{"sentence": "x", \n', ""),
        ("a.parquet", b"PAR1 and nothing else", ""),
        ("a.tsv.gz", "not compressed", ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_cannot_be_read(load, name, content, part):
    with pytest.raises(UserError) as caught:
        load(name, content)
    says(caught, name, part)


@pytest.mark.parametrize("source", ["missing.tsv", "/no/such/folder/train.tsv", "package:no_such_package/train.tsv"])
def test_a_file_that_is_not_there(source):
    with pytest.raises(UserError) as caught:
        load_table(source, KEY)
    says(caught, repr(source))


def test_an_unknown_encoding(load):
    with pytest.raises(UserError) as caught:
        load("a.tsv", TABS, encoding="utf-88")
    says(caught, "utf-88")


@pytest.fixture
def classes(tmp_path):
    """A folder per class, with things beside them that are not texts."""
    folder = tmp_path / "reviews"
    for name, texts in {"pos": ["good film", "great\nplot"], "neg": ["bad film"], ".hidden": ["no"]}.items():
        (folder / name).mkdir(parents=True)
        for number, text in enumerate(texts):
            (folder / name / f"{number}.txt").write_text(text)
    (folder / "README").write_text("about")
    (folder / "pos" / "notes.md").write_text("about")
    return folder


def test_a_folder_per_class(classes):
    table = load_table(str(classes), KEY)
    assert table.to_dict() == {"text": ["bad film", "good film", "great\nplot"], "label": ["neg", "pos", "pos"]}


def test_a_changed_file_is_read_again(classes, load):
    load_table(str(classes), KEY)
    (classes / "neg" / "0.txt").write_text("awful")
    assert load_table(str(classes), KEY)[0]["text"] == "awful"
    load("a.tsv", "sentence\tlabel\nold\tx\n")
    assert load("a.tsv", "sentence\tlabel\nchanged\tx\n")[0]["sentence"] == "changed"


def test_a_folder_without_class_folders(tmp_path):
    with pytest.raises(UserError) as caught:
        load_table(str(tmp_path), KEY)
    says(caught, "class folders")


def test_a_folder_with_bytes_that_are_no_text(classes):
    (classes / "neg" / "0.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError) as caught:
        load_table(str(classes), KEY)
    says(caught, "utf-8-sig", "data.encoding")
    assert load_table(str(classes), KEY, encoding="latin-1")[0]["text"] == "café"
    assert load_table(str(classes), KEY, encoding_errors="replace")[0]["text"] == "caf\ufffd"


@pytest.mark.parametrize("source", ["an empty folder", "owner/no-such-model", "package:json", "/no/such/folder"])
def test_no_tokenizer(tmp_path, source):
    source = str(tmp_path) if source == "an empty folder" else source
    with pytest.raises(UserError) as caught:
        load_tokenizer(source, "data.tokenizer")
    message = str(caught.value)
    assert message.startswith("data.tokenizer: ")
    assert message.count("data.tokenizer: ") == 1
    assert repr(source) in message
    assert "\n" not in message


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model), "data.tokenizer")


def pieces(tokenizer, table):
    return [" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in table["input_ids"]]


def test_tokenize(tokenizer):
    table = Dataset.from_dict(
        {"sentence": ["Good film", "the plot was not very good !"], "label": ["x", "y"], "id": [7, 8]}
    )
    label = lambda rows: [{"x": 0, "y": 1}[value] for value in rows["label"]]  # noqa: E731
    found = tokenize(table, tokenizer, ["sentence"], 6, "", (label, ["x", "y"]))
    assert pieces(tokenizer, found) == ["[CLS] good film [SEP]", "[CLS] the plot was not [SEP]"]
    assert found["length"][:] == [4, 6]
    assert found["labels"][:] == [0, 1]
    assert not {"sentence", "label", "id"} & set(found.column_names)


def test_tokenize_pairs_and_leaves_labels_out(tokenizer):
    table = Dataset.from_dict({"one": ["good film"], "two": ["bad plot"]})
    found = tokenize(table, tokenizer, ["two", "one"], 32, "")
    assert pieces(tokenizer, found) == ["[CLS] bad plot [SEP] good film [SEP]"]
    assert found["token_type_ids"][0] == [0, 0, 0, 0, 1, 1, 1]
    assert "labels" not in found.column_names


def test_what_another_tokenizer_of_the_same_vocabulary_made_is_not_taken(tmp_path, tiny_model):
    (tmp_path / "pairs.jsonl").write_text('{"one": "good film", "two": "the plot was not very good"}\n')

    def encoded(**changed):
        tokenizer = load_tokenizer(str(tiny_model), "data.tokenizer")
        for name, value in changed.items():
            setattr(tokenizer, name, value)
        # Read anew each time: only a table from a file has a cache on disk.
        table = load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=str(tmp_path))
        found = tokenize(table, tokenizer, ["two"], 5, "")
        return set(found.column_names), pieces(tokenizer, found)

    without, first = encoded(model_input_names=["input_ids", "attention_mask"])  # as DistilBERT
    assert "token_type_ids" not in without
    assert "token_type_ids" in encoded()[0]
    assert first == ["[CLS] the plot was [SEP]"]
    assert encoded(truncation_side="left")[1] == ["[CLS] not very good [SEP]"]
