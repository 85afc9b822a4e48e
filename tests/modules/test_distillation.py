import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lit_compress.errors import UserError
from lit_compress.modules import Distillation, HiddenDistillation, LitStudent, LogitDistillation
from lit_compress.tasks import Batch


def output(logits=None, hidden_states=None):
    return SimpleNamespace(logits=logits, hidden_states=hidden_states)


def hidden(*levels, shape=(2, 3, 4)):
    """One constant tensor per level: their mean squared differences are known."""
    return tuple(torch.full(shape, float(level)) for level in levels)


ALL = Batch({"attention_mask": torch.ones(2, 3, dtype=torch.long)}, {}, {})


class Constant(Distillation):
    """A term of known value."""

    def __init__(self, value, weight, hardness=0.0):
        super().__init__()
        self.value, self.weight, self.hardness = value, weight, hardness

    def forward(self, student, teacher, batch):
        return torch.tensor(self.value)


@pytest.fixture
def make(tiny_teacher):
    def student(**terms):
        torch.manual_seed(0)
        return LitStudent(str(tiny_teacher), teacher=str(tiny_teacher), distillation=terms, labels=["0", "1"]).eval()

    return student


@pytest.fixture
def batch():
    ids = torch.randint(5, 40, (4, 6))
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {"labels": torch.tensor([0, 1, 1, 0])}, {})


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
def test_sentence_logits_by_hand(temperature):
    student, teacher = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    expected = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(t / temperature) for t in t_row]
        q = [math.exp(s / temperature) for s in s_row]
        pairs = [(a / sum(p), b / sum(q)) for a, b in zip(p, q, strict=True)]
        expected += temperature**2 * sum(a * math.log(a / b) for a, b in pairs) / 2
    term = LogitDistillation(hardness=0.5, temperature=temperature)
    assert term(output(student), output(teacher), {}).item() == pytest.approx(expected, rel=1e-5)


def test_token_logits_leave_padding_out():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows = (F.softmax(teacher, -1) * (F.log_softmax(teacher, -1) - F.log_softmax(student, -1))).sum(-1)
    expected = rows[mask.bool()].mean().item()
    term, batch = LogitDistillation(1.0, temperature=1.0), Batch({"attention_mask": mask}, {}, {})
    assert term(output(student), output(teacher), batch).item() == pytest.approx(expected, rel=1e-5)
    student[~mask.bool()] = 100.0
    assert term(output(student), output(teacher), batch).item() == pytest.approx(expected, rel=1e-5)


def test_one_output_is_a_squared_error():
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [5.0]])
    # Whatever the temperature: there is no distribution to soften.
    assert LogitDistillation(temperature=7.0)(output(student), output(teacher), {}).item() == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "expected"),
    [
        ("uniform", (0, 1, 2), (0, 1, 2), 0.0),
        ("uniform", (0, 1, 2), (3, 3, 3), (9 + 4 + 1) / 3),
        # Two layers spread over four: 0-0, 1-2, 2-4.
        ("uniform", (0, 0, 0), (1, 9, 2, 9, 3), (1 + 4 + 9) / 3),
        ("uniform", (0, 0), (1, 9, 9, 2), (1 + 4) / 2),
        ({1: 0}, (9, 2, 9), (0, 9, 9), 4.0),
        ({0: 2, 2: 1}, (1, 9, 4), (9, 2, 3), (4 + 4) / 2),
        ({-1: -1}, (9, 9, 1), (9, 9, 4), 9.0),
    ],
)
def test_layer_map(layer_map, student, teacher, expected):
    term = HiddenDistillation(layer_map=layer_map)
    got = term(output(hidden_states=hidden(*student)), output(hidden_states=hidden(*teacher)), ALL)
    assert got.item() == pytest.approx(expected)


def test_hidden_states_leave_padding_out():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    student, teacher = hidden(0), hidden(2)
    student[0][~mask.bool()] = 1e6
    got = HiddenDistillation()(
        output(hidden_states=(*student, *hidden(1))),
        output(hidden_states=(*teacher, *hidden(2))),
        Batch({"attention_mask": mask}, {}, {}),
    )
    assert got.item() == pytest.approx((4 + 1) / 2)


