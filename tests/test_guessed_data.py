import pytest
from datasets import Dataset, DatasetDict

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
