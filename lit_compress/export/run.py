"""`lit_compress export`: a run's student, a checkpoint or a model folder in the format of a runtime."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Literal

from rich.console import Console

from lit_compress.data.same_tokens import check_tokenizer
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.export.folded import Folded, from_source
from lit_compress.export.manifest_file import require_finished
from lit_compress.export.run_folder import run_config, validation_data
from lit_compress.files import atomic_folder, check_folder

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
    unfinished: bool = False,
    overwrite: bool = False,
) -> None:
    """Fold a trained student and write it in the format of a runtime.

    Args:
        run: run folder of a `fit`; its last checkpoint is taken.
        output: folder to make.
        checkpoint: a checkpoint file instead of a run.
        model: a Hugging Face folder instead of a run, of this package or any other with safetensors.
        to: format of the folder.
        unfinished: write it also when its training stopped before its compression was complete.
        overwrite: replace an existing output folder that an export wrote.

    """
    if sum(source is not None for source in (run, checkpoint, model)) != 1:
        raise UserError("export: give one of --run, --checkpoint and --model")
    if not output:
        raise UserError("export: give --output, the folder to make")
    writer: Callable[[Folded, Path], None] = _writer(to)
    check_folder(output, overwrite, inputs=(run, checkpoint, model))  # before minutes of work, and again at the end
    folded = from_source(run, checkpoint, model)
    require_finished(folded.manifest, unfinished)
    if run is not None:
        writer = _reading_as_trained(writer, run, folded)
    write(folded, output, writer, overwrite)


def _reading_as_trained(
    writer: Callable[[Folded, Path], None], run: str, folded: Folded
) -> Callable[[Folded, Path], None]:
    """The writer, after which the folder's tokenizer must read validation rows as the run's did."""
    try:
        data = validation_data(run_config(run, {})["data"], folded.model.config)
    except UserError as error:
        # Its data cannot be given here; that it is gone is no reason to export nothing.
        why = str(error).removeprefix("--").partition(";")[0]
        Console(soft_wrap=True).print(
            f"The tokenizer was not compared on the run's validation rows: {why}", markup=False
        )
        return writer

    def write_and_check(folded: Folded, folder: Path) -> None:
        writer(folded, folder)
        if isinstance(data, TextData):
            check_tokenizer(folder, data)

    return write_and_check


def write(
    folded: Folded, output: str | Path, writer: Format | Callable[[Folded, Path], None], overwrite: bool = False
) -> Path:
    """Write a folded model in a format; the folder appears whole or not at all.

    Args:
        folded: what to write; used up.
        output: folder to make.
        writer: format, or a function that fills an empty folder.
        overwrite: replace an existing folder that an export wrote.

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
