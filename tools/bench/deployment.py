"""What a smaller model gains in the runtimes that people use, beside the dense one and beside DeepSparse.

Measured: a call on random token ids of full length, every case in a process of its own, all in turn. Each is a BERT of
the size of ``--model`` with random weights, made smaller as if by a strategy:

- ``dense``: as it is, in Transformers (``eager``) and ONNX Runtime;
- ``ROSITA's shape, int8``: two thirds of the layers, a sixth of the heads and of the neurons, a sixth of the width as
  rank of the word embeddings (of BERT-base: 8 layers, 2 heads, 512 neurons, rank 128), exported to onnx-int8 and to
  openvino-int8;
- ``half the layers, a quarter of the neurons, int8``: exported to onnx-int8;
- ``90 % sparse``: a tenth of the weights of every layer, in DeepSparse 1.8.0, where ``--deepsparse`` names the Python
  of an environment that has it.

Each ratio is the time of a case divided by that of a baseline in the same turn. Weights are random: accuracy is the
recipes' question.

Gate, before any timing: every runtime's logits for the same ids are those of PyTorch, up to what the export states, and
DeepSparse's up to 1e-3 of the largest.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lit_compress.data.tables import load_tokenizer
from lit_compress.errors import UserError
from lit_compress.export.command import write
from lit_compress.models import drop_layers, layer_linears, remove_heads, remove_neurons
from lit_compress.models.folded import Folded
from lit_compress.models.heads_and_neurons import removable_groups
from lit_compress.models.shapes import update_config
from lit_compress.nn.factorized import FactorizedEmbedding
from lit_compress.report.timing import Case, cases_of, measure
from lit_compress.runtimes.worker import batch_of
from lit_compress.runtimes.worker_process import WorkerProcess
from tools.bench.measure import MINILM, RESULTS, Row, model_source, publish, quiet

DENSE, SPARSE = "dense", "90 % sparse"
ROSITA, HALF = "ROSITA's shape, int8", "half the layers, a quarter of the neurons, int8"
EAGER, ONNX, DEEPSPARSE = f"{DENSE}: eager", f"{DENSE}: onnxruntime", f"{SPARSE}: deepsparse"
# Case, baseline and rows -> largest ratio of times that the project aims at.
TARGETS = {
    (f"{ROSITA}: onnxruntime", EAGER, 1): 1 / 14,
    (f"{ROSITA}: onnxruntime", EAGER, 16): 1 / 12,
    (f"{ROSITA}: onnxruntime", DEEPSPARSE, 1): 1 / 4,
    (f"{ROSITA}: onnxruntime", DEEPSPARSE, 16): 1 / 5,
    (f"{HALF}: onnxruntime", ONNX, 1): 1 / 5,
    (f"{HALF}: onnxruntime", ONNX, 16): 1 / 5,
}
TOLERANCE = 1e-3


def deployment(
    model: str = "random:12x768",
    batch_sizes: list[int] = [1, 16],  # noqa: B006 (jsonargparse shows and never changes it)
    tokens: int = 128,
    repetitions: int = 15,
    deepsparse: Path | None = None,
    output: Path = RESULTS,
) -> list[Row]:
    """Time small models in runtimes beside the dense one.

    Args:
        model: hub name, folder, ``package:...`` or ``random:LAYERSxWIDTH``.
        batch_sizes: rows of a batch.
        tokens: of a row.
        repetitions: turns.
        deepsparse: Python of an environment with DeepSparse 1.8.0.
        output: CSV to append to.

    """
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        with quiet():
            models = export_all(model, folder)
        cases = [case for case in cases_of(models, None) if not (case.model == DENSE and case.label != "eager")]
        cases += cases_of([f"{DENSE}={folder / 'dense-onnx'}"], ["onnxruntime"])
        asks = [stack.enter_context(worker(case, threads)) for case in cases]
        if deepsparse is not None:
            path = folder / "sparse" / "onnx" / "model.onnx"
            cases.append(Case(model=SPARSE, source=str(path), variant=cases[-1].variant, vocabulary=cases[0].vocabulary,
                              longest=None))  # fmt: skip
            asks.append(stack.enter_context(deepsparse_worker(deepsparse, path, threads)))
            gate(asks[-1], folder / "sparse-hf", cases[0].vocabulary)
        names = [f"{case.model}: {case.variant.engine}" for case in cases]
        if deepsparse is not None:
            names[-1] = DEEPSPARSE
        measure(cases, asks, [(rows, tokens) for rows in batch_sizes], 3, repetitions)
    settings = {"model": model, "tokens": tokens, "engines": names}
    rows = rows_of(cases, names, batch_sizes, tokens, settings)
    publish(rows, output)
    return rows


def export_all(model: str, folder: Path) -> list[str]:
    """Write every folder, and name those that the benchmark loads."""
    source = model_source(model, folder)
    dense = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
    layers, width = dense.config.num_hidden_layers, dense.config.hidden_size
    heads, neurons = dense.config.num_attention_heads, dense.config.intermediate_size

    def fresh() -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(folder / "dense", dtype=torch.float32).eval()

    _write(dense, folder / "dense", "hf")
    _write(fresh(), folder / "dense-onnx", "onnx")
    rosita = shrink(fresh(), layers * 2 // 3, max(heads // 6, 1), neurons // 6)
    words = rosita.get_input_embeddings()
    rosita.set_input_embeddings(FactorizedEmbedding.from_embedding(words, width // 6))
    update_config(rosita)
    _write(rosita, folder / "rosita-hf", "hf")
    half = shrink(fresh(), layers // 2, heads, neurons // 4)
    _write(half, folder / "half-hf", "hf")
    found = [f"{DENSE}={folder / 'dense'}"]
    for name, short in ((ROSITA, "rosita"), (HALF, "half")):
        for to in ("onnx-int8", "openvino-int8") if name == ROSITA else ("onnx-int8",):
            small = Folded(model=_load(folder / f"{short}-hf"), manifest={}, tokenizer=_tokenizer())
            write(small, folder / f"{short}-{to}", to)
            found.append(f"{name}={folder / f'{short}-{to}'}")
    sparse = prune(fresh(), 0.9)
    _write(sparse, folder / "sparse-hf", "hf")
    _write(sparse, folder / "sparse", "onnx")
    return found


def shrink(model: PreTrainedModel, layers: int, heads: int, neurons: int) -> PreTrainedModel:
    """Keep the first layers, heads and neurons, in place."""
    drop_layers(model, range(layers))
    for kind, count, remove in (("heads", heads, remove_heads), ("neurons", neurons, remove_neurons)):
        total = removable_groups(model, kind)[0].count  # type: ignore[arg-type]
        remove(model, None, torch.arange(total) < count)
    update_config(model)
    return model


@torch.no_grad()
def prune(model: PreTrainedModel, sparsity: float, more: Sequence[str] = ()) -> PreTrainedModel:
    """Zero the smallest weights of every layer's linears, and of those named, in place."""
    for linear in (*layer_linears(model).values(), *map(model.get_submodule, more)):
        magnitudes = linear.weight.abs().flatten()
        smallest = magnitudes.kthvalue(int(sparsity * magnitudes.numel())).values
        linear.weight.mul_(linear.weight.abs() > smallest)
    return model


