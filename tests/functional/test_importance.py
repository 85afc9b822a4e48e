import torch

from lit_compress.functional import head_scores, magnitude, neuron_scores, taylor


def test_magnitude_ignores_the_sign():
    weight = torch.tensor([[-2.0, 0.5], [0.0, -0.25]])
    assert magnitude(weight).tolist() == [[2.0, 0.5], [0.0, 0.25]]


def test_magnitude_is_no_part_of_the_graph_and_leaves_the_weight_alone():
    weight = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
    scores = magnitude(weight)
    scores.zero_()
    assert not scores.requires_grad
    assert weight.tolist() == [-1.0, 2.0]


def test_taylor_ignores_signs_and_is_no_part_of_the_graph():
    weight = torch.nn.Parameter(torch.tensor([[-2.0, 0.5], [0.0, 4.0]]))
    scores = taylor(weight, torch.tensor([[1.0, 2.0], [9.0, 0.25]]))
    assert scores.tolist() == [[2.0, 1.0], [0.0, 1.0]]
    assert not scores.requires_grad


def test_taylor_predicts_what_the_loss_changes_by():
    # On a linear loss the first order is all there is.
    weight, slope = torch.tensor([1.0, -3.0, 0.5]), torch.tensor([2.0, 0.5, -4.0])
    for i, score in enumerate(taylor(weight, slope.abs())):
        without = weight.clone()
        without[i] = 0
        assert float(score) == abs(float(slope @ weight - slope @ without))


def test_a_neuron_is_its_row_and_its_column():
    first, second = torch.rand(5, 3), torch.rand(4, 5)
    for j, score in enumerate(neuron_scores(first, second)):
        assert torch.isclose(score, first[j].sum() + second[:, j].sum())


def test_a_head_is_its_columns_of_the_output_projection():
    output = torch.rand(6, 12)
    scores = head_scores(output, 3)
    assert [torch.isclose(scores[h], output[:, 4 * h : 4 * h + 4].sum()).item() for h in range(3)] == [True] * 3
