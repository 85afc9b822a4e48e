import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from contracts import errors, tasks
from contracts.training import data, fit, student
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.modules import Distillation, HiddenDistillation, LitStudent, LogitDistillation, Optimization
from lit_compress.tasks import Batch


@pytest.fixture
def batch():
    ids = torch.randint(5, 40, (4, 6))
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {"labels": torch.tensor([0, 1, 1, 0])}, {})


@pytest.fixture
def altered(tmp_path, tiny_teacher):
    """The teacher's folder with other entries in its configuration."""

    def alter(**entries):
        folder = tmp_path / "altered"
        shutil.copytree(tiny_teacher, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | entries))
        return str(folder)

    return alter


error_of = partial(errors.error_of, LitStudent)


def test_a_teacher_never_learns(tiny_model, tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_model, tiny_teacher)
    before = {name: tensor.clone() for name, tensor in module.teacher.model.state_dict().items()}
    run = fit(module, data(tiny_data, tiny_model), [], tmp_path)
    after = module.teacher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    held = {id(p) for p in module.teacher.model.parameters()}
    assert not held & {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert not any(p.grad is not None or p.requires_grad for p in module.teacher.model.parameters())


def test_a_teacher_has_no_dropout_while_its_student_trains(tiny_teacher, batch):
    module = student(tiny_teacher, tiny_teacher).train()
    asked = [module.teacher(input_ids=batch.inputs["input_ids"]).logits for _ in range(2)]
    assert torch.equal(*asked)
    own = [module(batch).logits for _ in range(2)]
    assert not torch.equal(*own)


def test_a_teacher_moves_with_its_student(tiny_teacher):
    module = student(tiny_teacher, tiny_teacher)
    assert {p.dtype for p in module.double().teacher.model.parameters()} == {torch.float64}
    assert {p.device.type for p in module.to("meta").teacher.model.parameters()} == {"meta"}


def test_a_teacher_is_in_no_state(tiny_teacher):
    module, alone = student(tiny_teacher, tiny_teacher), student(tiny_teacher)
    assert module.state_dict().keys() == alone.state_dict().keys()
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in alone.named_parameters()]


def test_a_teacher_alone_distils_its_logits(tiny_teacher, batch):
    module = LitStudent(str(tiny_teacher), teacher=str(tiny_teacher), labels=["0", "1"])
    assert {name: type(term) for name, term in module.distillation.items()} == {"kd": LogitDistillation}
    assert module.losses(batch).keys() == {"task", "kd", "loss"}


def test_without_a_teacher_the_task_is_all(tiny_teacher, batch):
    parts = student(tiny_teacher).losses(batch)
    assert parts.keys() == {"task", "loss"}
    assert torch.equal(parts["loss"], parts["task"])


def test_hidden_states_are_computed_only_when_a_term_needs_them(tiny_teacher, batch):
    class Probe(Distillation):
        def forward(self, student, teacher, batch):
            self.seen = student.hidden_states, teacher.hidden_states
            return student.logits.sum() * 0

    probe = Probe()
    arguments = {"teacher": str(tiny_teacher), "labels": ["0", "1"]}
    LitStudent(str(tiny_teacher), distillation={"probe": probe}, **arguments).losses(batch)
    assert probe.seen == (None, None)
    terms = {"probe": probe, "hidden": HiddenDistillation()}
    LitStudent(str(tiny_teacher), distillation=terms, **arguments).losses(batch)
    assert [len(states) for states in probe.seen] == [3, 3]


