import pytest

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
