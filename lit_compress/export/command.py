"""`lit_compress export`: a run's student, a checkpoint or a model folder in the format of a runtime."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from lit_compress.choices import Dtype, Format, Half
from lit_compress.console import say
from lit_compress.data.text_data import TextData
from lit_compress.data.tokenizer_check import check_tokenizer
from lit_compress.errors import UserError, first_line
from lit_compress.export.activation_ranges import calibrated, missing_ranges
from lit_compress.export.check import Examples
from lit_compress.export.checkpoint import best_checkpoint
from lit_compress.export.examples import examples_of_data, examples_of_file
from lit_compress.export.half_precision import HalfOptions
from lit_compress.export.onnx import IntegerOptions
from lit_compress.export.pack import best_precision, packed_lines
from lit_compress.export.run_folder import reads_texts, run_config, validation_data
from lit_compress.export.source import from_source
from lit_compress.files import atomic_folder, check_folder
from lit_compress.models.folded import Folded
from lit_compress.models.hf_folder import add_note
from lit_compress.models.manifest_file import require_finished
from lit_compress.models.pack import LayoutChoice, Ranges, ranges_of
from lit_compress.sources import resolve_package
from lit_compress.storage.layouts import Precision
from lit_compress.tasks import Batch

__all__ = ["INTEGERS", "Format", "export", "format_writer", "pack_command", "write"]

# Where each format's function is, which takes what to write and an empty folder. Modules, because some of them import
# a runtime that need not be installed.
_WRITERS: dict[str, tuple[str, str]] = {
    "hf": ("models.hf_folder", "write_hf"),
    "packed": ("export.pack", "write_packed"),
    "sparse": ("export.sparse_file", "write_sparse"),
    "onnx": ("export.onnx", "write_onnx"),
    "onnx-int8": ("export.onnx", "write_onnx_int8"),
    "openvino": ("export.openvino", "write_openvino"),
    "openvino-int8": ("export.openvino", "write_openvino_int8"),
    "compressed-tensors": ("export.compressed_tensors", "write_compressed_tensors"),
}
_HALF_WRITERS = {"hf": ("export.half_precision", "write_hf_half"), "onnx": ("export.half_precision", "write_onnx_half")}
_CALIBRATION_BATCHES = 16  # of the run's validation data, where nothing is said
# The first is what each writes by default.
_DTYPES = {"hf": ("fp32", "fp16", "bf16"), "onnx": ("fp32", "fp16"), "packed": ("int8", "fp8")}
# Options that only some formats have.
INTEGERS = ("onnx-int8", "openvino-int8")
_OPTIONS = dict.fromkeys(("processor", "tables", "check", "strict"), INTEGERS) | {
    **dict.fromkeys(("layout", "calibration_batches"), ("packed",)),
    "dtype": tuple(_DTYPES),
    "data": (*INTEGERS, "packed"),
}
_COMPARES = ("check", "data", "strict")  # also with 16-bit floating point


def export(
    run: str | None = None,
    output: str = "",
    checkpoint: str | None = None,
    model: str | None = None,
    to: Format = "hf",
    unfinished: bool = False,
    overwrite: bool = False,
    processor: Literal["any", "vnni"] = "any",
    tables: Literal["int8", "float"] = "int8",
    check: str | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    strict: bool = False,
    layout: LayoutChoice = "auto",
    dtype: Dtype | None = None,
    calibration_batches: int | None = None,
) -> None:
    """Fold a trained student and write it in the format of a runtime.

    Options: :func:`lit_compress.commands.models.export_model`.
    """
    if (model is None) == (run is None and checkpoint is None):
        raise UserError("export: give one of --run, --checkpoint and --model, or --run and --checkpoint of the run")
    if not output:
        raise UserError("export: give --output, the folder to make")
    model = model and resolve_package(model, "--model")
    half: Half | None = dtype if dtype == "fp16" or dtype == "bf16" else None
    writer = format_writer(to, half)
    given = {
        "processor": processor != "any",
        "tables": tables != "int8",
        "check": check,
        "data": data,
        "strict": strict,
        "layout": layout != "auto",
        "dtype": dtype,
        "calibration_batches": calibration_batches,
    }
    _check_options(to, run, given, half)
    check_folder(output, overwrite, inputs=(run, checkpoint, model))  # before minutes of work, and again at the end
    if run is not None and checkpoint in ("best", "last"):
        checkpoint = str(best_checkpoint(run)) if checkpoint == "best" else None
    folded = from_source(run if checkpoint is None else None, checkpoint, model)
    require_finished(folded.manifest, unfinished)
    validation = None if run is None else _validation_data(run, folded, check, data, calibration_batches)
    if to in INTEGERS or half:
        examples = _examples(folded, validation, run or checkpoint or model or "", check, data)
        if strict and examples is None:
            raise UserError("--strict: asks for a comparison, and there are no examples; give --check, a file of some")
        options = (
            HalfOptions(dtype=half, examples=examples, strict=strict)
            if half
            else IntegerOptions(processor=processor, tables=tables, examples=examples, strict=strict)
        )
        writer = partial(writer, options=options)
    if to == "packed":
        precision = _precision(folded, dtype)
        ranges = ranges_of(folded.manifest)
        if validation is not None:
            ranges = _measured(folded, ranges, validation, calibration_batches, precision)
        writer = partial(writer, layout=layout, dtype=precision, ranges=ranges)
    write(folded, output, _reading_as_trained(writer, validation), overwrite)
    if to == "packed":
        for line in packed_lines(folded.model):
            say(line)
    size = sum(file.stat().st_size for file in Path(output).rglob("*") if file.is_file())
    say(f"Saved as {output}, {size / 1e6:.1f} MB")


def pack_command(
    run: str | None = None,
    model: str | None = None,
    output: str = "",
    format: LayoutChoice = "auto",
    dtype: Precision | None = None,
    calibration_batches: int | None = None,
    data: dict[str, Any] = {},  # noqa: B006 (as above)
    unfinished: bool = False,
    overwrite: bool = False,
) -> None:
    """Another name of `export --to packed`, whose `--layout` is `--format` here.

    Options: :func:`lit_compress.commands.models.pack_model`.
    """
    say("lit_compress pack is lit_compress export --to packed; its --format is --layout there")
    export(
        run=run,
        model=model,
        output=output,
        to="packed",
        layout=format,
        dtype=dtype,
        calibration_batches=calibration_batches,
        data=data,
        unfinished=unfinished,
        overwrite=overwrite,
    )


def _check_options(to: str, run: str | None, given: dict[str, Any], half: Half | None) -> None:
    """Refuse options that have no effect."""
    for key in (key for key, value in given.items() if value):
        compares = key in _COMPARES
        if to not in _OPTIONS[key] and not (compares and half):
            other = f", and on {' and '.join(_HALF_WRITERS)} with --dtype fp16 or bf16" if compares else ""
            allowed = " and ".join(_OPTIONS[key])
            raise UserError(f"--{key}: has no effect on {to}, only on {allowed}{other}; leave it out")
    if given["dtype"]:
        _check_dtype(to, given["dtype"])
    batches = given["calibration_batches"]
    if batches is not None and batches < 0:
        raise UserError(f"--calibration_batches: {batches} must be 0 or more")
    if batches and run is None:
        raise UserError("--calibration_batches: measures on the validation data of a run; give one with --run")
    if given["data"] and to == "packed" and (run is None or batches == 0):
        raise UserError(f"--data: {given['data']} has no effect without --calibration_batches; leave it out")


def _precision(folded: Folded, dtype: Dtype | None) -> Precision:
    """What was asked for, or what is best here, said on the console."""
    if dtype == "int8" or dtype == "fp8":
        return dtype
    precision, why = best_precision(folded)
    say(f"Packed in {precision}: {why}; --dtype chooses")
    return precision


def _batches(folded: Folded, ranges: Mapping[str, Ranges]) -> int:
    """How many batches are measured when nothing is said: none where training knows every range that is needed."""
    return _CALIBRATION_BATCHES if missing_ranges(folded.model, ranges) else 0


def _check_dtype(to: str, dtype: Dtype) -> None:
    """Refuse a dtype that a format does not have."""
    if dtype in _DTYPES[to]:
        return
    why = ""
    if to == "onnx" and dtype == "bf16":
        why = " (ONNX Runtime has no bf16 operators for processors; --to hf has bf16)"
    raise UserError(f"--dtype: {dtype!r} is none of {to}{why}; give {' or '.join(_DTYPES[to])}")


def _examples(
    folded: Folded, validation: LightningDataModule | None, source: str, check: str | None, data: dict[str, Any]
) -> Examples | None:
    """What an integer file is compared on; None, with a line on the console, when there is nothing."""
    if isinstance(validation, TextData):
        origin = repr(check) if check else f"the validation data of {source}"
        return examples_of_data(validation, folded.model, origin)
    if check is not None:
        return examples_of_file(folded, source, check, data)
    if data:
        raise UserError(f"--data: {data} has no effect without --check; leave it out")
    say("Not compared with PyTorch on examples; give --check, a file with texts as the model will read them.")
    return None


def _validation_data(
    run: str, folded: Folded, check: str | None, options: dict[str, Any], calibration_batches: int | None
) -> LightningDataModule | None:
    """Of a run, or a file in its place; None, with the reason on the console, when the run's is not there any more."""
    given = options | ({"val_file": check} if check else {})
    try:
        if check and not reads_texts(run_config(run, {})["data"]):
            return None  # the file is read as the model's head needs it
        return validation_data(run_config(run, given)["data"], folded.model.config)
    except Exception as error:  # a data module of the user's own may need what only a fit has
        if given or calibration_batches:
            raise
        # That its data is gone is not a reason to export nothing.
        say(f"The export was not compared on the run's validation examples: {_why(error)}")
        return None


