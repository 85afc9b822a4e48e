"""The texts whose answers changed are those of the file, beside what each model said and what is right."""

import json
from types import SimpleNamespace

import torch
from contracts import tasks
from contracts.training import data
from report.results import HOSTILE, results
from torch.nn.functional import one_hot

from lit_compress.report.accuracy import Recorder
from lit_compress.report.changed_predictions import changed, changed_answers
from lit_compress.report.markdown import markdown
from lit_compress.report.model_card import with_results
from lit_compress.tasks import IGNORED


def asked(datamodule, output):
    """Outcomes of a model that is a function from a batch and the number of its first row to an output."""
    recorder, rows = Recorder(datamodule.task), 0
    for batch in datamodule.val_dataloader():
        recorder.add(SimpleNamespace(**output(batch, rows)), batch)
        rows += batch.rows
    return recorder.outcomes()


def validated(datamodule):
    datamodule.setup("validate")
    return datamodule


def test_classes(tiny_data, tiny_teacher):
    module = validated(data(tiny_data, tiny_teacher, batch_size=4))
    right = asked(module, lambda batch, first: {"logits": one_hot(batch.targets["labels"], 2).float()})

    def flipped(batch, first):
        wrong = (torch.arange(batch.rows) + first) % 5 == 0
        return {"logits": one_hot(batch.targets["labels"] ^ wrong.long(), 2).float()}

    found = changed_answers(right, asked(module, flipped), module)
    assert found["count"] == 4
    rows = {tuple(line.split("\t")) for line in (tiny_data / "val.tsv").read_text().splitlines()}
    for row in found["rows"]:
        assert (row["text"], row["right"]) in rows
        assert (row["dense"], row["own"]) == (row["right"], "10"[int(row["right"])])
    assert changed_answers(right, right, module) == {"count": 0, "rows": []}
    assert changed_answers(asked(module, flipped), right, module)["count"] == 4


def test_lost_answers_come_first_and_there_are_at_most_twenty(tmp_path, tiny_teacher):
    for name in ("train", "val"):
        lines = [f"{'a ' * (number + 1)}\t{number % 2}\n" for number in range(60)]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    module = validated(data(tmp_path, tiny_teacher, max_length=80))

    def always(label):
        return asked(module, lambda batch, first: {"logits": one_hot(torch.full((batch.rows,), label), 2)})

    found = changed_answers(always(0), always(1), module)
    assert (found["count"], len(found["rows"])) == (60, 20)
    assert {row["right"] for row in found["rows"]} == {"0"}


def test_pairs_and_long_texts(tmp_path, tiny_teacher):
    lines = [f"good {'film ' * 90}\tbad plot\t1\n", "dull\tis it\t0\n"]
    for name in ("train", "val"):
        (tmp_path / f"{name}.tsv").write_text("one\ttwo\tlabel\n" + "".join(lines))
    module = validated(data(tmp_path, tiny_teacher, text_columns=["one", "two"], max_length=100))
    right, wrong = (
        asked(module, lambda batch, first, sign=sign: {"logits": sign * one_hot(batch.targets["labels"], 2).float()})
        for sign in (1, -1)
    )
    texts = {row["text"] for row in changed_answers(right, wrong, module)["rows"]}
    assert texts == {f"{('good ' + 'film ' * 90)[:300]}… | bad plot", "dull | is it"}


def test_numbers_that_moved_most(tmp_path, tiny_teacher):
    for name in ("train", "val"):
        lines = [f"{'good ' * (number + 1)}\t{number / 8}\n" for number in range(30)]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    module = validated(data(tmp_path, tiny_teacher, task="regression", max_length=40))
    right = asked(module, lambda batch, first: {"logits": batch.targets["labels"][:, None]})
    moved = asked(module, lambda batch, first: {"logits": 2 * batch.targets["labels"][:, None]})
    first, *others = changed_answers(right, moved, module)["rows"]
    assert first == {"text": " ".join(["good"] * 30), "dense": "3.62", "own": "7.25", "right": "3.62"}
    assert len(others) == 19


