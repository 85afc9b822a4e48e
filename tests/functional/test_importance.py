import torch

from lit_compress.functional import magnitude


def test_magnitude_ignores_the_sign():
    weight = torch.tensor([[-2.0, 0.5], [0.0, -0.25]])
    assert magnitude(weight).tolist() == [[2.0, 0.5], [0.0, 0.25]]


def test_magnitude_is_no_part_of_the_graph_and_leaves_the_weight_alone():
    weight = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
    scores = magnitude(weight)
    scores.zero_()
    assert not scores.requires_grad
    assert weight.tolist() == [-1.0, 2.0]
