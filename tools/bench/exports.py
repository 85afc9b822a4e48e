"""What it takes to export a model to each format, and how large the files are.

Measured: `lit_compress export --model` of a BERT of the size of ``--model`` with random weights, nine tenths of each
linear of the layers and of the pooler zero (as Prune Once for All prunes), in a process of its own; and the same of a
toy model, whose peak and time are those of Python alone:

- *memory*: (peak - peak of the toy) / bytes of the fp32 weights;
- *time*: seconds, less those of the toy, / 60 s;
- *file*: bytes of the files with the weights / bytes of the dense fp32 model.

``--quantized`` rounds the weights of these linears and of the tables to int8 first, as quantization-aware training
does.

Gate: every export exits with 0; it compares its outputs with PyTorch's itself.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli
from transformers import AutoModelForSequenceClassification

from lit_compress.data.tables import load_tokenizer
from lit_compress.export.command import Format, write
from lit_compress.export.graph_form import round_tables, round_weights
from lit_compress.models.folded import Folded
from lit_compress.runtimes.engines import variants
from tools.bench.deployment import prune
from tools.bench.measure import MINILM, RESULTS, Row, model_source, publish, quiet

_PROGRAM = """
import sys
from lit_compress.cli import main
from lit_compress.runtimes.worker import peak_memory
main(sys.argv[1:])
print(peak_memory())
"""

FORMATS: tuple[Format, ...] = (
    *("hf", "packed", "sparse", "onnx", "onnx-int8", "openvino", "openvino-int8", "compressed-tensors"),
)
MEMORY, SECONDS = 2.5, 60
POOLER = ("bert.pooler.dense",)
# Of BERT-base with a tenth of its weights in int8, tables in int8: 46 MB beside 438 MB.
TARGET_FILE = {"sparse": 46 / 438}


def exports(
    model: str = "random:12x768",
    to: list[Format] = list(FORMATS),  # noqa: B006 (jsonargparse shows and never changes it)
    sparsity: float = 0.9,
    quantized: bool = True,
    repetitions: int = 1,
    output: Path = RESULTS,
) -> list[Row]:
    """Export to each format, and look at memory, time and size.

    Args:
        model: hub name, folder, ``package:...`` or ``random:LAYERSxWIDTH``.
        to: formats.
        sparsity: of the linears of layers and pooler.
        quantized: whether weights are int8 values times a scale.
        repetitions: exports to each.
        output: CSV to append to.

    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        dense = _make(model, folder / "model", sparsity, quantized)
        _make("random:1x64", folder / "toy", sparsity, quantized)
        settings = {"model": model, "sparsity": sparsity, "quantized": quantized, "dense_bytes": dense}
        for kind in to:
            found: dict[str, list[float]] = {"memory": [], "time": [], "file": []}
            for _ in range(repetitions):
                toy_seconds, toy_peak, _ = _export(folder / "toy", kind, folder / "out")
                seconds, peak, size = _export(folder / "model", kind, folder / "out")
                # Never below what the table can show: a small model's peak is that of Python.
                found["memory"].append(max((peak - toy_peak) / dense, 0.001))
                found["time"].append(max((seconds - toy_seconds) / SECONDS, 0.001))
                found["file"].append(size / dense)
            targets = {"memory": MEMORY, "time": 1.0, "file": TARGET_FILE.get(kind) if quantized else None}
            baselines = {"memory": "dense fp32 model", "time": f"{SECONDS} s", "file": "dense fp32 model"}
            rows += [
                Row(
                    benchmark="exports",
                    case=f"{what}, {kind}",
                    baseline=baselines[what],
                    ratios=ratios,
                    target=targets[what],
                    settings=settings,
                )
                for what, ratios in found.items()
            ]
    publish(rows, output)
    return rows


def _make(model: str, folder: Path, sparsity: float, quantized: bool) -> int:
    """Write a pruned model, and give the bytes of its fp32 weights."""
    source = model_source(model, folder.parent)
    loaded = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
    prune(loaded, sparsity, POOLER)
    folded = Folded(model=loaded, manifest={}, tokenizer=load_tokenizer(MINILM, "tokenizer"))
    if quantized:
        round_weights(folded, more=POOLER)
        round_tables(folded)
    size = sum(parameter.numel() * 4 for parameter in loaded.parameters())
    write(folded, folder, "hf")
    return size


def _export(source: Path, to: Format, output: Path) -> tuple[float, int, int]:
    """Seconds, peak memory of the process, and bytes of the weights in the folder."""
    arguments = ["export", f"--model={source}", f"--to={to}", f"--output={output}", "--overwrite=true"]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"exports: the export to {to} ended with status {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - started, int(done.stdout.split()[-1]), variants(output)[0].bytes


if __name__ == "__main__":
    auto_cli(exports, as_positional=False)
