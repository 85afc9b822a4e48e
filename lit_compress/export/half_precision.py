"""A folded model in 16-bit floating point, for Transformers or ONNX Runtime, compared with fp32 before it appears."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from lit_compress.choices import Half
from lit_compress.errors import UserError
from lit_compress.export.check import CheckOptions, Reference, Run, check_structure, reference
from lit_compress.export.graph_form import GraphForm
from lit_compress.export.onnx import (
    DEFAULTS,
    check_predictions,
    checked_run,
    float_form,
    layer_runner,
    prepare,
    structure,
)
from lit_compress.export.onnx_graph import input_names, trace
from lit_compress.models.folded import Folded
from lit_compress.models.hf_folder import write_hf
from lit_compress.models.load import quiet_transformers
from lit_compress.models.sentence_embedding import DENSE, give_embeddings
from lit_compress.runtimes.onnx_session import DEFAULT_SESSION

__all__ = ["HalfOptions", "write_hf_half", "write_onnx_half"]

_TORCH: dict[Half, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Largest difference of the median row from fp32 on random ids, as a fraction of the largest output: bf16 has 3 bits
# fewer.
TOLERANCES: dict[Half, float] = {"fp16": 0.02, "bf16": 0.15}
_ADVICE = "export in fp32"


@dataclass(frozen=True, kw_only=True)
class HalfOptions(CheckOptions):
    """What is asked of a model in 16-bit floating point.

    Attributes:
        dtype: of the weights and of what is computed from them.

    """

    dtype: Half


def write_hf_half(folded: Folded, folder: Path, options: HalfOptions) -> None:
    """Write what :func:`~lit_compress.models.hf_folder.write_hf` does with weights of 16 bits, as ``config.json`` says.

    Args:
        folded: what to write; not usable afterwards.
        folder: existing and empty.
        options: of the user.

    Raises:
        UserError: a weight is too large for the dtype, Transformers does not load the family in it, or the outputs
            differ from those of fp32.

    """
    form = GraphForm(folded.model, input_names(folded))
    outputs, expected = _in_fp32(form, options)
    _round(folded.model, options.dtype)
    write_hf(folded, folder)
    form.model = _loaded(type(folded.model), folder, options.dtype)

    @torch.no_grad()
    def run(inputs: Mapping[str, Any]) -> list[Tensor]:
        return list(form(*(torch.as_tensor(inputs[name]) for name in form.inputs)))

    def layers() -> Run:
        examples = options.examples
        assert examples is not None
        found = reference(form, replace(examples, batches=examples.batches[:1])).layers
        return lambda inputs: found

    check_structure(form, outputs, run, integers=True, most=TOLERANCES[options.dtype])
    if expected is not None:
        check_predictions(form, expected, folder, options, run, layers, _ADVICE)


def write_onnx_half(folded: Folded, folder: Path, options: HalfOptions) -> None:
    """Write ``onnx/model_fp16.onnx`` and the rest as :func:`~lit_compress.export.onnx.write_onnx`.

    Inputs are int64 and outputs fp32; weights, and what is computed from them, are fp16.

    Args:
        folded: what to write; not usable afterwards.
        folder: existing and empty.
        options: of the user, with fp16: ONNX Runtime computes no bf16 on a processor.

    Raises:
        UserError: a package is missing; else as :func:`write_hf_half`.

    """
    path = prepare(folded, folder, "model_fp16.onnx", DEFAULTS)
    outputs, expected = _in_fp32(GraphForm(folded.model, input_names(folded)), options)
    _round(folded.model, options.dtype)
    folded.model.set_attn_implementation("eager")  # torch.onnx writes the masks of the others in fp32
    form = float_form(folded)
    trace(form, path, DEFAULT_SESSION)
    run = checked_run(form, path, outputs, integers=True, most=TOLERANCES[options.dtype])
    if expected is not None:
        check_predictions(form, expected, folder, options, run, partial(layer_runner, form, path), _ADVICE)


def _rounded(model: PreTrainedModel) -> list[tuple[str, Parameter]]:
    """The parameters that get another dtype: all but those of a projection, which has a file of its own, in fp32."""
    return [(name, value) for name, value in model.named_parameters() if not name.startswith(f"{DENSE}.")]


def _loaded(architecture: type[PreTrainedModel], folder: Path, dtype: Half) -> PreTrainedModel:
    """The model as users get it: in the dtype that ``config.json`` says."""
    with quiet_transformers():
        model = architecture.from_pretrained(folder, use_safetensors=True)
    give_embeddings(model)
    for name, parameter in _rounded(model):
        if parameter.dtype != _TORCH[dtype]:
            raise UserError(
                f"export: Transformers loads {name!r} of a {architecture.__name__} in {parameter.dtype} whatever its "
                "file has, and does not compute with a mixture; export with --dtype fp32, or --to onnx"
            )
    return model


def _in_fp32(form: GraphForm, options: HalfOptions) -> tuple[list[tuple[Tensor, ...]], Reference | None]:
    """What the model gives before it is rounded, for random ids and for the examples."""
    return structure(form), reference(form, options.examples) if options.examples else None


@torch.no_grad()
def _round(model: PreTrainedModel, dtype: Half) -> None:
    """Put the parameters of a model in another dtype, in place; buffers are as ``from_pretrained`` makes them, fp32."""
    for name, parameter in _rounded(model):
        rounded = parameter.to(_TORCH[dtype])
        if not bool(rounded.isfinite().all()):
            raise UserError(
                f"export: {name!r} has {float(parameter.abs().max()):.3g}, and {dtype} holds at most "
                f"{torch.finfo(_TORCH[dtype]).max:.3g}; export with --dtype bf16 or fp32"
            )
        parameter.data = rounded
