import pytest
import torch

from lit_compress.functional.movement import masked_by_scores, score_penalty, threshold_mask


def test_masked_weight_is_exact():
    weight, mask = torch.randn(50, 40), torch.rand(50, 40) > 0.3
    scores = torch.randn(50, 40) * 1e6
    assert torch.equal(masked_by_scores(weight, mask, scores), weight * mask)


def test_scores_add_up_what_the_paper_says():
    # S = -rate * sum over steps of dL/dW' * W, with plain gradient descent.
    weight, scores = torch.randn(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    expected, mask = torch.zeros(3, 4), torch.rand(3, 4) > 0.5
    for _ in range(5):
        x, masked = torch.randn(6, 4), masked_by_scores(weight, mask, scores)
        masked.retain_grad()
        (x @ masked.T).square().mean().backward()
        expected -= 0.1 * masked.grad * weight.detach()
        assert torch.equal(weight.grad, masked.grad * mask)
        with torch.no_grad():
            for tensor in (weight, scores):
                tensor -= 0.1 * tensor.grad
                tensor.grad = None
    torch.testing.assert_close(scores.detach(), expected)


def test_threshold_is_on_the_sigmoid():
    scores = torch.linspace(-3, 3, 1000)
    assert torch.equal(threshold_mask(scores, 0.25), scores.sigmoid() > 0.25)
    assert threshold_mask(scores - 50, 0.0).all()


@pytest.mark.parametrize("shape", [(10, 10), (40, 50)])
def test_the_highest_scores_stay_whatever_the_threshold(shape):
    scores = torch.randn(shape) - 50
    mask = threshold_mask(scores, 0.5)
    assert int(mask.sum()) == int(0.005 * scores.numel()) + 1
    assert scores[mask].min() >= scores[~mask].max()


def test_penalty_pulls_every_score_down():
    scores = torch.randn(4, 5, requires_grad=True)
    penalty = score_penalty(scores)
    penalty.backward()
    assert penalty.item() == pytest.approx(scores.detach().sigmoid().abs().sum().item() / 20)
    assert (scores.grad > 0).all()
