"""Early stopping and best checkpoints count from the end of the last strategy on."""

import logging

import pytest
import torch
from contracts.training import STEPS, data, fit, student
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_compress.strategies import FreezeEmbeddings, MagnitudePruning, QuantAwareTraining
from lit_compress.strategies.after_compression import after_compression, compression_end

# Twice in each of the two epochs of four steps.
VALIDATED = {"val_check_interval": 2}


def stopping(**options) -> EarlyStopping:
    """Stops at the second look, whatever the metric."""
    return EarlyStopping("val/loss", patience=1, min_delta=1e9, **options)


def test_stopping_waits_for_the_last_strategy(tiny_teacher, tiny_data, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = fit(
            student(tiny_teacher),
            data(tiny_data, tiny_teacher),
            [MagnitudePruning(end="50%", every="1 steps"), after_compression(stopping())],
            tmp_path,
            **VALIDATED,
        )
    # It looks at steps 4 and 6 only.
    assert (compression_end(run), run.global_step) == (4, 6)
    assert f"counts from step 4 of {STEPS} on" in caplog.text


def test_without_a_strategy_that_takes_its_time_it_stops_as_ever(tiny_teacher, tiny_data, tmp_path, caplog):
    run = fit(
        student(tiny_teacher),
        data(tiny_data, tiny_teacher),
        [FreezeEmbeddings(), after_compression(stopping(check_on_train_epoch_end=False))],
        tmp_path,
        **VALIDATED,
    )
    assert run.global_step == 4
    assert "counts from" not in caplog.text


def test_the_best_checkpoint_is_one_of_the_compressed_model(tiny_teacher, tiny_data, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", "{step}", monitor="val/loss", mode="max", save_last=True)
    after_compression(best)
    # With a falling loss the first validation is the best of all.
    run = fit(
        student(tiny_teacher),
        data(tiny_data, tiny_teacher),
        [MagnitudePruning(end="25%"), QuantAwareTraining(start="4 steps", freeze_observers=None), best],
        tmp_path,
        **VALIDATED,
    )
    assert compression_end(run) == 5
    names = {path.name for path in (tmp_path / "best").iterdir()}
    assert names in ({"step=6.ckpt", "last.ckpt"}, {"step=8.ckpt", "last.ckpt"})
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["lit_compress"]["unfinished"] == []


@pytest.mark.parametrize("callback", [stopping(), ModelCheckpoint(monitor="val/loss")])
def test_the_state_has_the_name_of_the_stock_callback(callback):
    before = callback.state_key
    assert after_compression(callback).state_key == before
    assert type(callback).__name__.endswith("AfterCompression")


def test_others_are_left_alone():
    class Own(EarlyStopping):
        pass

    for callback in (ModelCheckpoint(every_n_train_steps=3), Own("val/loss")):
        kind = type(callback)
        assert type(after_compression(callback)) is kind
