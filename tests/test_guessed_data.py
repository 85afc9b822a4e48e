import json

import pytest
from datasets import Dataset, DatasetDict

from lit_compress.errors import UserError
from lit_compress.guessed_data import guess_data


@pytest.fixture
def file(tmp_path):
    rows = [f"{' '.join(['word'] * (2 if number % 2 else 6))}\t{number % 2}" for number in range(40)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows]))
    return str(tmp_path / "train.tsv")


def test_rows_have_so_many_tokens_on_average(file, tiny_teacher):
    whole = guess_data(file, model=str(tiny_teacher))
    pieces = len(whole.texts(str(tiny_teacher)).tokenizer.tokenize("word"))
    assert whole.tokens == 2 + 4 * pieces  # of 2 and 6 words, and two special tokens
    assert guess_data(file, model=str(tiny_teacher), given={"max_length": 2 + 2 * pieces}).tokens == 2 + 2 * pieces


def test_windows_are_full(tmp_path, tiny_teacher):
    row = '{"id": "%d", "question": "who", "context": "it was me", "answers": {"text": ["me"], "answer_start": [7]}}'
    (tmp_path / "train.jsonl").write_text("\n".join(row % number for number in range(20)))
    guessed = guess_data(str(tmp_path / "train.jsonl"), model=str(tiny_teacher))
    assert guessed.tokens == guessed.options["max_length"]


def test_a_saved_split_is_what_is_validated(tmp_path, tiny_teacher):
    rows = Dataset.from_dict({"text": ["good", "bad"] * 20, "label": ["up", "down"] * 20})
    DatasetDict({"train": rows, "validation": rows.select(range(30))}).save_to_disk(tmp_path / "saved")
    guessed = guess_data(str(tmp_path / "saved"), model=str(tiny_teacher))
    assert "val_fraction" not in guessed.options
    held_out = guess_data(str(tmp_path / "saved/train"), model=str(tiny_teacher))
    assert held_out.options["val_fraction"] == 0.1
    assert guessed.steps >= held_out.steps


def test_a_validation_file_among_the_options_of_the_data_counts(file, tiny_teacher):
    assert "val_fraction" not in guess_data(file, model=str(tiny_teacher), given={"val_file": file}).options


@pytest.mark.parametrize(
    ("header", "row", "names"),
    [(",text,label", "{0},{1},{2}", ("text", "label")), ("v1,v2,,,", "{2},{1},,,", ("v2", "v1"))],
)
def test_a_header_with_columns_of_no_name_is_no_example(tmp_path, tiny_teacher, header, row, names):
    rows = [row.format(number, f"a good film number {number}", ("up", "down")[number % 2]) for number in range(40)]
    (tmp_path / "train.csv").write_text("\n".join([header, *rows]))
    guessed = guess_data(str(tmp_path / "train.csv"), model=str(tiny_teacher))
    assert "columns" not in guessed.options
    assert guessed.rows == 40
    assert (guessed.options["text_columns"], guessed.options["label_column"]) == ([names[0]], names[1])


@pytest.mark.parametrize("end", ["\n", "\u2028"])
def test_long_quoted_texts_do_not_hide_what_is_between_the_fields(tmp_path, tiny_teacher, end):
    text = end.join(["a good film"] * 7)  # the first lines of the file end in the middle of a text
    rows = [f'"{text}";{("up", "down")[number % 2]}' for number in range(60)]
    (tmp_path / "train.csv").write_text("\n".join(["text;label", *rows]), encoding="utf-8")
    guessed = guess_data(str(tmp_path / "train.csv"), model=str(tiny_teacher))
    assert guessed.guess.task == "classification"
    assert guessed.options["delimiter"] == ";"


COLUMNS = ["label", "text"]


@pytest.mark.parametrize(
    ("name", "line", "given"),
    [
        ("train.jsonl", '{{"text": "caf\xe9 {1}", "label": {0}}}', {"encoding": "latin-1"}),
        ("train.jsonl", '{{"text": "caf\xe9 {1}", "label": {0}}}', {"encoding_errors": "replace"}),
        ("train.csv", "{0},a caf\xe9 {1}", {"columns": COLUMNS}),
        ("train.csv", "up{0},a caf\xe9 {1}", {"columns": COLUMNS, "encoding": "cp1252"}),
        ("train.txt", "{0};a caf\xe9 {1}", {"columns": COLUMNS, "delimiter": ";"}),
    ],
)
def test_a_file_is_read_as_the_options_of_the_data_say(tmp_path, tiny_teacher, name, line, given):
    lines = [line.format(number % 2, number) for number in range(40)]
    (tmp_path / name).write_bytes("\n".join(lines).encode("latin-1"))
    guessed = guess_data(str(tmp_path / name), model=str(tiny_teacher), given=given)
    assert guessed.guess.task == "classification"
    assert guessed.rows == 40
    assert (guessed.options["text_columns"], guessed.options["label_column"]) == (["text"], "label")
    assert {key: guessed.options[key] for key in given} == given


def test_questions_are_read_in_the_encoding_of_the_data(tmp_path, tiny_teacher):
    question = {"id": "1", "question": "o\xf9", "answers": [{"text": "caf\xe9", "answer_start": 3}]}
    content = {"data": [{"paragraphs": [{"context": "au caf\xe9", "qas": [question] * 20}]}]}
    (tmp_path / "train.json").write_bytes(json.dumps(content, ensure_ascii=False).encode("utf-16"))
    guessed = guess_data(str(tmp_path / "train.json"), model=str(tiny_teacher), given={"encoding": "utf-16"})
    assert guessed.guess.task == "question-answering"


def test_a_folder_of_classes_is_read_as_the_options_of_the_data_say(tmp_path, tiny_teacher):
    for label in ("up", "down"):
        (tmp_path / label).mkdir()
        for number in range(9):
            (tmp_path / label / f"{number}.txt").write_text("a good caf\xe9 here", encoding="utf-16-le")
    guessed = guess_data(str(tmp_path), model=str(tiny_teacher), given={"encoding": "utf-16-le"})
    assert {*guessed.texts(str(tiny_teacher)).rows("train")["text"]} == {"a good caf\xe9 here"}
    assert guessed.guess.options["text_columns"] == ["text"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"encoding": "utf8000"}, r"^data\.encoding: 'utf8000'"),
        ({"delimiter": ";;"}, r"^data\.delimiter: ';;' must be one character"),
        ({"columns": "text,label"}, r"^data\.columns: 'text,label' must be a list of names"),
    ],
)
def test_a_file_cannot_be_read_so(file, tiny_teacher, given, said):
    with pytest.raises(UserError, match=said):
        guess_data(file, model=str(tiny_teacher), given=given)
