import gzip
import json
import shutil

import pytest
import torch
from datasets import Dataset

from lit_compress.data import QuestionAnswering
from lit_compress.errors import UserError

CONTEXT = "the film was good but the story is very bad and the actor was in a great scene"


def question(text="story", context=CONTEXT, number=1, **more):
    """A paragraph with one question, answered by a word that is there once."""
    answers = [{"text": text, "answer_start": context.index(text)}] if text else []
    return {"context": context, "qas": [{"id": f"q{number}", "question": "it was", "answers": answers} | more]}


def squad(*paragraphs):
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": list(paragraphs)}]})


ONE = (question(),)


@pytest.fixture
def make(tmp_path, tiny_model):
    def build(train=ONE, val=ONE, **settings):
        for split, paragraphs in {"train": train, "val": val}.items():
            if paragraphs is not None:
                path = tmp_path / f"{split}.json"
                text = paragraphs if isinstance(paragraphs, str) else squad(*paragraphs)
                if not path.exists() or path.read_text() != text:
                    path.write_text(text)
                settings.setdefault(f"{split}_file", str(path))
        defaults = {"tokenizer": str(tiny_model), "max_length": 32, "doc_stride": 4}
        data = QuestionAnswering(**defaults | {"cache_dir": str(tmp_path / "cache")} | settings)
        data.setup("fit")
        return data

    return build


def windows(data, loader):
    """Text and answer of each row."""
    found = []
    for batch in loader:
        rows = zip(
            batch.inputs["input_ids"],
            batch.targets["start_positions"].tolist(),
            batch.targets["end_positions"].tolist(),
            strict=True,
        )
        for ids, start, end in rows:
            text = data.tokenizer.decode(ids, skip_special_tokens=True)
            found.append((text, data.tokenizer.decode(ids[start : end + 1])))
    return sorted(found)


def test_a_short_context_is_one_window(make):
    data = make()
    assert windows(data, data.train_dataloader()) == [(f"it was {CONTEXT}", "story")]
    (batch,) = data.train_dataloader()
    inputs = {"input_ids", "attention_mask", "token_type_ids"}
    assert tuple(map(set, batch)) == (inputs, {"start_positions", "end_positions"}, {"index"})


def test_windows_overlap_and_the_answer_is_found_where_it_is(make):
    data = make(max_length=14, doc_stride=4, batch_size=1)  # 9 tokens of context, 5 of them new
    found = windows(data, data.train_dataloader())
    pieces = [text.removeprefix("it was ") for text, _ in found]
    words = CONTEXT.split()
    assert sorted(pieces) == sorted(" ".join(words[i : i + 9]) for i in (0, 5, 10))
    # In a window without the answer both positions are its first token.
    assert {answer for text, answer in found if "story" in text} == {"story"}
    assert {answer for text, answer in found if "story" not in text} == {"[CLS]"}


@pytest.mark.parametrize("max_length", [12, 17, 32])
@pytest.mark.parametrize("doc_stride", [0, 2, 5])
def test_every_window_with_the_answer_has_it_and_offsets_are_those_of_the_text(make, max_length, doc_stride):
    answers = ["the film", "story is very", "a great scene", "but"]
    paragraphs = [question(text, number=number) for number, text in enumerate(answers)]
    data = make(val=paragraphs, max_length=max_length, doc_stride=doc_stride)
    hits = dict.fromkeys(answers, 0)
    for batch in data.val_dataloader():
        for row, example in enumerate(batch.meta["examples"]):
            (answer,) = example["answers"]
            inside = batch.meta["char_start"][row] >= 0
            begins, ends = batch.meta["char_start"][row][inside], batch.meta["char_end"][row][inside]
            for token, begin, end in zip(batch.inputs["input_ids"][row][inside], begins, ends, strict=True):
                assert data.tokenizer.decode(token) == example["context"][begin:end]
            start, end = int(batch.targets["start_positions"][row]), int(batch.targets["end_positions"][row])
            whole = begins.min() <= CONTEXT.index(answer) and CONTEXT.index(answer) + len(answer) <= ends.max()
            assert (start > 0) == bool(whole)
            if start:
                hits[answer] += 1
                assert (
                    example["context"][batch.meta["char_start"][row, start] : batch.meta["char_end"][row, end]]
                    == answer
                )
    assert all(hits.values()) or max_length == 12


