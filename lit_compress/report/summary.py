"""What a report says before its sections, and what it calls its models."""

from collections.abc import Mapping
from typing import Any

from lit_compress.models.manifest_file import unfinished_lines
from lit_compress.report.phrasing import bytes_text, metric_title, number, points_of, ratio, speed, verdict_of

__all__ = [
    "Results",
    "basis",
    "cautions",
    "highlights",
    "own_name",
    "reference",
    "timed_batch",
    "title_of",
    "verdict_lines",
]

_ENOUGH_UNITS = 300  # of which an accuracy of 0.9 is known to 3.4 points up or down
_REFERENCES = {"dense": "dense fp32", "pretrained": "pretrained fp32", "own": "own fp32"}
_WHO = {
    "dense": "The dense model",
    "compressed": "The compressed model",
    "compressed_quantized_inputs": "The compressed model with quantized inputs",
    "model": "The model",
}

Results = Mapping[str, Any]


def own_name(results: Results) -> str:
    """``compressed``, or ``model`` for one that nothing was done to."""
    return "compressed" if "compressed" in results["models"] else "model"


def timed_batch(results: Results) -> str:
    """The batch whose latency stands for a run next to others: 1, or the first where that was not measured."""
    batches = list(results["models"][own_name(results)]["latency_ms"])
    return "1" if "1" in batches else batches[0]


def title_of(model: str) -> str:
    """What a model is called in tables and charts."""
    return "inputs quantized too" if model == "compressed_quantized_inputs" else model


def reference(results: Results) -> tuple[str, Mapping[str, Any]]:
    """What sizes are compared with, in words, and its bytes in fp32 by part of the model."""
    found = results.get("reference")
    if found is None:
        name = "dense" if "dense" in results["models"] else "own"
        sizes = results["models"]["dense" if name == "dense" else own_name(results)]["size"]
        found = {"name": name} | {part: size["dense_bytes"] for part, size in sizes.items()}
    return _REFERENCES[found["name"]], found


def basis(results: Results) -> str:
    """What the intervals are made from, in words."""
    comparison = results["comparison"]
    return f"{100 * comparison['confidence']:.0f} % interval, paired on {comparison['units']:,} {comparison['unit']}"


def verdict_lines(results: Results) -> list[str]:
    """What the interval of each metric says, a sentence for each."""
    lines = []
    for metric, entry in results["comparison"]["metrics"].items():
        said = {name: verdict_of(results, metric, change) for name, change in entry["differences"].items()}
        own = said.pop(own_name(results), None)
        title = metric_title(results, metric)
        lines += [f"{title}: {own}"] if own else []
        lines += [f"{title}, inputs quantized too: {other}" for other in said.values() if other != own]
    return lines


def cautions(results: Results) -> list[str]:
    """What makes the figures worth less than they look: no complete compression, answers without looking, few units."""
    comparison, own = results["comparison"], own_name(results)
    unit, constant = comparison["unit"], results.get("constant", {})
    lines = [f"Not finished: {line}." for line in unfinished_lines(results)]
    for name, answer in constant.items():
        lines.append(f"{_WHO[name]} predicts {answer!r} for all {unit}: it has learned nothing.")
    known, accuracy = results.get("majority"), results["models"][own]["accuracy"].get("accuracy")
    if known and accuracy is not None and own not in constant and accuracy <= known["share"]:
        lines.append(
            f"{_WHO[own]} is correct no more often than always predicting {known['answer']!r}: "
            f"{100 * known['share']:.1f} % of the {unit}."
        )
    if comparison["units"] < _ENOUGH_UNITS:
        lines.append(
            f"Only {comparison['units']:,} {unit}: fewer than {_ENOUGH_UNITS} cannot tell a few points from chance; "
            "measure on more before you rely on this."
        )
    return lines


def highlights(results: Results) -> list[tuple[str, str, str]]:
    """Title, figure and explanation of what a reader looks for first."""
    own, dense = results["models"][own_name(results)], results["models"].get("dense")
    metric, value = next(iter(own["accuracy"].items()))
    points = points_of(results, metric)
    title = metric_title(results, metric)
    found = [(title, number(value, points), f"dense {number(dense['accuracy'][metric], points)}" if dense else "")]
    whose, full = reference(results)
    for part, title in (("model", "whole model"), ("encoder", "encoder")):
        before, size = full[part], own["size"][part]
        after, itself = size["compressed_bytes"], size["dense_bytes"]
        if before != after:
            alone = f"; {ratio(itself, after)} than own fp32" if itself not in (before, after) else ""
            explained = f"than {whose}: {bytes_text(before)} → {bytes_text(after)}{alone}"
            found.append((title, f"{ratio(before, after)} smaller", explained))
    batch, milliseconds = next(iter(own["latency_ms"].items()))
    if dense:
        before = dense["latency_ms"][batch]
        times = f"of dense: {before:.1f} → {milliseconds:.1f} ms, eager PyTorch"
        found.append((f"speed, batch {batch}", speed(before, milliseconds), times))
    else:
        found.append((f"latency, batch {batch}", f"{milliseconds:.1f} ms", "eager PyTorch"))
    return found
