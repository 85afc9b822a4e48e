"""One way to call any export: arrays by name in, arrays by name out, whatever runtime computes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_compress.choices import EngineName
from lit_compress.errors import UserError, first_line
from lit_compress.extras import optional
from lit_compress.runtimes.onnx_session import open_session
from lit_compress.sources import resolve_source

__all__ = [
    "ENGINES",
    "Engine",
    "EngineName",
    "Variant",
    "installed",
    "local_folder",
    "open_engine",
    "variants",
]

ENGINES: tuple[EngineName, ...] = ("eager", "compile", "onnxruntime", "openvino")

_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "*.model", "merges.txt"]
_FILES += ["modules.json", "*/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"]


class Engine(Protocol):
    """A loaded model.

    Attributes:
        inputs: names of the arrays that it takes.

    """

    inputs: list[str]

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name, fp32; of a batch with arrays ``(rows, tokens)``, int64, of which it takes its inputs."""
        ...


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a folder.

    Attributes:
        engine: what computes.
        file: what it loads: the graph, or the folder of PyTorch's weights.
        bytes: size of the files with the weights.
        packed: whether the weights are in this package's packed form.

    """

    engine: EngineName
    file: Path
    bytes: int
    packed: bool = False


def local_folder(source: str, key: str) -> Path:
    """The folder of a model, fetched first when it is the name of one on the hub; no code, and no other weights.

    Raises:
        UserError: there is none.

    """
    path = Path(resolve_source(source, key))
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{key}: {source!r} is a file; give the folder that it is in")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=_FILES))
    except Exception as error:  # no such model, no network, no name at all
        reason = first_line(error)
        raise UserError(
            f"{key}: {source!r} is neither a folder nor a hub model that can be reached: {reason}"
        ) from error


def variants(folder: Path, packed: bool = False) -> list[Variant]:
    """Every way in which a folder can be run, whether what runs it is installed or not.

    Args:
        folder: of any export, or of a model from elsewhere.
        packed: what its configuration says of its weights.

    """
    found: list[Variant] = []
    if weights := sorted(folder.glob("*.safetensors")):
        size = sum(file.stat().st_size for file in weights)
        found += [Variant(engine=engine, file=folder, bytes=size, packed=packed) for engine in ENGINES[:2]]
    for file in sorted(folder.glob("onnx/*.onnx")):
        parts = [file, *file.parent.glob(f"{file.name}_data*"), *file.parent.glob(f"{file.name}.data*")]
        found.append(Variant(engine="onnxruntime", file=file, bytes=sum(part.stat().st_size for part in parts)))
    for file in sorted(folder.glob("openvino/*.xml")):
        parts = [part for part in (file, file.with_suffix(".bin")) if part.is_file()]
        found.append(Variant(engine="openvino", file=file, bytes=sum(part.stat().st_size for part in parts)))
    return found


def installed(engine: EngineName) -> bool:
    """Whether what an engine needs is there."""
    return engine in ("eager", "compile") or find_spec(engine) is not None


def open_engine(variant: Variant, threads: int | None = None, device: str = "cpu") -> Engine:
    """Load a variant.

    Args:
        variant: of :func:`variants`.
        threads: of the processor; None leaves it to the runtime.
        device: of PyTorch's engines; the others run on the processor.

    Raises:
        UserError: the runtime is not installed, or the folder is damaged.

    """
    if variant.engine in ("eager", "compile"):
        from lit_compress.runtimes.torch_engine import TorchEngine  # torch and Transformers, which others do without

        return TorchEngine(variant.file, variant.engine == "compile", threads, device)
    try:
        return (_Onnx if variant.engine == "onnxruntime" else _OpenVino)(variant.file, threads)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign file makes a runtime raise is that file's fault
        reason = first_line(error)
        raise UserError(f"{str(variant.file)!r} cannot be loaded: {reason}") from error


class _Onnx:
    def __init__(self, file: Path, threads: int | None) -> None:
        self._session = open_session(file, threads)
        self.inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = self._session.run(self._outputs, {name: _given(batch, name) for name in self.inputs})
        return dict(zip(self._outputs, found, strict=True))


class _OpenVino:
    def __init__(self, file: Path, threads: int | None) -> None:
        runtime = optional("openvino", "openvino")
        # fp32 also where the processor has bfloat16: every engine computes the same.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        model = runtime.Core().compile_model(file, "CPU", settings)
        self._request = model.create_infer_request()
        self.inputs = [each.get_any_name() for each in model.inputs]
        # An output has the name that the export gave it and those of the operators before it, which are paths.
        self._outputs = [min(each.get_names(), key=lambda name: ("/" in name, name)) for each in model.outputs]

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = self._request.infer({name: _given(batch, name) for name in self.inputs})
        return {name: results[name].copy() for name in self._outputs}


def _given(batch: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """An input; token types that a tokenizer does not make are 0.

    Raises:
        UserError: another one that is not given.

    """
    if name in batch:
        return batch[name]
    if name == "token_type_ids":
        return np.zeros_like(batch["input_ids"])
    raise UserError(f"the model has the input {name!r}, and is given {', '.join(batch)}; export it without that input")