@pytest.mark.parametrize(
    ("layer_map", "who", "index"),
    [({3: 0}, "student", "3"), ({0: 5}, "teacher", "5"), ({-4: 0}, "student", "-4"), ({0: -6}, "teacher", "-6")],
)
def test_a_layer_that_does_not_exist(layer_map, who, index):
    with pytest.raises(UserError) as caught:
        HiddenDistillation(layer_map=layer_map)(
            output(hidden_states=hidden(0, 0, 0)), output(hidden_states=hidden(0, 0, 0, 0, 0)), ALL
        )
    assert f"{who} has no hidden state {index};" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_widths_are_a_one_line_error():
    wide = output(hidden_states=hidden(0, 0, shape=(2, 3, 8)))
    with pytest.raises(UserError) as caught:
        HiddenDistillation()(output(hidden_states=hidden(0, 0)), wide, ALL)
    assert [word for word in ("4", "8") if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hardness", [0.0, 0.25, 1.0])
def test_hardness_replaces_its_share_of_the_task(make, batch, hardness):
    module = make(kd=LogitDistillation(hardness, temperature=3.0))
    with torch.no_grad():
        module.student.classifier.weight.add_(0.5 * torch.randn(module.student.classifier.weight.shape))
    parts = module.losses(batch)
    assert parts["kd"] > 0
    assert parts["loss"].item() == pytest.approx(((1 - hardness) * parts["task"] + hardness * parts["kd"]).item())


@pytest.mark.parametrize(("hardness", "labels_matter"), [(1.0, False), (0.5, True)])
def test_full_hardness_gives_labels_no_gradient(make, batch, hardness, labels_matter):
    module = make(kd=LogitDistillation(hardness))
    gradients = []
    for labels in (batch.targets["labels"], 1 - batch.targets["labels"]):
        module.zero_grad()
        module.losses(batch._replace(targets={"labels": labels}))["loss"].backward()
        gradients.append(module.student.classifier.weight.grad.clone())
    assert torch.equal(*gradients) == (not labels_matter)


def test_several_terms_add_with_their_weights(make, batch):
    terms = {"first": Constant(2.0, weight=3.0), "second": Constant(5.0, weight=0.1, hardness=0.4)}
    parts = make(**terms).losses(batch)
    assert parts.keys() == {"task", "first", "second", "loss"}
    assert parts["loss"].item() == pytest.approx(0.6 * parts["task"].item() + 6 + 0.5)


def test_a_weight_multiplies_the_hidden_term(make, batch):
    light, heavy = make(hidden=HiddenDistillation(1.0)), make(hidden=HiddenDistillation(10.0))
    for module in (light, heavy):
        with torch.no_grad():
            module.student.bert.encoder.layer[0].output.dense.bias.add_(1)
    light, heavy = light.losses(batch), heavy.losses(batch)
    assert light["hidden"] > 0
    assert (heavy["loss"] - heavy["task"]).item() == pytest.approx(10 * (light["loss"] - light["task"]).item())


def test_more_hardness_than_there_is(make):
    with pytest.raises(UserError, match=r"model\.distillation.* 1\.2") as caught:
        make(first=LogitDistillation(0.7), second=LogitDistillation(0.5))
    assert "\n" not in str(caught.value)


# The second sum is 1.0000000000000002 in floating point.
@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.2), (0.33, 0.56, 0.11)])
def test_shares_that_add_up_to_one_are_no_more_than_one(make, batch, shares):
    terms = {str(i): LogitDistillation(share) for i, share in enumerate(shares)}
    assert make(**terms).losses(batch)["loss"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hardness": 1.5}, ["hardness", "1.5", "[0, 1]"]),
        ({"hardness": -0.1}, ["hardness", "-0.1"]),
        ({"temperature": 0.0}, ["temperature", "0.0"]),
        ({"temperature": -2.0}, ["temperature", "-2.0"]),
        ({"loss": "mse"}, ["loss", "'mse'", "kl, soft_cross_entropy"]),
        ({"tokens": "some"}, ["tokens", "'some'", "all, attended, masked"]),
    ],
)
def test_wrong_values_are_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        LogitDistillation(**arguments)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_every_term_takes_a_weight():
    class Plain(Distillation):
        pass

    class Halved(Distillation):
        weight = 0.5

    assert (Plain().weight, Plain(weight=3.0).weight) == (1.0, 3.0)
    assert (Halved().weight, Halved(0.0).weight) == (0.5, 0.0)


def test_a_term_without_forward_says_its_name():
    class Unfinished(Distillation):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished"):
        Unfinished()(output(), output(), {})


MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def kl_rows(student, teacher, temperature=1.0):
    """T^2 KL(p_T || p_S) of each row."""
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 5.5])
@pytest.mark.parametrize(
    ("tokens", "counted"),
    [
        (None, [[1, 1, 0], [1, 0, 0]]),
        ("attended", [[1, 1, 0], [1, 0, 0]]),
        ("all", [[1, 1, 1], [1, 1, 1]]),
        ("masked", [[0, 1, 0], [1, 0, 0]]),
    ],
)
def test_token_logits_by_hand(tokens, counted, temperature):
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    batch = Batch({"attention_mask": MASK}, {"labels": torch.tensor([[-100, 4, -100], [2, -100, -100]])}, {})
    expected = kl_rows(student, teacher, temperature)[torch.tensor(counted).bool()].mean()
    term = LogitDistillation(1.0, temperature, tokens=tokens)
    assert torch.isclose(term(output(student), output(teacher), batch), expected, rtol=1e-4)