def _measured(
    folded: Folded,
    ranges: Mapping[str, Ranges],
    validation: LightningDataModule,
    asked: int | None,
    precision: Precision,
) -> Mapping[str, Ranges]:
    """Ranges, those that training left open measured on so many batches, or as many as are needed."""
    count = _batches(folded, ranges) if asked is None else asked
    if not count:
        return ranges
    try:
        return calibrated(folded, ranges, _first_batches(validation, count), precision)
    except UserError as error:
        if asked:  # otherwise nobody wanted it, and a model without these ranges is right, too
            raise
        say(f"Ranges were not measured, and inputs are quantized as they come: {_why(error)}")
        return ranges


def _first_batches(validation: LightningDataModule, count: int) -> list[Batch]:
    """Validation batches.

    Raises:
        UserError: a data module of the user's own has none outside a fit.

    """
    try:
        batches = [*islice(validation.val_dataloader(), count)]
    except Exception as error:  # code of others, whose mistakes are any
        raise UserError(f"val_dataloader: {type(error).__name__}: {first_line(error)}") from error
    if strange := [type(batch).__name__ for batch in batches if not isinstance(batch, Batch)]:
        raise UserError(f"val_dataloader: a batch is a {strange[0]} and must be a lit_compress.tasks.Batch")
    return batches