def test_a_question_that_has_no_answer(make):
    paragraphs = [question(), question(None, number=2, is_impossible=True)]
    data = make(paragraphs, val=paragraphs, no_answer=True)
    assert [answer for _, answer in windows(data, data.train_dataloader())] == ["[CLS]", "story"]
    examples = [example for batch in data.val_dataloader() for example in batch.meta["examples"]]
    assert {example["question"]: example["answers"] for example in examples} == {"q1": ["story"], "q2": []}
    assert all(example["no_answer"] for example in examples)


def test_only_answers_that_are_sure_enough(make):
    def marked(text, mark, number):
        answer = {"text": text, "answer_start": CONTEXT.index(text), "start": mark}
        return question(number=number, answers=[answer])

    guess = {"text": "was", "answer_start": CONTEXT.index("was"), "start": "chosen"}
    sure = {"text": "bad", "answer_start": CONTEXT.index("bad"), "start": "unique"}
    train = [marked("story", "unique", 1), marked("was", "chosen", 2), question(number=3, answers=[guess, sure])]
    data = make(train)
    assert [answer for _, answer in windows(data, data.train_dataloader())] == ["story", "was", "was"]
    data = make(train, answer_marks=["unique", "xquad"], val=train)
    assert [answer for _, answer in windows(data, data.train_dataloader())] == ["bad", "story"]
    assert len(windows(data, data.val_dataloader())) == 3  # metrics look at texts only
    with pytest.raises(UserError, match=r"^data\.train_file: .*\['xquad'\]"):
        make(train, answer_marks=["xquad"])


def test_answers_without_a_place_are_measured_and_not_trained_on(make):
    unplaced = question(number=2, answers=[{"text": "film"}])
    data = make([question(), unplaced], val=[unplaced])
    assert len(windows(data, data.train_dataloader())) == 1
    (batch,) = data.val_dataloader()
    assert batch.meta["examples"][0]["answers"] == ["film"]
    assert batch.targets["start_positions"].item() >= batch.inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl", "a.parquet", "b.jsonl"])
def test_formats(make, tmp_path, name):
    path, text = tmp_path / name, squad(question())
    start = CONTEXT.index("story")
    row = {
        "id": "q1",
        "question": "it was",
        "context": CONTEXT,
        "answers": {"text": ["story"], "answer_start": [start]},
    }
    if name == "b.jsonl":
        row["answers"] = [{"text": "story", "answer_start": start}]
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith("jsonl"):
        path.write_text(json.dumps(row) + "\n")
    else:
        Dataset.from_list([row]).to_parquet(path)
    data = make(train_file=str(path), val_file=str(path))
    assert windows(data, data.train_dataloader()) == [(f"it was {CONTEXT}", "story")]


def test_held_out_questions_are_the_last(make):
    train = [question(number=number) for number in range(10)]
    data = make(train, val=None, val_fraction=0.2)
    ids = {example["question"] for batch in data.val_dataloader() for example in batch.meta["examples"]}
    assert ids == {"q8", "q9"}


@pytest.mark.parametrize(("fraction", "held"), [(0.1, {3, 4}), (0.5, {1, 2, 3, 4, 5}), (0.9, {1, 2, 3, 4, 5})])
def test_questions_on_one_context_are_held_out_together(make, fraction, held):
    # The second context comes again after the third, as in a table that was shuffled.
    contexts = [f"{CONTEXT} {word}" for word in ("good", "bad", "bad", "cold", "cold", "bad")]
    train = [question(context=context, number=number) for number, context in enumerate(contexts)]
    held = {f"q{number}" for number in held}
    data = make(train, val=None, val_fraction=fraction)
    tables = {split: {row["id"]: row["context"] for row in data.table(split)} for split in ("train", "val")}
    assert set(tables["val"]) == held
    assert set(tables["train"]) | held == {f"q{number}" for number in range(6)}
    assert not set(tables["train"].values()) & set(tables["val"].values())


def test_questions_that_are_all_on_one_context_are_validated_on_it(make, caplog):
    make([question(number=number) for number in range(10)], val=None)
    assert "data.val_file: missing, and all questions are on one context" in caplog.text


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizer_that_pads_on_the_left(make, tiny_model, tmp_path, side):
    folder = shutil.copytree(tiny_model, tmp_path / "tokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": side}))
    if side == "right":
        make(tokenizer=str(folder))
        return
    with pytest.raises(UserError, match=r"data.tokenizer: .* pads on the left.*padding_side") as caught:
        make(tokenizer=str(folder))
    assert "\n" not in str(caught.value)


