"""What a table, a column file or a text is taken for: the shapes in which people keep their data."""

import pytest

from lit_compress.data.guess import guess_task
from lit_compress.data.guess_file import (
    guess_delimiter,
    guess_encoding,
    guess_length,
    has_header,
    is_column_file,
    percentile,
)
from lit_compress.errors import UserError

TEXTS = ["a good film about a plot", "a bad film", "a great story about an actor", "the plot was awful"]
OTHERS = ["the actor was good, not bad", "it was a dull film", "a great scene", "the plot was cold"]
FLAGS = ["1", "0", "1", "0"]

# Columns -> task and options that it is taken for.
TABLES = {
    "text and label": ({"text": TEXTS, "label": FLAGS}, "classification", ["text"], {"label_column": "label"}),
    "SST-2": ({"sentence": TEXTS, "label": FLAGS}, "classification", ["sentence"], {"label_column": "label"}),
    "CoLA without a header": (
        {
            "column_1": ["gj04", "gj04", "bc01", "bc01"],
            "column_2": FLAGS,
            "column_3": ["", "*", "", "*"],
            "column_4": TEXTS,
        },
        "classification",
        ["column_4"],
        {"label_column": "column_2"},
    ),
    "MRPC": (
        {"Quality": FLAGS, "#1 ID": ["7", "8", "9", "6"], "#2 ID": ["1", "2", "3", "4"]}
        | {"#1 String": TEXTS, "#2 String": OTHERS},
        "classification",
        ["#1 String", "#2 String"],
        {"label_column": "Quality"},
    ),
    "STS-B": (
        {"index": ["0", "1", "2", "3"], "genre": ["news"] * 4, "sentence1": TEXTS, "sentence2": OTHERS}
        | {"score": ["5.000", "3.750", "0.0", "2.5"]},
        "regression",
        ["sentence1", "sentence2"],
        {"label_column": "score", "task": "regression"},
    ),
    "names of classes": (
        {"id": ["a", "b", "c", "d"], "title": ["x"] * 4, "body": TEXTS, "topic": ["sport", "news", "sport", "news"]},
        "classification",
        ["body"],
        {"label_column": "topic"},
    ),
    "a column of lists": (
        {"text": TEXTS, "labels": [["a"], [], ["a", "b"], ["b"]]},
        "multi-label",
        ["text"],
        {"label_column": "labels"},
    ),
    "labels in one field": (
        {"text": TEXTS, "labels": ["good,fine", "bad", "good", "fine,bad"]},
        "multi-label",
        ["text"],
        {"label_column": "labels", "label_separator": ","},
    ),
    "columns of 0 and 1": (
        {"comment": TEXTS, "toxic": FLAGS, "insult": ["0", "0", "1", "1"]},
        "multi-label",
        ["comment"],
        {"label_columns": ["toxic", "insult"]},
    ),
}


@pytest.mark.parametrize(("columns", "task", "texts", "options"), TABLES.values(), ids=TABLES)
def test_a_table(columns, task, texts, options):
    guess = guess_task(columns)
    assert guess.task == task
    assert guess.options == options | {"text_columns": texts}


@pytest.mark.parametrize(
    ("tags", "options"),
    [
        ("tags", {}),
        ("ner_tags", {}),
        ("pos", {"token_column": "tokens", "tag_column": "pos"}),
    ],
)
def test_lists_of_words_and_tags(tags, options):
    columns = {"id": ["0", "1"], "tokens": [["Ann", "is"], ["here"]], tags: [["B-PER", "O"], ["O"]]}
    guess = guess_task(columns)
    assert (guess.task, guess.options) == ("token-classification", options)


