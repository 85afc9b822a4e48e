import pytest
import torch
from datasets import Dataset
from torch import nn

from lit_compress.data.logit_cache import LogitStore, model_digest, rows_digest
from lit_compress.errors import UserError


@pytest.fixture
def make(tmp_path):
    def create(*shape, names=("logits",), dtype="float32"):
        LogitStore.create(tmp_path / "store", shape, names, dtype, {"teacher": "x"})
        return LogitStore(tmp_path / "store", writable=True)

    return create


def finished(store):
    store.finish()
    assert LogitStore.find_damage(store.folder) is None
    return LogitStore(store.folder)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.0), ("float16", 2e-3)])
def test_sentence_logits_come_back_in_any_order(make, dtype, error):
    logits, store = torch.randn(5, 3), make(5, 3, dtype=dtype)
    store.write([3, 0], logits[[3, 0]], [4, 4])
    store.write([4, 2, 1], logits[[4, 2, 1]], [4, 4, 4])
    answer = finished(store).read(torch.tensor([2, 4, 2]), tokens=9)
    assert answer.logits.dtype == torch.float32
    assert (answer.logits - logits[[2, 4, 2]]).abs().max() <= error


def test_token_logits_are_cut_and_filled_to_the_batch(make):
    logits, store = torch.randn(2, 4, 3), make(2, 4, 3)
    assert store.per_token
    store.write([1, 0], logits[[1, 0]], [4, 2])
    store = finished(store)
    assert torch.equal(store.read(torch.tensor([1]), tokens=4).logits, logits[1:])
    assert torch.equal(store.read(torch.tensor([0]), tokens=2).logits, logits[:1, :2])
    wide = store.read(torch.tensor([0, 1]), tokens=6).logits
    assert wide.shape == (2, 6, 3)
    assert torch.equal(wide[0, :2], logits[0, :2])
    assert not wide[0, 2:].any()
    assert torch.equal(wide[1, :4], logits[1])


def test_heads_share_a_file(make):
    logits, store = torch.randn(2, 4, 2), make(2, 4, 2, names=("start_logits", "end_logits"))
    store.write([0, 1], logits, [4, 4])
    answer = finished(store).read(torch.tensor([1, 0]), tokens=4)
    assert torch.equal(answer.start_logits, logits[[1, 0], :, 0])
    assert torch.equal(answer.end_logits, logits[[1, 0], :, 1])
    assert not hasattr(answer, "logits")


def test_a_finished_store_is_read_only(make):
    store = make(1, 2)
    store.write([0], torch.zeros(1, 2), [3])
    with pytest.raises(ValueError, match="read-only"):
        finished(store).array[0] = 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_logit_that_is_no_number_of_the_file(make, dtype):
    store = make(2, 2, dtype=dtype)
    value = 1e6 if dtype == "float16" else torch.nan
    with pytest.raises(UserError, match=f"example 1 is not a finite {dtype}") as caught:
        store.write([0, 1], torch.tensor([[0.0, 0.0], [0.0, value]]), [3, 3])
    assert "\n" not in str(caught.value)


def test_damage_is_seen(make):
    store = make(2, 2)
    store.write([0, 1], torch.randn(2, 2), [3, 3])
    folder = finished(store).folder
    whole = (folder / "logits.npy").read_bytes()
    for broken in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"no array"):
        (folder / "logits.npy").write_bytes(broken)
        assert LogitStore.find_damage(folder)
    (folder / "logits.npy").write_bytes(whole)
    assert LogitStore.find_damage(folder) is None
    (folder / "about.json").write_text("{")
    assert LogitStore.find_damage(folder)
    (folder / "about.json").unlink()
    assert LogitStore.find_damage(folder)


def test_an_unfinished_store_is_damaged(make):
    assert LogitStore.find_damage(make(2, 2).folder)


def rows(ids, **columns):
    masks = [[1] * len(row) for row in ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "length": [len(r) for r in ids]} | columns)


def test_digest_of_rows_is_what_a_model_reads():
    first = rows_digest(rows([[1, 2], [3]], labels=[0, 1], index=[0, 1]))
    assert rows_digest(rows([[1, 2], [3]], labels=[1, 1])) == first
    others = [[[1], [2, 3]], [[3], [1, 2]], [[1, 2], [4]], [[1, 2]], [[1, 2, 3]], [[1, 2], [3], []]]
    digests = {rows_digest(rows(ids)) for ids in others}
    assert len(digests) == len(others)
    assert first not in digests
    # A view of a larger table is digested as what it shows.
    assert rows_digest(rows([[9], [1, 2], [3]]).select([1, 2])) == first


def test_digest_of_a_model_is_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = model_digest(model)
    assert model_digest(model) == first
    assert model_digest(model.half()) != first
    model.float()
    with torch.no_grad():
        model[0].bias.copy_(torch.nextafter(model[0].bias, torch.tensor(9.0)))
    assert model_digest(model) != first