@contextmanager
def worker(case: Case, threads: int) -> Iterator[Callable[..., dict[str, Any]]]:
    """A process with one case loaded."""
    with WorkerProcess(f"{case.model}, {case.label}") as process:
        variant = case.variant
        process.ask("open", engine=variant.engine, file=str(variant.file), size=variant.bytes, packed=variant.packed,
                    threads=threads, device="cpu")  # fmt: skip
        yield process.ask


@contextmanager
def deepsparse_worker(python: Path, model: Path, threads: int) -> Iterator[Callable[..., dict[str, Any]]]:
    """DeepSparse in its own environment; see deepsparse_worker.py."""
    command = [str(python), str(Path(__file__).with_name("deepsparse_worker.py")), str(model), str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answers = process.stdin, process.stdout

    def ask(do: str, **options: Any) -> dict[str, Any]:
        asked.write(json.dumps({"do": do, **options}) + "\n")
        asked.flush()
        for line in answers:  # the engine introduces itself first
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit("deployment: DeepSparse's process ended; is --deepsparse a Python that has it?")

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def gate(ask: Callable[..., dict[str, Any]], folder: Path, vocabulary: int) -> None:
    """Raise ``SystemExit`` unless DeepSparse's logits are those of PyTorch."""
    theirs = np.asarray(ask("time", rows=2, tokens=16, vocabulary=vocabulary, warmup=1, calls=0)["logits"])
    given = {name: torch.as_tensor(array) for name, array in batch_of(2, 16, vocabulary).items()}
    with torch.inference_mode():
        ours = _load(folder)(**given).logits.numpy()
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if not difference <= TOLERANCE:
        raise SystemExit(f"deployment: DeepSparse differs from PyTorch by {difference:.2g} of the largest logit")


def rows_of(
    cases: list[Case], names: list[str], batch_sizes: list[int], tokens: int, settings: dict[str, Any]
) -> list[Row]:
    """A row of the CSV for each case, baseline and batch size; a ratio for each turn."""
    rows = []
    for size in batch_sizes:
        times = {
            name: case.results["times"][f"{size}x{tokens}"]["times_ms"] for name, case in zip(names, cases, strict=True)
        }
        milliseconds = {name: float(np.median(values)) for name, values in times.items()}
        for baseline in (EAGER, ONNX, DEEPSPARSE):
            for name in times if baseline in times else ():
                if not name.startswith((ROSITA, HALF)):
                    continue
                row = Row(
                    benchmark="deployment",
                    case=f"{name}, {size} x {tokens}",
                    baseline=baseline,
                    ratios=[ours / base for ours, base in zip(times[name], times[baseline], strict=True)],
                    target=TARGETS.get((name, baseline, size)),
                    settings=settings | {"rows": size, "ms": milliseconds},
                )
                rows.append(row)
    return rows


def _write(model: PreTrainedModel, folder: Path, to: str) -> None:
    write(Folded(model=model, manifest={}, tokenizer=_tokenizer()), folder, to, overwrite=True)  # type: ignore[arg-type]


def _load(folder: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def _tokenizer() -> Any:
    return load_tokenizer(MINILM, "tokenizer")


if __name__ == "__main__":
    try:
        auto_cli(deployment, as_positional=False)
    except UserError as error:
        raise SystemExit(f"deployment: {error}") from error