def test_answers_average_start_and_end():
    student, teacher = (SimpleNamespace(start_logits=torch.randn(2, 3), end_logits=torch.randn(2, 3)) for _ in range(2))
    heads = ("start_logits", "end_logits")
    whole = [kl_rows(getattr(student, name), getattr(teacher, name), 2.0).mean() for name in heads]
    term = LogitDistillation(1.0, temperature=2.0, tokens="all")
    assert torch.isclose(term(student, teacher, Batch({"attention_mask": MASK}, {}, {})), sum(whole) / 2, rtol=1e-4)
    # Padding is not a candidate: distributions over the first two positions, and over the first.
    cut = [(kl_rows(getattr(student, name)[0, :2], getattr(teacher, name)[0, :2], 2.0) + 0.0) / 2 for name in heads]
    term = LogitDistillation(1.0, temperature=2.0)
    assert torch.isclose(term(student, teacher, Batch({"attention_mask": MASK}, {}, {})), sum(cut) / 2, rtol=1e-4)


def test_a_pretraining_model_adds_tokens_and_sentences():
    student, teacher = (
        SimpleNamespace(prediction_logits=torch.randn(2, 3, 7), seq_relationship_logits=torch.randn(2, 2))
        for _ in range(2)
    )
    tokens = kl_rows(student.prediction_logits, teacher.prediction_logits)[MASK.bool()].mean()
    sentences = kl_rows(student.seq_relationship_logits, teacher.seq_relationship_logits).mean()
    for choice in (None, "attended"):
        term = LogitDistillation(1.0, temperature=1.0, tokens=choice)
        assert torch.isclose(
            term(student, teacher, Batch({"attention_mask": MASK}, {}, {})), tokens + sentences, rtol=1e-4
        )


def test_rosita_s_prediction_loss():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    expected = -(teacher.softmax(-1) * student.log_softmax(-1)).mean()
    term = LogitDistillation(1.0, temperature=1.0, loss="soft_cross_entropy")
    assert torch.isclose(term(output(student), output(teacher), {}), expected)


@pytest.mark.parametrize("tokens", ["all", "attended", "masked"])
def test_tokens_have_no_effect_on_one_answer_per_text(tokens):
    with pytest.raises(UserError, match="no effect") as caught:
        LogitDistillation(tokens=tokens)(output(torch.randn(2, 3)), output(torch.randn(2, 3)), {})
    assert repr(tokens) in str(caught.value)


def test_answers_have_no_label_per_token():
    answer = SimpleNamespace(start_logits=torch.randn(2, 3), end_logits=torch.randn(2, 3))
    with pytest.raises(UserError, match="'masked' needs a label per token"):
        LogitDistillation(tokens="masked")(answer, answer, Batch({"attention_mask": MASK}, {}, {}))


def test_an_output_without_logits_is_a_one_line_error():
    with pytest.raises(UserError, match="no logits"):
        LogitDistillation()(SimpleNamespace(last_hidden_state=torch.randn(2, 3)), output(), {})


def test_several_teachers_are_the_mean_of_their_softened_distributions():
    student, teachers = torch.randn(4, 3), [5 * torch.randn(4, 3) for _ in range(3)]
    mean = torch.stack([(teacher / 2).softmax(-1) for teacher in teachers]).mean(0)
    expected = 4 * (mean * (mean / (student / 2).softmax(-1)).log()).sum(-1).mean()
    got = LogitDistillation(1.0, temperature=2.0).average(output(student), [output(t) for t in teachers], {})
    assert torch.isclose(got, expected, rtol=1e-4)


def test_several_teachers_of_a_regression_are_the_mean_of_their_values():
    student, teachers = torch.tensor([[1.0]]), [torch.tensor([[2.0]]), torch.tensor([[4.0]])]
    assert LogitDistillation().average(output(student), [output(t) for t in teachers], {}).item() == 4.0


def test_other_terms_are_the_mean_over_teachers(batch):
    term = Constant(2.0, weight=1.0)
    term.forward = lambda student, teacher, batch: torch.tensor(teacher)
    assert term.average(None, [1.0, 2.0, 6.0], batch).item() == 3.0


def test_only_the_rows_that_count_are_computed():
    """With a vocabulary of classes, the rows that are left out are most of the memory."""
    student, teacher = torch.randn(2, 8, 1000, requires_grad=True), torch.randn(2, 8, 1000)
    labels = torch.full((2, 8), -100)
    labels[0, 3] = 7
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        LogitDistillation(1.0, tokens="masked")(output(student), output(teacher), Batch({}, {"labels": labels}, {}))
    assert max(saved) <= 1000


def test_answers_in_half_precision():
    batch = Batch({"attention_mask": torch.tensor([[1, 1, 0]])}, {}, {})
    ours, theirs = ({name: torch.randn(1, 3) for name in ("start_logits", "end_logits")} for _ in range(2))
    term = LogitDistillation()
    expected = term(SimpleNamespace(**ours), SimpleNamespace(**theirs), batch)
    halves = ({name: logits.half() for name, logits in each.items()} for each in (ours, theirs))
    found = term(*(SimpleNamespace(**each) for each in halves), batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)


def test_a_regression_in_half_precision_has_no_largest_error():
    ours, theirs = (SimpleNamespace(logits=torch.tensor([[value]]).half()) for value in (300.0, 0.0))
    assert LogitDistillation()(ours, theirs, Batch({}, {}, {})).item() == 90_000
