import itertools

import pytest
import torch

from lit_compress.functional.spans import best_spans


def brute_force(start, end, allowed, n_best, longest):
    """SQuAD's reference: the best starts with the best ends, one pair after the other."""
    best = (-torch.inf, None)
    starts, ends = (sorted(range(len(row)), key=lambda i: -row[i])[:n_best] for row in (start, end))
    for s, e in itertools.product(starts, ends):
        if allowed[s] and allowed[e] and s <= e < s + longest:
            best = max(best, (start[s] + end[e], (s, e)), key=lambda pair: pair[0])
    return best


@pytest.mark.parametrize(("n_best", "longest"), [(20, 30), (5, 30), (40, 3), (1, 30)])
def test_equals_the_loop(n_best, longest):
    generator = torch.Generator().manual_seed(1)
    start, end = (torch.randn(60, 40, generator=generator) for _ in range(2))
    allowed = torch.rand(60, 40, generator=generator) > 0.4
    score, first, last = best_spans(start, end, allowed, n_best, longest)
    for row in range(60):
        value, span = brute_force(start[row].tolist(), end[row].tolist(), allowed[row].tolist(), n_best, longest)
        assert score[row].item() == pytest.approx(value)
        assert span in (None, (first[row].item(), last[row].item()))


def test_a_row_without_any_span():
    score, *_ = best_spans(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert score.item() == -torch.inf