def test_labels(tmp_path, tiny_teacher):
    module = validated(tasks.data("multi_label_classification", tmp_path, tiny_teacher))
    right, none = (
        asked(module, lambda batch, first, bias=bias: {"logits": batch.targets["labels"] * 8 - bias}) for bias in (4, 9)
    )
    rows = [json.loads(line) for line in (tmp_path / "multi_label_classification-val.jsonl").open()]
    found = changed_answers(right, none, module)
    assert found["count"] == sum(bool(row["labels"]) for row in rows)
    answers = {row["text"]: set(row["labels"]) for row in rows}
    for row in found["rows"]:
        assert set(row["right"].split(", ")) == set(row["dense"].split(", ")) == answers[row["text"]]
        assert row["own"] == "no label"


def test_tags_that_differ_each_after_its_word(tmp_path, tiny_teacher):
    # Sentences of several windows, whose first one may come last.
    sentence = "the O\n" * 12 + "good B-LOC\ngreat I-LOC\nis O\n\n"
    (tmp_path / "token_classification-val.txt").write_text("the O\nfine B-PER\n\n" + sentence)
    module = validated(tasks.data("token_classification", tmp_path, tiny_teacher, max_length=10))

    def tags(batch, first, lost=()):
        labels = batch.targets["labels"].clone()
        for tag in lost:
            labels[labels == module.labels.index(tag)] = module.labels.index("O")
        return {"logits": one_hot(labels.where(labels != IGNORED, 0), len(module.labels)).float()}

    right = asked(module, tags)
    (row,) = changed_answers(right, asked(module, lambda *given: tags(*given, ["B-PER"])), module)["rows"]
    assert row == {"text": "the fine", "dense": "fine B-PER", "own": "fine O", "right": "fine B-PER"}
    (row,) = changed_answers(right, asked(module, lambda *given: tags(*given, ["B-LOC"])), module)["rows"]
    assert row["text"] == " ".join(["the"] * 8)  # its first window
    assert (row["dense"], row["own"]) == ("word 13 B-LOC", "word 13 O")


def test_answers_to_questions(tmp_path, tiny_teacher):
    module = validated(tasks.data("question_answering", tmp_path, tiny_teacher))

    def spans(shift):
        def output(batch, first):
            tokens = batch.inputs["input_ids"].shape[1]
            at = (batch.targets["start_positions"].clamp(0, tokens - 1) + shift).clamp(0, tokens - 1)
            scores = 9 * one_hot(at, tokens).float()
            return {"start_logits": scores, "end_logits": scores}

        return output

    found = changed_answers(asked(module, spans(0)), asked(module, spans(1)), module)
    assert found["count"] > 10
    questions = json.loads((tmp_path / "question_answering-val.json").read_text())["data"][0]["paragraphs"]
    contexts = [paragraph["context"] for paragraph in questions]
    for row in found["rows"]:
        question, _, context = row["text"].partition(" | ")
        assert question == "was it"
        assert any(known.startswith(context) for known in contexts)
        assert row["right"] in tasks.NAMES
        assert row["dense"] != row["own"]


def test_masked_words_have_no_answers_to_show(tmp_path, tiny_model):
    module = validated(tasks.data("masked_lm", tmp_path, tiny_model))
    outcomes = asked(module, lambda batch, first: {"logits": torch.randn(*batch.inputs["input_ids"].shape, 90)})
    assert changed_answers(outcomes, outcomes, module) is None


def test_the_report_shows_them_as_they_are_and_the_model_card_does_not():
    given = results()
    section = changed(given)
    assert section is not None
    assert section.lines == ("14 of 400 examples have another prediction; 2 of them, worst first:",)
    assert section.tables[0].rows[0] == (HOSTILE, "good", HOSTILE, "good")
    assert "| &lt;script>alert(1)&lt;/script> | good |" in markdown(given)
    assert section.title not in with_results("", given)
    assert changed(results(changed=None)) is None
    assert changed(results(changed={"count": 0, "rows": []})) is None
