"""A process of its own for one model on one engine: its memory is its own, and so is its runtime.

It reads a JSON object a line from standard input and answers each with one on standard output.
"""

import contextlib
import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lit_compress.errors import UserError
from lit_compress.runtimes.engines import Engine, Variant, open_engine

__all__ = ["Worker", "batch_of", "peak_memory"]

_WARM = 0.02  # seconds


class Worker:
    """Answers requests; see the methods that begin with ``do_``."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._before = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request, or what went wrong."""
        options = dict(request)
        try:
            return getattr(self, f"do_{options.pop('do')}")(**options)
        except UserError as error:
            return {"error": str(error)}
        except Exception as error:  # of a runtime, which the one who asks must hear of
            lines = str(error).strip().splitlines()
            return {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}

    def do_open(
        self, engine: str, file: str, size: int, packed: bool, threads: int | None, device: str
    ) -> dict[str, Any]:
        """Load a variant of a folder."""
        if engine in ("eager", "compile"):
            import_module("lit_compress.runtimes.torch_engine")  # torch itself is no memory of the model
        self._before = memory_now()
        variant = Variant(engine=engine, file=Path(file), bytes=size, packed=packed)  # type: ignore[arg-type]
        self._engine = open_engine(variant, threads, device)
        return {"inputs": self._engine.inputs}

    def do_outputs(self, rows: int, tokens: int, vocabulary: int) -> dict[str, Any]:
        """Outputs for a batch with padding."""
        return {"outputs": {name: array.tolist() for name, array in self._run(rows, tokens, vocabulary, True).items()}}

    def do_run(self, inputs: str, outputs: str) -> dict[str, Any]:
        """Outputs for the arrays in one .npz file, as another."""
        assert self._engine is not None
        with np.load(inputs) as arrays:
            found = self._engine({name: arrays[name] for name in arrays.files})
        np.savez(outputs, **found)  # type: ignore[arg-type]  (names are of outputs)
        return {}

    def do_time(self, rows: int, tokens: int, vocabulary: int, warmup: int, calls: int) -> dict[str, Any]:
        """Seconds of some calls, after others that are not counted: so many, and if any for 20 ms at least.

        A small model needs more than one call until the caches are full of it again, after another model's.
        """
        batch, seconds = batch_of(rows, tokens, vocabulary), []
        assert self._engine is not None
        begun, made = time.perf_counter(), 0
        while made < warmup or (warmup and time.perf_counter() - begun < _WARM):
            self._engine(batch)
            made += 1
        for _ in range(calls):
            started = time.perf_counter()
            self._engine(batch)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def do_memory(self) -> dict[str, Any]:
        """Bytes that loading and running took at most, beyond what the process had before."""
        peak = peak_memory()
        torch = sys.modules.get("torch")  # only where its engine runs
        device = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else 0
        return {"bytes": None if peak is None else max(peak - self._before, 0) + device}

    def _run(self, rows: int, tokens: int, vocabulary: int, padded: bool) -> dict[str, Any]:
        assert self._engine is not None
        return self._engine(batch_of(rows, tokens, vocabulary, padded))


def batch_of(rows: int, tokens: int, vocabulary: int, padded: bool = False) -> dict[str, Any]:
    """Random token ids ``(rows, tokens)``, the same every time; with padding each row is shorter than the one before.

    Args:
        rows: of the batch.
        tokens: of the longest row.
        vocabulary: ids are below it.
        padded: rows of different lengths, or all of full length.

    """
    ids = np.random.default_rng([rows, tokens]).integers(0, vocabulary, (rows, tokens), dtype=np.int64)
    mask = np.ones_like(ids)
    if padded:
        for row in range(rows):
            mask[row, max(tokens - row * max(tokens // max(rows, 1), 1), 1) :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def memory_now() -> int:
    """Bytes of memory of this process; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def peak_memory() -> int | None:
    """Most bytes of memory that this process has had; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        # What `getrusage` says begins with the memory of the process that started this one.
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if peak is not None:
            return int(peak.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource  # not on Windows

        # Kilobytes, except on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def main() -> None:
    """Answer until the input ends."""
    # What a runtime prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker()
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