def test_a_regression_student_imitates_values(tiny_model, tmp_path, batch):
    torch.manual_seed(2)
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(tmp_path)
    module = LitStudent(str(tmp_path), teacher=str(tmp_path), distillation={"kd": LogitDistillation(1.0)}).eval()
    labels = torch.tensor([0.0, 5.0, 1.0, 2.0])
    assert module.losses(batch._replace(targets={"labels": labels}))["loss"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        module.student.classifier.bias.add_(2)
    assert module.losses(batch._replace(targets={"labels": labels}))["loss"].item() == pytest.approx(4, rel=1e-4)


def test_a_teacher_folder_that_is_missing(tiny_teacher, tmp_path):
    message = error_of(str(tiny_teacher), teacher=str(tmp_path / "none"), labels=["0", "1"])
    assert message.startswith("model.teacher: ")
    assert str(tmp_path / "none") in message


def test_a_teacher_is_looked_at_before_the_student_is_loaded(tmp_path):
    # Both are missing: loading a large student first would only delay the bad news.
    message = error_of(str(tmp_path / "student"), teacher=str(tmp_path / "teacher"), labels=["0", "1"])
    assert message.startswith("model.teacher: ")


@pytest.mark.parametrize("labels", [["0", "1", "2"], None])
def test_a_teacher_with_another_number_of_labels(tiny_model, tiny_teacher, labels):
    message = error_of(str(tiny_model), teacher=str(tiny_teacher), labels=labels)
    assert message.startswith("model.teacher: ")
    assert f"has 2 labels and the data has {len(labels or [0])}" in message


def test_a_teacher_with_another_order_of_labels(tiny_model, tiny_teacher, altered):
    teacher = altered(id2label={"0": "yes", "1": "no"}, label2id={"yes": 0, "no": 1})
    held = LitStudent(str(tiny_model), teacher=teacher, labels=["no", "yes"]).teacher.model
    expected = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).classifier.weight
    assert torch.equal(held.classifier.weight, expected.flip(0))
    assert held.config.id2label == {0: "no", 1: "yes"}


def test_a_teacher_without_label_names_is_taken_at_its_word(tiny_model, altered):
    teacher = altered(id2label={"0": "LABEL_0", "1": "LABEL_1"}, label2id={"LABEL_0": 0, "LABEL_1": 1})
    assert LitStudent(str(tiny_model), teacher=teacher, labels=["no", "yes"]).teacher is not None


def test_a_teacher_with_another_vocabulary(tiny_model, tiny_teacher, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path)
    message = error_of(str(tiny_model), teacher=str(tmp_path), labels=["0", "1"])
    assert message.startswith("model.teacher: ")
    assert "vocabulary of 100" in message
    assert "same tokenizer" in message


def padded(source, folder, rows, auto=AutoModelForSequenceClassification):
    """A copy with another number of word embeddings, and its tokenizer."""
    model = auto.from_pretrained(source)
    model.resize_token_embeddings(rows)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def test_a_table_of_words_that_was_filled_up_is_no_other_vocabulary(tiny_model, tiny_teacher, tmp_path, batch):
    larger = padded(tiny_teacher, tmp_path / "larger", 128)
    smaller = padded(tiny_teacher, tmp_path / "smaller", 20)
    found = [
        LitStudent(pretrained, teacher=teacher, labels=["0", "1"]).eval().losses(batch)["kd"]
        for pretrained, teacher in ((str(tiny_teacher), larger), (larger, str(tiny_teacher)))
    ]
    assert max(loss.abs() for loss in found) < 1e-6
    message = error_of(str(tiny_model), teacher=smaller, labels=["0", "1"])
    assert "has 20 word embeddings" in message


def test_words_beyond_the_tokenizer_are_not_imitated(tiny_model, tmp_path):
    datamodule = tasks.data("masked_lm", tmp_path, tiny_model)
    datamodule.setup("fit")
    words = next(iter(datamodule.train_dataloader()))
    AutoModelForMaskedLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "teacher")
    larger = padded(tmp_path / "teacher", tmp_path / "larger", 128, AutoModelForMaskedLM)
    for tokens in ("all", "attended"):
        losses = []
        for teacher in (str(tmp_path / "teacher"), larger):
            torch.manual_seed(1)
            terms = {"kd": LogitDistillation(tokens=tokens)}
            student = LitStudent(str(tiny_model), teacher=teacher, distillation=terms, task="masked_lm").eval()
            losses.append(student.losses(words)["kd"])
        torch.testing.assert_close(*losses)


def test_distillation_without_a_teacher(tiny_model):
    message = error_of(str(tiny_model), distillation={"kd": LogitDistillation()}, labels=["0", "1"])
    assert message.startswith("model.distillation: ['kd']")
    assert "model.teacher" in message


@pytest.mark.parametrize("name", ["loss", "task", "a.b", "train"])
def test_a_name_that_is_taken_or_none(tiny_teacher, name):
    terms = {name: LogitDistillation()}
    message = error_of(str(tiny_teacher), teacher=str(tiny_teacher), distillation=terms, labels=["0", "1"])
    assert message.startswith("model.distillation: ")
    assert repr(name) in message


