import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.errors import UserError
from lit_compress.ops.padding import find_sequences, pad, unpad

CPU = torch.device("cpu")
masks = st.integers(1, 4).flatmap(
    lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=4)
)


@given(masks)
def test_every_mask_is_undone(rows):
    mask = torch.tensor(rows)
    hidden = torch.randn(*mask.shape, 3)
    found = find_sequences(mask, *mask.shape, CPU)
    flat = unpad(hidden, found)
    assert torch.equal(flat, hidden[mask])  # in order, and nothing else
    assert torch.equal(pad(flat, found), hidden * mask.unsqueeze(-1))
    assert found.starts.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert found.starts.dtype == torch.int32
    assert found.longest == int(mask.sum(1).max())


@pytest.mark.parametrize("mask", [None, torch.ones(2, 5), torch.ones(2, 5, dtype=torch.long)])
def test_nothing_moves_without_padding(mask):
    found = find_sequences(mask, 2, 5, CPU)
    hidden = torch.randn(2, 5, 3)
    assert found.order is None
    assert unpad(hidden, found).data_ptr() == hidden.data_ptr()
    assert torch.equal(pad(unpad(hidden, found), found), hidden)
    assert found.starts.tolist() == [0, 5, 10]
    assert found.longest == 5


@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (2, 5, 5), (2, 4), (5,)])
def test_other_masks_are_refused(shape):
    with pytest.raises(UserError, match=r"attention_mask: shape .*takes \(2, 5\), or none.*unfuse"):
        find_sequences(torch.ones(shape), 2, 5, CPU)


def test_a_compiled_graph_keeps_every_place():
    mask = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]])

    def whole(mask, hidden):
        found = find_sequences(mask, 3, 3, hidden.device)
        rows = unpad(hidden, found)
        # What stands behind the last real token may be anything.
        real = torch.arange(9) < found.starts[-1]
        return rows, pad(torch.where(real.unsqueeze(1), rows, float("nan")), found), found.starts

    hidden = torch.randn(3, 3, 4)
    rows, padded, starts = torch.compile(whole, fullgraph=True, backend="eager")(mask, hidden)
    assert torch.equal(rows[:3], hidden[mask.bool()])
    assert not rows[3:].any()
    assert rows.shape == (9, 4)
    assert torch.equal(padded, hidden * mask.unsqueeze(-1))
    assert starts.tolist() == [0, 2, 3, 3]


@pytest.mark.parametrize(("budget", "fits"), [(3, True), (4, True), (100, True), (2, False)])
def test_a_graph_of_fewer_rows(budget, fits):
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])

    def whole(mask, hidden):
        found = find_sequences(mask, 2, 3, hidden.device, budget)
        return unpad(hidden, found), pad(unpad(hidden, found), found), found.starts

    hidden = torch.randn(2, 3, 4)
    rows, padded, starts = torch.compile(whole, fullgraph=True, backend="eager")(mask, hidden)
    assert rows.shape == (min(budget, 6), 4)
    assert starts.max() <= budget  # nothing outside is ever read
    assert torch.equal(padded, hidden * mask.unsqueeze(-1)) if fits else padded.isnan().all()
