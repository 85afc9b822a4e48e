"""`lit_compress export`: a run's student, a checkpoint or a model folder in the format of a runtime."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Literal

from lit_compress.errors import UserError
from lit_compress.export.folded import Folded, from_source
from lit_compress.files import atomic_folder

__all__ = ["Format", "export", "write"]

Format = Literal["hf", "packed", "sparse", "onnx", "onnx-int8", "openvino", "openvino-int8", "compressed-tensors"]

# Where each format's function is, which takes what to write and an empty folder. Modules, because some of them import
# a runtime that need not be installed.
_WRITERS: dict[str, tuple[str, str]] = {
    "hf": ("hf", "write_hf"),
    "packed": ("pack", "write_packed"),
    "sparse": ("sparse_file", "write_sparse"),
    "onnx": ("onnx", "write_onnx"),
    "onnx-int8": ("onnx", "write_onnx_int8"),
    "openvino": ("openvino", "write_openvino"),
    "openvino-int8": ("openvino", "write_openvino_int8"),
    "compressed-tensors": ("compressed_tensors", "write_compressed_tensors"),
}


def export(
    run: str | None = None,
    output: str = "",
    checkpoint: str | None = None,
    model: str | None = None,
    to: Format = "hf",
    overwrite: bool = False,
) -> None:
    """Fold a trained student and write it in the format of a runtime.

    Args:
        run: run folder of a `fit`; its last checkpoint is taken.
        output: folder to make.
        checkpoint: a checkpoint file instead of a run.
        model: a Hugging Face folder instead of a run, of this package or any other with safetensors.
        to: format of the folder.
        overwrite: replace an existing output folder.

    """
    if sum(source is not None for source in (run, checkpoint, model)) != 1:
        raise UserError("export: give one of --run, --checkpoint and --model")
    if not output:
        raise UserError("export: give --output, the folder to make")
    writer = _writer(to)
    if Path(output).exists() and not overwrite:  # before minutes of work; it is looked at again at the end
        raise UserError(f"output {output!r} exists; choose another --output, or allow it with --overwrite true")
    write(from_source(run, checkpoint, model), output, writer, overwrite)


def write(
    folded: Folded, output: str | Path, writer: Format | Callable[[Folded, Path], None], overwrite: bool = False
) -> Path:
    """Write a folded model in a format; the folder appears whole or not at all.

    Args:
        folded: what to write; used up.
        output: folder to make.
        writer: format, or a function that fills an empty folder.
        overwrite: replace an existing folder.

    Raises:
        UserError: the folder exists or cannot be written, or the format cannot hold the model.

    """
    fill = _writer(writer) if isinstance(writer, str) else writer
    with atomic_folder(output, overwrite) as staging:
        fill(folded, staging)
    return Path(output)


def _writer(to: str) -> Callable[[Folded, Path], None]:
    if to not in _WRITERS:
        raise UserError(f"--to: {to!r} is not one of {', '.join(_WRITERS)}")
    module, function = _WRITERS[to]
    return getattr(import_module(f"lit_compress.export.{module}"), function)