def _why(error: Exception) -> str:
    why = first_line(error).removeprefix("--").partition(";")[0]
    return why if isinstance(error, UserError) else f"{type(error).__name__}: {why}"


def _reading_as_trained(
    writer: Callable[[Folded, Path], None], data: LightningDataModule | None
) -> Callable[[Folded, Path], None]:
    """The writer, after which the folder's tokenizer must read validation examples as the run's did."""

    def write_and_check(folded: Folded, folder: Path) -> None:
        writer(folded, folder)
        if isinstance(data, TextData):
            check_tokenizer(folder, data)
            add_note(folder, data.task.note())

    return write_and_check


def write(
    folded: Folded, output: str | Path, writer: Format | Callable[[Folded, Path], None], overwrite: bool = False
) -> Path:
    """Write a folded model in a format; the folder appears whole or not at all.

    Args:
        folded: what to write; not usable afterwards.
        output: folder to make.
        writer: format, or a function that fills an empty folder.
        overwrite: replace an existing folder that an export wrote.

    Raises:
        UserError: the folder exists or cannot be written, or the format cannot hold the model.

    """
    fill = format_writer(writer) if isinstance(writer, str) else writer
    with atomic_folder(output, overwrite) as staging:
        fill(folded, staging)
    return Path(output)


def format_writer(to: str, half: Half | None = None) -> Callable[..., None]:
    """The function that fills an empty folder with a folded model in a format.

    Those of INTEGERS, and of 16-bit floating point, take `options`.
    """
    if to not in _WRITERS:
        raise UserError(f"--to: {to!r} is not one of {', '.join(_WRITERS)}")
    module, function = (_HALF_WRITERS if half else {}).get(to, _WRITERS[to])
    return getattr(import_module(f"lit_compress.{module}"), function)
