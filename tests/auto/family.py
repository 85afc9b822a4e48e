"""The results of a family of three, as `verify` makes them, with figures that are easy to follow."""

from typing import Any


def _times(milliseconds: float) -> dict[str, Any]:
    return {
        "1x64": {"median_ms": milliseconds, "texts_per_second": 1e3 / milliseconds},
        "32x64": {"median_ms": 20 * milliseconds, "texts_per_second": 1.6e3 / milliseconds},
    }


def _member(name: str, milliseconds: float, score: float, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "same_as": None,
        "asked": None,
        "structure": {"layers": [[4, 64], None], "rank": None},
        "done": "1 of 2 layers, in them 100 % of heads and 50 % of neurons",
        "planned_twice": False,
        "folder": f"runs/fast/exports/{name}",
        "run": f"runs/fast/{name}",
        "file": f"runs/fast/exports/{name}/onnx/model_quantized.onnx",
        "engine": "onnxruntime model_quantized",
        "bytes": 5_000_000,
        "times": _times(milliseconds),
        "speedup": 8 / milliseconds,
        "speedup_to_eager": 16 / milliseconds,
        "score": score,
        "interval": [score - 0.02, score + 0.02],
        "loss": 100 * (0.9 - score),
        "said": f"loses between {100 * (0.9 - score):.1f} and 9.0 points",
    } | changes


def family() -> dict[str, Any]:
    """An int8 member, one at four times the speed and one at eight that is the same as that."""
    members = [
        _member("int8", 4.0, 0.9, asked=None, done="all layers, heads and neurons", said="undecided <b>"),
        _member("4x", 2.0, 0.895, asked=4.0),
        _member("8x", 2.0, 0.895, asked=8.0, same_as="4x"),
    ]
    estimate = {"value": 0.9, "low": 0.88, "high": 0.92}
    return {
        "schema": 1,
        "command": "lit_compress compress --model bert --train 'my rows.csv'",
        "machine": {"device": "a processor", "threads": "2", "torch": "2"},
        "model": "be|rt <script>",
        "target": "onnx-int8",
        "shape": "1x64",
        "max_loss": 1.0,
        "task": "classification",
        "pipeline_tag": "text-classification",
        "score": "accuracy",
        "points": {"accuracy": 100.0},
        "lower_is_better": [],
        "validation": {"source": "val.csv", "rows": 300},
        "comparison": {"metrics": {"accuracy": {"models": {"dense": estimate}, "differences": {}}}},
        "references": [
            {"name": "eager", "engine": "eager", "bytes": 40_000_000, "times": _times(16.0)},
            {"name": "dense", "engine": "onnxruntime model", "bytes": 40_000_000, "times": _times(8.0)},
        ],
        "members": members,
        "recommended": "4x",
        "why": "the fastest that loses at most 1 points: undecided",
    }
