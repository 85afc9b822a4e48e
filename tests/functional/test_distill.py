import math
from functools import partial

import pytest
import torch

from lit_compress.functional import (
    attention_kl,
    attention_mse,
    hidden_mse,
    logit_kl,
    mean_logits,
    relation_kl,
    soft_cross_entropy,
)
from lit_compress.functional.distill import similarity_kl


def kl_by_hand(student, teacher, temperature):
    """KL(p_T || p_S) of one row of logits, in plain Python."""

    def softmax(row):
        weights = [math.exp(z / temperature) for z in row]
        return [w / sum(weights) for w in weights]

    return sum(p * math.log(p / q) for p, q in zip(softmax(teacher), softmax(student), strict=True))


def rows_by_hand(student, teacher, temperature):
    pairs = zip(student.flatten(0, -2).tolist(), teacher.flatten(0, -2).tolist(), strict=True)
    return [kl_by_hand(s, t, temperature) for s, t in pairs]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
@pytest.mark.parametrize("shape", [(1, 2), (4, 3), (2, 5, 7)], ids=str)
def test_logit_kl_is_the_mean_per_row_times_temperature_squared(shape, temperature):
    student, teacher = torch.randn(shape), torch.randn(shape)
    rows = rows_by_hand(student, teacher, temperature)
    expected = temperature**2 * sum(rows) / len(rows)
    assert logit_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_logit_kl_counts_only_tokens_of_the_mask(dtype):
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows = rows_by_hand(student, teacher, 2.0)
    expected = 4 * (rows[0] + rows[1] + rows[3]) / 3
    assert logit_kl(student, teacher, 2.0, mask.to(dtype)).item() == pytest.approx(expected, rel=1e-4)


def test_logit_kl_does_not_depend_on_the_number_of_rows_or_of_unused_classes():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    loss = logit_kl(student, teacher)
    assert logit_kl(student.repeat(5, 1), teacher.repeat(5, 1)).item() == pytest.approx(loss.item(), rel=1e-5)
    padding = torch.full((3, 4), -100.0)
    wider = logit_kl(torch.cat([student, padding], 1), torch.cat([teacher, padding], 1))
    assert wider.item() == pytest.approx(loss.item(), rel=1e-5)


def test_logit_kl_gradient_by_hand():
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    logit_kl(student, teacher, temperature=2.0).backward()
    expected = 2.0 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)) / 3
    assert torch.allclose(student.grad, expected, atol=1e-6)
    assert teacher.grad is None


def test_logit_kl_is_not_symmetric():
    one, other = torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 0.0]])
    assert logit_kl(one, other).item() == pytest.approx(kl_by_hand([0.0, 4.0], [1.0, 0.0], 1.0), rel=1e-5)
    assert logit_kl(other, one).item() == pytest.approx(kl_by_hand([1.0, 0.0], [0.0, 4.0], 1.0), rel=1e-5)


@pytest.mark.parametrize("loss", [logit_kl, hidden_mse])
def test_nothing_to_learn_from_an_equal(loss):
    x = torch.randn(2, 3, 4)
    assert loss(x, x.clone()).item() == 0.0
    # Equal up to a constant are the same distributions.
    assert logit_kl(x, x + 3.0).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", [lambda s, t, m: logit_kl(s, t, 2.0, m), hidden_mse], ids=["logit_kl", "hidden_mse"])
def test_masked_tokens_have_no_say(loss):
    student, teacher = torch.randn(1, 3, 4, requires_grad=True), torch.randn(1, 3, 4, requires_grad=True)
    mask = torch.tensor([[1, 0, 1]])
    changed = teacher.detach().clone()
    changed[0, 1] = 1e3
    assert loss(student, teacher, mask).item() == loss(student, changed, mask).item()
    loss(student, teacher, mask).backward()
    assert student.grad[0, 1].tolist() == [0.0] * 4
    assert student.grad[0, 0].abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [lambda s, t, m: logit_kl(s, t, 1.0, m), hidden_mse], ids=["logit_kl", "hidden_mse"])
def test_a_batch_without_tokens_costs_nothing(loss):
    student = torch.randn(2, 3, 4, requires_grad=True)
    value = loss(student, torch.randn(2, 3, 4), torch.zeros(2, 3))
    value.backward()
    assert value.item() == 0.0
    assert student.grad.abs().sum() == 0


def test_hidden_mse_by_hand():
    student = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[2.0, 2.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 1.0], [0.0, 4.0]], [[2.0, 0.0], [0.0, 0.0]]])
    # Mean squares of the tokens: 2.5, 8, 2 and 81.
    assert hidden_mse(student, teacher).item() == pytest.approx((2.5 + 8 + 2 + 81) / 4)
    assert hidden_mse(student, teacher, torch.tensor([[1, 1], [1, 0]])).item() == pytest.approx((2.5 + 8 + 2) / 3)


def test_half_precision_does_not_make_it_negative():
    logits = torch.randn(64, 5).bfloat16()
    assert logit_kl(logits + 1e-3, logits, temperature=2.0) >= 0
    assert logit_kl(logits, logits, temperature=2.0) == 0


