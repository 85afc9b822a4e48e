"""How long a forward pass takes, models side by side in one run."""

import statistics
import time

import torch
from transformers import PreTrainedModel

from lit_compress.progress import counted

__all__ = ["latencies", "median_latency"]


def median_latency(
    models: dict[str, PreTrainedModel], batch_size: int, tokens: int, repetitions: int = 10
) -> dict[str, float]:
    """Median of :func:`latencies`, in milliseconds, by model."""
    times = latencies(models, batch_size, tokens, repetitions)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def latencies(
    models: dict[str, PreTrainedModel], batch_size: int, tokens: int, repetitions: int = 10
) -> dict[str, list[float]]:
    """Milliseconds of each forward pass of each model, eager, on the models' device.

    Calls of the models are interleaved, so that whatever else the machine does falls on all of them; one round of
    warm-up is not measured. Inputs are full length, no padding.

    Args:
        models: by name.
        batch_size: rows.
        tokens: length of each row.
        repetitions: measured rounds.

    """
    times: dict[str, list[float]] = {name: [] for name in models}
    calls = (repetitions + 1) * len(models)
    with counted(f"Measuring latency, batch {batch_size}", calls, "calls") as tell:
        done = 0
        for repetition in range(repetitions + 1):
            for name, model in models.items():
                ids = torch.randint(model.config.vocab_size, (batch_size, tokens), device=model.device)
                mask = torch.ones_like(ids)
                _wait(model)
                started = time.perf_counter()
                model(input_ids=ids, attention_mask=mask)
                _wait(model)
                if repetition:
                    times[name].append((time.perf_counter() - started) * 1e3)
                tell(done := done + 1)
    return times


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