def test_predictions_need_no_answers(make, tmp_path):
    path = tmp_path / "predict.json"
    path.write_text(squad(question(None), question(None, number=2)))
    data = make(predict_file=str(path))
    questions = [example["question"] for batch in data.predict_dataloader() for example in batch.meta["examples"]]
    assert questions == ["q1", "q2"]


@pytest.mark.parametrize(
    ("settings", "key", "part"),
    [
        ({"train": "{"}, "data.train_file", "not JSON"),
        ({"train": "[]"}, "data.train_file", "not SQuAD's JSON"),
        ({"train": '{"data": [{"paragraphs": [{"qas": []}]}]}'}, "data.train_file", "no rows"),
        (
            {"train": '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": 1}]}]}]}'},
            "data.train_file",
            "question",
        ),
        ({"train": (question(None),)}, "data.train_file", "no_answer"),
        ({"val": (question(None),)}, "data.val_file", "no_answer"),
        ({"train": (question(answers=[{"text": "film", "answer_start": 7}]),)}, "data.train_file", "answer_start 7"),
        ({"train": (question(answers=[{"text": "film"}]),)}, "data.train_file", "answer_start"),
        ({"max_length": 10, "doc_stride": 8}, "data.doc_stride", "8"),
        ({"doc_stride": -1}, "data.doc_stride", "-1"),
        ({"null_threshold": 1.5}, "data.null_threshold", "1.5 has no effect where each question has an answer"),
        ({"null_threshold": float("nan"), "no_answer": True}, "data.null_threshold", "must be a number"),
        ({"train_file": "missing.json"}, "data.train_file", "does not exist"),
    ],
)
def test_mistakes(make, settings, key, part):
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert str(caught.value).startswith(f"{key}: "), str(caught.value)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_column(make, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "question": "it", "answers": {"text": ["a"], "answer_start": [0]}}\n')
    with pytest.raises(UserError, match=r"^data\.train_file: .*'context'"):
        make(train_file=str(path))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"context": None}, "has no context"),
        ({"question": None}, "has no question"),
        ({"question": 7}, "the question 7, which is not text"),
        ({"id": None}, "has no id"),
        ({"answers": {"text": "bad", "answer_start": 34}}, "'bad'"),
        ({"answers": {"text": ["bad"], "answer_start": ["34"]}}, "'34'"),
        ({"answers": {"text": ["film", "bad"], "answer_start": [4]}}, "2 texts and 1 answer_start"),
        ({"answers": ["bad"]}, "['bad']"),
        ({"answers": "bad"}, "'bad'"),
        ({"answers": [{"text": None, "answer_start": 4}]}, "None"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_is_missing_or_of_another_kind_is_said_with_its_row(make, tmp_path, wrong, said, name):
    right = {"id": "q1", "question": "it was", "context": CONTEXT, "answers": [{"text": "bad", "answer_start": 34}]}
    path, rows = tmp_path / name, [right | wrong] * 2
    if name == "a.json":
        paragraphs = [{"context": row["context"], "qas": [row | {"context": "another"}]} for row in rows]
        path.write_text(squad(*paragraphs))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as caught:
        make(train_file=str(path))
    assert str(caught.value).startswith("data.train_file: row 1 of "), str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padding_is_outside_the_context(make):
    short = question("good", "it was good", number=2)
    data = make(val=[question(), short])
    (batch,) = data.val_dataloader()
    assert batch.meta["char_start"].shape == batch.inputs["input_ids"].shape
    padded = batch.inputs["attention_mask"] == 0
    assert padded.any()
    assert (batch.meta["char_start"][padded] == -1).all()
    assert torch.equal(
        batch.meta["char_start"] >= 0, batch.inputs["token_type_ids"].bool() & (batch.inputs["input_ids"] != 3)
    )


def test_a_question_without_room_is_cut_and_counted(make, caplog):
    long = question(number=1)
    long["qas"][0]["question"] = " ".join(["film"] * 40)
    paragraphs = (long, question("story", number=2))
    data = make(train=paragraphs, val=paragraphs, max_length=16, doc_stride=4)
    assert "1 of 2 questions to train" in caplog.text
    assert "1 of 2 questions to val" in caplog.text
    assert "data.max_length" in caplog.text
    batches = list(data.val_dataloader())
    assert all(batch.inputs["input_ids"].shape[1] <= 16 for batch in batches)
    assert {example["question"] for batch in batches for example in batch.meta["examples"]} == {"q1", "q2"}
    answers = [answer for _, answer in windows(data, data.train_dataloader())]
    assert answers.count("story") >= 2


def test_questions_that_fit_are_not_spoken_of(make, caplog):
    make()
    assert "were cut" not in caplog.text
