"""How long a forward pass takes, models side by side in one run."""

import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from lit_compress.report.timing_rounds import undisturbed_rounds

__all__ = ["latencies"]


@torch.inference_mode()
def latencies(
    models: dict[str, PreTrainedModel], batch_size: int, tokens: int, repetitions: int = 10
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds of each forward pass of each model, eager, on the models' device; and what to say of a busy machine.

    Calls of the models are interleaved, so that whatever else the machine does falls on all of them; one round of
    warm-up is not measured, and disturbed ones do not count. Inputs are full length, no padding.

    Args:
        models: by name.
        batch_size: rows.
        tokens: length of each row.
        repetitions: rounds that count.

    """
    for model in models.values():
        _seconds(model, batch_size, tokens)

    def one_round(number: int, tell: Callable[[], None]) -> list[float]:
        seconds = []
        for model in models.values():
            seconds.append(_seconds(model, batch_size, tokens))
            tell()
        return seconds

    rounds = undisturbed_rounds(f"Measuring latency, batch {batch_size}", len(models), repetitions, one_round)
    times, busy = zip(*rounds.seconds, strict=True), rounds.busy_at(batch_size, tokens)
    return {name: [each * 1e3 for each in seconds] for name, seconds in zip(models, times, strict=True)}, busy


def _seconds(model: PreTrainedModel, batch_size: int, tokens: int) -> float:
    ids = torch.randint(model.config.vocab_size, (batch_size, tokens), device=model.device)
    mask = torch.ones_like(ids)
    _wait(model)
    started = time.perf_counter()
    model(input_ids=ids, attention_mask=mask)
    _wait(model)
    return time.perf_counter() - started


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
