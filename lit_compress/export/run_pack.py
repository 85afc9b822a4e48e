"""`lit_compress pack`: a run's student, or an exported folder, in 8 bit and without its zeros."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.export.folded import from_source
from lit_compress.export.manifest_file import require_finished
from lit_compress.export.pack import PackFormat, pack, packed_bytes, save_packed
from lit_compress.export.run_folder import run_config, validation_data
from lit_compress.export.scales import PERCENTILE, LayerScales, calibrate, layers_of_static_inputs, scales_of
from lit_compress.files import check_folder
from lit_compress.models.packed import packed_linears
from lit_compress.modules.encoder import model_inputs
from lit_compress.nn.packed_buffers import Precision

__all__ = ["pack_command"]


def pack_command(
    run: str | None = None,
    model: str | None = None,
    output: str = "",
    format: PackFormat = "auto",
    dtype: Precision = "int8",
    calibration_batches: int = 0,
    data: dict[str, Any] = {},  # noqa: B006 (jsonargparse shows and never changes it)
    unfinished: bool = False,
    overwrite: bool = False,
) -> None:
    """Pack a trained student into 8 bit without its zeros, as a folder that `from_pretrained` loads.

    Args:
        run: run folder of a `fit`; the student of its last checkpoint is packed.
        model: exported folder instead of a run.
        output: folder to make.
        format: `auto` chooses for each linear; or one for all: `dense`, `tall_blocks` (blocks of 128 x 32 zeros left
            out), `blocks` (64 x 64), `bitmap` (any zeros, small file), `two_four` (2 of 4 kept, small file).
        dtype: `int8` runs on every GPU since Ampere; `fp8` needs Ada or Hopper.
        calibration_batches: validation batches of the run on which the ranges of inputs are measured that
            quantization-aware training left open; 0 measures none.
        data: options of the run's data to change for that: `--data.val_file other.tsv`.
        unfinished: pack it also when its training stopped before its compression was complete.
        overwrite: replace an existing output folder that an export wrote.

    """
    if (run is None) == (model is None):
        raise UserError("pack: give either --run or --model")
    if not output:
        raise UserError("pack: give --output, the folder to make")
    check_folder(output, overwrite, inputs=(run, model))
    if calibration_batches < 0:
        raise UserError(f"--calibration_batches: {calibration_batches} must be 0 or more")
    if calibration_batches and run is None:
        raise UserError(
            "--calibration_batches: measures on the validation data of a run; give --run instead of --model"
        )
    if data and not calibration_batches:
        raise UserError(f"--data: {data} has no effect without --calibration_batches; leave it out")
    folded = from_source(run=run, model=model)
    require_finished(folded.manifest, unfinished)
    scales = scales_of(folded.manifest)
    if run is not None and calibration_batches:
        loader = validation_data(run_config(run, data)["data"], folded.model.config).val_dataloader()
        scales = _calibrated(folded.model, scales, islice(loader, calibration_batches), dtype)
    packed = pack(folded.model, format, dtype, scales)
    save_packed(packed, folded.tokenizer, output, overwrite, folded.manifest)
    _summarize(packed, output)


def _calibrated(
    model: PreTrainedModel, scales: dict[str, LayerScales], batches: Iterable[dict[str, Any]], dtype: Precision
) -> dict[str, LayerScales]:
    """The scales, with measured ranges of the inputs that need one and have none."""
    known = {name for name, layer in scales.items() if layer.largest_input is not None}
    names = [name for name in layers_of_static_inputs(model) if name not in known]
    if not names:
        raise UserError(
            "--calibration_batches: has no effect, quantization-aware training knows the ranges already; leave it out"
        )
    # fp8 has room for what is rare and large.
    largest = calibrate(model, map(model_inputs, batches), names, PERCENTILE if dtype == "int8" else 1.0)
    return scales | {
        name: replace(scales.get(name, LayerScales()), largest_input=value) for name, value in largest.items()
    }


def _summarize(model: PreTrainedModel, output: str) -> None:
    linears, sizes = packed_linears(model), packed_bytes(model)
    formats = [linear.format for linear in linears.values()]
    counted = ", ".join(f"{formats.count(format)} {format}" for format in dict.fromkeys(formats))
    console = Console(soft_wrap=True)
    console.print(
        f"{len(linears)} linears packed ({counted}): {sizes['packed'] / 1e6:.2f} MB, "
        f"in fp32 {sizes['dense'] / 1e6:.2f} MB; everything else {sizes['rest'] / 1e6:.2f} MB",
        markup=False,
    )
    last = {name: model.get_submodule(name) for name in layers_of_static_inputs(model)}
    open_ranges = [name for name, linear in last.items() if getattr(linear, "input_scale", None) is None]
    if open_ranges:
        console.print(
            f"{len(open_ranges)} linears after attention and activation have no range of their inputs, which costs a "
            "pass each: train with QuantAwareTraining, or give --calibration_batches",
            markup=False,
        )
    console.print(f"Saved as {output}", markup=False)