def test_questions_and_their_answers():
    answers = [{"text": ["a"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    columns = {"id": ["0", "1"], "question": ["q", "q"], "context": ["a", "a"], "answers": answers}
    assert guess_task(columns).options == {"no_answer": True}
    assert guess_task({**columns, "answers": answers[:1] * 2}).options == {}


def test_texts_alone_are_for_pretraining():
    guess = guess_task({"text": TEXTS, "id": ["1", "2", "3", "4"]})
    assert (guess.task, guess.options) == ("pretraining", {"text_column": "text"})
    assert "--label_column" in guess.doubts[-1]


@pytest.mark.parametrize(
    ("columns", "option"),
    [
        ({"text": TEXTS * 2, "rating": [*"12345123"]}, "--task regression"),
        ({"text": TEXTS * 8, "score": [*map(str, range(32))]}, "--task classification"),
        ({"text": TEXTS, "labels": ["a,b", "b", "a", "b,a"]}, "--task classification"),
        ({"title": OTHERS, "text": TEXTS, "label": FLAGS}, "--text_columns"),
        ({"left": OTHERS, "right": TEXTS, "label": FLAGS}, "--text_columns"),
        ({"text": TEXTS, "label": FLAGS, "category": FLAGS}, "--label_column"),
        ({"text": TEXTS, "toxic": FLAGS, "insult": FLAGS}, "--label_column"),
        ({"text": TEXTS * 6, "label": ["a"] * 22 + ["b"] * 2}, "data.class_weights"),
    ],
)
def test_what_could_also_be_meant_is_said_with_its_option(columns, option):
    assert any(option in doubt for doubt in guess_task(columns).doubts)


def test_a_column_of_numbers_without_a_name_is_no_label():
    assert guess_task({"Unnamed: 0": [*"0123"], "text": TEXTS}).task == "pretraining"


def test_what_is_known_is_no_guess():
    columns = {"title": OTHERS, "text": TEXTS, "label": [*"1234"], "toxic": FLAGS}
    assert guess_task(columns, "regression").task == "regression"
    guess = guess_task(columns, text_columns=["title", "text"], label_column="toxic")
    assert guess.options == {"text_columns": ["title", "text"], "label_column": "toxic"}
    assert guess_task(columns, "pretraining").options == {"text_column": "text"}


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"text": TEXTS}, {"label_column": "lable"}, r"--label_column: 'lable' is not a column; it has \['text'\]"),
        ({"text": TEXTS}, {"task": "token-classification"}, "needs columns with lists of words"),
        ({"text": TEXTS}, {"task": "classification"}, "none of .* looks like the label"),
        ({"a": [*"1234"], "b": [*"1010"]}, {}, "--text_columns: missing"),
        ({"text": TEXTS * 9, "label": [f"name {i}" for i in range(36)]}, {}, "36 different values in 36 examples"),
    ],
)
def test_what_cannot_be_is_refused(columns, options, said):
    with pytest.raises(UserError, match=said):
        guess_task(columns, **options)


@pytest.mark.parametrize(
    ("lines", "default", "sign"),
    [
        (["text,label", "good,1"], ",", ","),
        (["text;label", "good, really;1"], ",", ";"),
        (["text|label", "good|1", '"a|b"|0'], ",", "|"),
        (["text\tlabel", "good\t1"], ",", "\t"),
        (["text,label\n", '"two\n', 'lines; really",1\n'], ",", ","),
        (["text", "good"], ",", None),
    ],
)
def test_delimiter(lines, default, sign):
    assert guess_delimiter(lines, default, quoting=True) == sign


@pytest.mark.parametrize("quoting", [True, False])
def test_a_field_may_be_very_long(quoting):
    assert guess_delimiter(["text;label", f"{'good ' * 40_000};1"], ",", quoting) == ";"


def test_header():
    assert has_header([["text", "label"], ["good", "1"]])
    assert not has_header([["gj04", "1", "", "a text"], ["gj04", "0", "*", "another"]])
    assert not has_header([["good", "fine"], ["good", "bad"]])
    assert not has_header([["this is a whole sentence already", "good"], ["this is another", "bad"]])


@pytest.mark.parametrize(
    ("rows", "there"),
    [
        ([["", "text", "label"], ["0", "good", "up"], ["1", "bad", "down"]], True),  # the index of pandas
        ([["v1", "v2", "", ""], ["up", "good", "", ""], ["down", "bad", "", " "]], True),
        ([["v1", "v2", ""], *[["up", "good", ""]] * 40, ["down", "bad", " and so on"]], True),
        ([["gj04", "1", "", "a text"], ["bc01", "0", "*", "another"]], False),
        ([["gj04", "", "a text"], ["bc01", "*", "another"]], False),
        ([["", ""], ["0", ""]], False),
    ],
)
def test_a_header_may_leave_columns_of_numbers_or_almost_nothing_without_a_name(rows, there):
    assert has_header(rows) is there


def test_encoding():
    assert guess_encoding("ein Käse".encode("utf-16")) == "utf-16"
    assert guess_encoding("ein Käse".encode()[:-3]) == "utf-8-sig"  # cut in a character


def test_column_file():
    conll = ["-DOCSTART- -X- O O", "", "Ann NNP B-PER", "is VB O", "", "Here RB O"]
    assert is_column_file(conll)
    assert not is_column_file(["a good film", "a bad film", "", "what a film"])


def test_lengths():
    assert percentile([1, 2, 3, 4], 50) == 2
    assert guess_length(range(1, 101)) == 104
    assert guess_length([600], most=128) == 128
