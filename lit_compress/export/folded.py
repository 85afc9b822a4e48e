"""What every format is written from: a plain model, what its layers have become, and its tokenizer."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_compress.data.text import load_tokenizer
from lit_compress.errors import UserError
from lit_compress.export.checkpoint import last_checkpoint, load_checkpoint, student_from_checkpoint
from lit_compress.export.fold import fold_in_place, shrink_in_place
from lit_compress.export.manifest_file import (
    MANIFEST_FILE,
    UNFINISHED,
    check_unfinished,
    manifest_with_scales,
    read_manifest,
)
from lit_compress.export.run_folder import run_tokenizer
from lit_compress.models.packed import packed_linears
from lit_compress.models.whole import load_whole_model
from lit_compress.nn.manifest import Manifest

__all__ = ["Folded", "IntegerWeight", "check_finite", "from_source", "from_student", "integer_weight", "stored_state"]


@dataclass(frozen=True, kw_only=True)
class IntegerWeight:
    """A weight on its grid: ``weight == (values - zero_point) * scale``, exactly.

    Attributes:
        values: int8, or uint8 where there is a zero point; shape of the weight.
        scale: fp32, one per row ``(rows, 1)`` or one for all ``(1, 1)``.
        zero_point: of an affine grid, else 0.
        bits: width of the integers.

    """

    values: Tensor
    scale: Tensor
    zero_point: int = 0
    bits: int = 8

    def weight(self) -> Tensor:
        """The weight in fp32."""
        return self.values.float().sub_(self.zero_point).mul_(self.scale)


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A plain model and its manifest with scales, as in ``compression.json``; the model may be used up by a format."""

    model: PreTrainedModel
    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase

    def entries(self) -> dict[str, dict[str, Any]]:
        """Manifest entries of linears and embedding tables, by module name."""
        return self.manifest.get("linears", {}) | self.manifest.get("embeddings", {})


def from_student(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Folded:
    """Fold a student in its training form; it is not changed."""
    return _fold_in_place(copy.deepcopy(student), tokenizer)


def from_source(run: str | None = None, checkpoint: str | None = None, model: str | None = None) -> Folded:
    """What a run folder, a checkpoint file or a Hugging Face folder holds; give one of the three.

    Raises:
        UserError: not exactly one, or nothing usable there.

    """
    if sum(source is not None for source in (run, checkpoint, model)) != 1:
        raise UserError("export: give one of --run, --checkpoint and --model")
    if model is not None:
        loaded = load_whole_model(model, "--model")
        if packed_linears(loaded):
            raise UserError(f"--model: {model!r} is packed already; give the run or the folder that it was made from")
        check_finite(loaded)
        tokenizer = load_tokenizer(model, "--model")
        return Folded(model=loaded, manifest=read_manifest(Path(model), loaded), tokenizer=tokenizer)
    if checkpoint is not None:
        path, content = Path(checkpoint), load_checkpoint(checkpoint)
    else:
        path, content = last_checkpoint(run or "")
    kept = run_tokenizer(path.parent.parent) if path.parent.name == "checkpoints" else None
    source = content["lit_compress"]
    words = source["architecture"].endswith("ForTokenClassification")  # as the data module reads it
    tokenizer = load_tokenizer(kept or source["tokenizer"], "checkpoint tokenizer", words)
    student = student_from_checkpoint(content)
    try:
        left = check_unfinished(content["lit_compress"].get(UNFINISHED, []))
    except ValueError as error:
        raise UserError(f"checkpoint: {str(path)!r} is damaged: {error}; use another one") from error
    del content  # a second copy of the weights, and the optimizer's state
    folded = _fold_in_place(student, tokenizer)
    return replace(folded, manifest=folded.manifest | {UNFINISHED: left}) if left else folded


def check_finite(model: PreTrainedModel) -> None:
    """Raise a ``UserError`` that names the first weight with NaN or an infinity in it."""
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise UserError(
                f"export: {name!r} has NaN or infinite values, the training diverged; give an earlier checkpoint, or "
                "train with a lower model.optimization.learning_rate"
            )


def integer_weight(name: str, weight: Tensor, entry: dict[str, Any] | None) -> IntegerWeight | None:
    """The integers of a weight; None when its manifest entry says that it is not quantized.

    Args:
        name: of the module, for errors.
        weight: folded, ``(rows, columns)``.
        entry: of the manifest.

    Raises:
        UserError: the weight does not lie on the grid of the entry; it was changed afterwards.

    """
    scales = (entry or {}).get("scales", {}).get("weight")
    if entry is None or scales is None:
        return None
    zero_point = entry["scales"].get("weight_zero_point", 0)
    affine = "weight_zero_point" in entry["scales"]
    bits = int(entry["weight_quantizer"]["spec"].get("bits", 8))
    low, high = (0, 2**bits - 1) if affine else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    scale = torch.tensor(scales, dtype=torch.float32).reshape(-1, 1)
    values = (weight.detach().float() / scale).round_().add_(zero_point)
    if bits > 8 or not ((values >= low) & (values <= high)).all():
        raise UserError(
            f"{MANIFEST_FILE}: {name!r} does not lie on the {bits}-bit grid it is said to; remove its entry"
        )
    integers = IntegerWeight(
        values=values.to(torch.uint8 if affine else torch.int8), scale=scale, zero_point=zero_point, bits=bits
    )
    if not torch.equal(integers.weight(), weight.detach().float()):
        raise UserError(f"{MANIFEST_FILE}: {name!r} was changed after it was quantized; remove its entry")
    return integers


def stored_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model by name, those that several modules share once, as a file has them."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    state = model.state_dict()
    return {
        name: tensor
        for name, tensor in state.items()
        if not (name in tied and tied[name] in state and state[tied[name]].data_ptr() == tensor.data_ptr())
    }


def _fold_in_place(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Folded:
    shrink_in_place(student)
    manifest = manifest_with_scales(student)  # while there are quantizers to ask
    fold_in_place(student)
    check_finite(student)
    return Folded(model=student.eval(), manifest=manifest, tokenizer=tokenizer)
