"""What an exception in a batch leaves: the resumed run does that batch, and has the gradient of those before it."""

import pytest
from contracts import tasks
from contracts.training import ACCUMULATED, data, differences, fit, student
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_compress.export import load_checkpoint


class Failed(Exception):
    pass


@pytest.fixture
def make(tiny_model, tiny_teacher, tiny_data, tmp_path):
    """Module and data of a fit on a file, or on a stream."""

    def build(kind):
        if kind == "file":
            return student(tiny_teacher), data(tiny_data, tiny_teacher, batch_size=8)
        stream = tasks.data("masked_lm", tmp_path, tiny_model, streaming=True)
        return tasks.student("masked_lm", tiny_model, stream), stream

    return build


@pytest.mark.parametrize(
    ("kind", "batch"),
    # The second of two batches, the first, and the last of an epoch.
    [("file", 5), ("file", 6), ("file", 7), ("stream", 3), ("stream", 4)],
)
def test_a_checkpoint_of_an_exception_continues_exactly(kind, batch, make, tmp_path):
    options = ACCUMULATED | ({"max_steps": 7, "max_epochs": None} if kind == "stream" else {})
    whole = fit(*make(kind), [], tmp_path / "whole", **options)
    module, datamodule = make(kind)
    losses = module.losses

    def fail(inputs):
        if module.trainer.fit_loop.total_batch_idx == batch:
            raise Failed
        return losses(inputs)

    module.losses = fail
    saver = ModelCheckpoint(tmp_path, "failed", every_n_train_steps=1000, save_on_exception=True, mode="max")
    with pytest.raises(Failed):
        fit(module, datamodule, [saver], tmp_path / "killed", **options)
    fit(*make(kind), [], tmp_path / "resumed", ckpt_path=tmp_path / "failed.ckpt", **options)
    name = f"step={whole.global_step}.ckpt"
    expected, got = (load_checkpoint(tmp_path / run / name) for run in ("whole", "resumed"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(expected[part], got[part]) == []