def test_the_recipe_of_obert(tiny_teacher, batch):
    """Hardness 1 and temperature 5.5: a copy of the teacher has nothing to learn, whatever the labels say."""
    module = LitStudent(
        str(tiny_teacher),
        teacher=str(tiny_teacher),
        distillation={"kd": LogitDistillation(1.0, temperature=5.5)},
        labels=["0", "1"],
        optimization=Optimization(learning_rate=1e-3),
    ).eval()
    module.losses(batch)["loss"].backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in module.student.parameters())


@pytest.fixture
def second_teacher(tmp_path, tiny_teacher):
    """A teacher that answers otherwise."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([3.0, -3.0]))
    model.save_pretrained(tmp_path / "second")
    return str(tmp_path / "second")


def both(tiny_teacher, second_teacher, **terms):
    sources = {"first": str(tiny_teacher), "second": second_teacher}
    return LitStudent(str(tiny_teacher), teachers=sources, distillation=terms or None, labels=["0", "1"]).eval()


def test_each_term_uses_its_teacher(tiny_teacher, second_teacher, batch):
    terms = {name: LogitDistillation(0.3, teacher=name) for name in ("first", "second")}
    parts = both(tiny_teacher, second_teacher, **terms, all=LogitDistillation(0.3)).losses(batch)
    assert parts["first"].item() == pytest.approx(0, abs=1e-6)
    assert parts["second"] > parts["all"] > 0.01
    expected = 0.1 * parts["task"] + 0.3 * (parts["second"] + parts["all"])
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_hidden_states_of_several_teachers_are_averaged(tiny_teacher, second_teacher, batch):
    parts = both(tiny_teacher, second_teacher, hidden=HiddenDistillation()).losses(batch)
    assert parts["hidden"].item() == pytest.approx(0, abs=1e-10)  # only the heads of the two differ


def test_several_teachers_are_in_no_state(tiny_teacher, second_teacher):
    module, alone = both(tiny_teacher, second_teacher), student(tiny_teacher)
    assert module.state_dict().keys() == alone.state_dict().keys()
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in alone.named_parameters()]
    assert module.teacher is None
    assert {type(term) for term in module.distillation.values()} == {LogitDistillation}


def test_one_of_several_teachers_does_not_fit(tiny_teacher, altered):
    odd = altered(id2label={"0": "yes", "1": "no"}, label2id={"yes": 0, "no": 1})
    sources = {"good": str(tiny_teacher), "odd": odd}
    message = error_of(str(tiny_teacher), teachers=sources, labels=["0", "1"])
    assert message.startswith("model.teachers.odd: ")
    missing = error_of(str(tiny_teacher), teachers={"gone": "/no/such/folder"}, labels=["0", "1"])
    assert missing.startswith("model.teachers.gone: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"teacher": "x"}, ["model.teachers", "model.teacher, too"]),
        ({"distillation": {"kd": LogitDistillation(teacher="third")}}, ["kd", "'third'", "['first', 'second']"]),
        ({"distillation": {"kd": LogitDistillation(teacher="first")}}, ["model.teachers.second", "uses it"]),
    ],
)
def test_teachers_that_nobody_could_hear(tiny_teacher, second_teacher, arguments, words):
    sources = {"first": str(tiny_teacher), "second": second_teacher}
    message = error_of(str(tiny_teacher), teachers=sources, labels=["0", "1"], **arguments)
    assert [word for word in words if word not in message] == []


def test_a_teacher_whose_vocabulary_has_another_order(tiny_model, altered):
    folder = Path(altered())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    tokens = vocabulary["model"]["vocab"]
    tokens["good"], tokens["bad"] = tokens["bad"], tokens["good"]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    message = error_of(str(tiny_model), teacher=str(folder), labels=["0", "1"])
    assert message.startswith("model.teacher: ")
    assert "another vocabulary" in message
    assert "'good'" in message or "'bad'" in message
    for file in folder.glob("*tokenizer*"):
        file.unlink()  # a teacher need not bring a tokenizer
    assert LitStudent(str(tiny_model), teacher=str(folder), labels=["0", "1"]).teacher is not None