def test_soft_cross_entropy_is_a_mean_over_rows_and_classes():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    expected = -(teacher.softmax(-1) * student.log_softmax(-1)).sum().item() / 12
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    mask = torch.tensor([1, 0, 1])
    expected = -(teacher.softmax(-1) * student.log_softmax(-1))[mask.bool()].sum().item() / 8
    assert soft_cross_entropy(student, teacher, mask=mask).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_cross_entropy_pulls_where_the_divergence_pulls(temperature):
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    (soft,) = torch.autograd.grad(soft_cross_entropy(student, teacher, temperature), student)
    (divergence,) = torch.autograd.grad(logit_kl(student, teacher, temperature), student)
    assert torch.allclose(soft * 4 * temperature**2, divergence, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_mean_logits_are_the_mean_of_softened_distributions(temperature):
    logits = [10 * torch.randn(2, 5) for _ in range(3)]
    expected = torch.stack([(one / temperature).softmax(-1) for one in logits]).mean(0)
    assert torch.allclose((mean_logits(logits, temperature) / temperature).softmax(-1), expected, atol=1e-6)
    assert torch.equal(mean_logits(logits[:1], temperature), logits[0])


def test_normalized_hidden_mse_is_relative_to_the_teacher():
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = hidden_mse(student, teacher, mask) / (teacher[mask.bool()].square().mean() + 1e-6)
    assert torch.isclose(hidden_mse(student, teacher, mask, normalize=True), expected)
    scaled = hidden_mse(100 * student, 100 * teacher, mask, normalize=True)
    assert scaled.item() == pytest.approx(expected.item(), rel=1e-4)
    zeros = torch.zeros(2, 3, 4)
    assert hidden_mse(student, zeros, normalize=True).item() == pytest.approx(student.square().mean().item() * 1e6)


@pytest.fixture
def maps():
    """Attention probabilities of two texts, the second of which ends in two tokens of padding."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    hide = torch.where(mask == 0, -torch.inf, 0.0)[:, None, None, :]
    student, teacher = ((torch.randn(2, 3, 4, 4) + hide).softmax(-1) for _ in range(2))
    return student, teacher, mask


def test_attention_mse_by_hand(maps):
    student, teacher, mask = maps
    pairs = [(student[0] - teacher[0]), (student[1] - teacher[1])[:, :2, :2]]
    expected = sum(pair.square().mean(0).sum() for pair in pairs) / (16 + 4)
    assert torch.isclose(attention_mse(student, teacher, mask), expected)
    assert torch.isclose(attention_mse(student, teacher), (student - teacher).square().mean())


def test_attention_kl_by_hand(maps):
    student, teacher, mask = maps
    total = 0.0
    for text, length in ((0, 4), (1, 2)):
        for head in range(3):
            for query in range(length):
                rows = zip(teacher[text, head, query, :length], student[text, head, query, :length], strict=True)
                total += sum(p * math.log(p / q) for p, q in rows).item()
    assert attention_kl(student, teacher, mask).item() == pytest.approx(total / (3 * (4 + 2)), rel=1e-4)


def test_attention_kl_of_a_probability_of_zero_is_finite():
    student = torch.tensor([[[[0.0, 1.0]]]], requires_grad=True)
    loss = attention_kl(student, torch.tensor([[[[0.5, 0.5]]]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_relations_by_hand():
    student, teacher, heads, mask = torch.randn(2, 4, 6), torch.randn(2, 4, 8), 2, torch.tensor([[1] * 4, [1, 1, 0, 0]])
    total = 0.0
    for text, length in ((0, 4), (1, 2)):
        for head in range(heads):
            both = []
            for vectors in (teacher, student):
                size = vectors.shape[-1] // heads
                part = vectors[text, :length, head * size : (head + 1) * size]
                both.append((part @ part.T / math.sqrt(size)).softmax(-1))
            total += (both[0] * (both[0] / both[1]).log()).sum().item()
    assert relation_kl(student, teacher, heads, mask).item() == pytest.approx(total / (heads * 6), rel=1e-4)


def test_relations_do_not_see_padding():
    student, teacher, mask = torch.randn(1, 3, 4), torch.randn(1, 3, 4), torch.tensor([[1, 1, 0]])
    padded = student.clone()
    padded[0, 2] = 50.0
    alone = relation_kl(student[:, :2], teacher[:, :2], 2)
    assert torch.isclose(relation_kl(student, teacher, 2, mask), alone)
    assert torch.isclose(relation_kl(padded, teacher, 2, mask), alone)
    assert relation_kl(student, student, 2, mask).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "loss", [partial(relation_kl, heads=2), partial(similarity_kl, temperature=0.05)], ids=["relations", "similarities"]
)
def test_mixed_precision_changes_nothing(loss, dtype):
    shape = (4, 6, 8) if loss.func is relation_kl else (6, 8)
    mask = {"mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2] * 2)} if loss.func is relation_kl else {}
    teacher = torch.randn(shape)
    student = (teacher + 0.01 * torch.randn(shape)).requires_grad_()
    expected = loss(student, teacher, **mask)
    with torch.autocast("cpu", dtype):
        found = loss(student, teacher, **mask)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(each, student)[0] for each in (found, expected)))
