"""The results of a small report, with labels, names and settings that try to break out of a page."""

import copy
from typing import Any

HOSTILE = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
MATH = r"$\frac{1}{$ | `x` </svg> {{ 7 * 7 }}"

NEW = ("confusion", "changed", "curves", "exports")  # which earlier reports of this schema lack


def size(parameters, nonzeros, values, index):
    kept = {"value_bytes": values, "index_bytes": index, "compressed_bytes": values + index}
    return {"parameters": parameters, "nonzeros": nonzeros, "dense_bytes": 4 * parameters} | kept


def estimates(value, lost):
    dense = {"value": value, "low": value - 0.03, "high": value + 0.03}
    own = {name: number - lost for name, number in dense.items()}
    change = {"value": -lost, "low": -lost - 0.01, "high": -lost + 0.01}
    return {"models": {"dense": dense, "compressed": own}, "differences": {"compressed": change}}


def matrix(layer, name, shape):
    full = f"bert.encoder.layer.{layer}.{name}"
    return {
        "name": full,
        "layer": layer,
        "matrix": name,
        "shape": shape,
        "dense_shape": shape,
        "sparsity": 0.75,
        "weights": "int8 per channel",
        "inputs": "uint8",
        "bytes": 1000,
    }


def results(**changes: Any) -> dict[str, Any]:
    """As :func:`lit_compress.report.measure.measure_run` gives them."""
    matrices = [matrix(layer, name, [8, 8]) for layer in (0, 1) for name in ("attention.self.query", "output.dense")]
    labels = ["good", HOSTILE, IMAGE, MATH]
    layer = {"heads": 1, "dense_heads": 2, "neurons": 10, "dense_neurons": 64, "sparsity": 0.75}
    made = {
        "schema": 4,
        "run": f"runs/{IMAGE}",
        "config": "runs/x/config.yaml",
        "command": f"lit_compress report --run '{HOSTILE}'",
        "machine": {"device": "Some CPU", "threads": "2 of 4", "python": "3.11.1", "torch": "9.8.7"},
        "task": "classification",
        "labels": labels,
        "pipeline_tag": "text-classification",
        "points": {"accuracy": 100.0, "f1": 100.0},
        "lower_is_better": [],
        "class_metric": "recall",
        "data": {"validation_rows": 400, "max_length": 66, "source": f"data/{HOSTILE}.tsv"},
        "dense": "runs/teacher/model",
        "settings": {
            "module": "LitStudent",
            "pretrained": "bert",
            "teacher": None,
            "compression": [{"name": "MagnitudePruning", "settings": {"sparsity": 0.75, "targets": [HOSTILE]}}],
            "distillation": [],
            "epochs": 3,
            "steps": -1,
            "learning_rate": 1e-4,
            "seed": 42,
        },
        "config_text": f"a: 1\nb: {HOSTILE}\nc: 3\nd: 4\n```\ne: 5\n",
        "sparsity": {entry["name"]: 0.75 for entry in matrices},
        "models": {
            "dense": {
                "accuracy": {"accuracy": 0.91, "f1": 0.88},
                "size": {"encoder": size(1000, 1000, 4000, 0), "model": size(3000, 3000, 12000, 0)},
                "latency_ms": {"1": 12.0, "32": 300.0},
                "latency_spread_ms": {"1": [11.0, 14.0], "32": [290.0, 310.0]},
            },
            "compressed": {
                "accuracy": {"accuracy": 0.89, "f1": 0.86},
                "size": {"encoder": size(1000, 250, 250, 125), "model": size(3000, 2250, 8250, 125)},
                "latency_ms": {"1": 6.0, "32": 150.0},
                "latency_spread_ms": {"1": [5.0, 7.0], "32": [140.0, 160.0]},
            },
        },
        "comparison": {
            "unit": "examples",
            "units": 400,
            "confidence": 0.95,
            "resamples": 2000,
            "seed": 0,
            "metrics": {"accuracy": estimates(0.91, 0.02), "f1": estimates(0.88, 0.02)},
            "classes": {label: {"units": 100, "metrics": {"recall": estimates(0.9, 0.02)}} for label in labels},
            "slices": {"3 to 9 tokens": {"units": 200, "metrics": {"accuracy": estimates(0.9, 0.02)}}},
        },
        "calibration": {
            name: {"ece": 0.05, "bins": [{"low": 0.9, "high": 1.0, "rows": 400, "confidence": 0.95, "accuracy": 0.9}]}
            for name in ("dense", "compressed")
        },
        "changes": {"both_right": 350, "lost": 14, "gained": 6, "both_wrong": 30},
        "confusion": {
            name: [[90, 5, 3, 2], [4, 93, 2, 1], [0, 1, 98, 1], [9, 9, 9, 73]] for name in ("dense", "compressed")
        },
        "changed": {
            "count": 14,
            "rows": [
                {"text": text, "dense": "good", "own": HOSTILE, "right": "good"}
                for text in (HOSTILE, " ".join(["word"] * 60))
            ],
        },
        "curves": {
            "values": {
                "train/loss": [[step, 2 / (step + 1)] for step in range(20)],
                "val/loss": [[9, 0.9], [19, 0.5]],
                "val/accuracy": [[9, 0.8], [19, 0.89]],
            },
            "windows": [{"name": "MagnitudePruning", "start": 2, "end": 12}],
        },
        "exports": [
            {"file": "model", "engine": "eager", "bytes": 12000, "check": None},
            {"file": f"{HOSTILE}/onnx/model_quantized.onnx", "engine": "onnxruntime", "bytes": 3000}
            | {"check": "99.8 % of predictions as PyTorch's on 400 examples, accuracy 0.8925 (PyTorch 0.8900)"},
        ],
        "constant": {},
        "majority": {"answer": "good", "share": 0.3},
        "layers": [{"layer": number, "weights": "int8 per channel", "inputs": "uint8"} | layer for number in (0, 1)],
        "dense_layers": 3,
        "matrices": matrices,
        "tables": [{"name": "bert.embeddings", "rows": 99, "width": 8, "rank": 4, "weights": None}],
        "attention": [],
        "blocks": {entry["name"]: [[0.5, 1.0], [0.75, 0.75]] for entry in matrices},
    }
    return copy.deepcopy(made | changes)
