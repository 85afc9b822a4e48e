"""What every format is written from: a plain model, what its layers have become, and its tokenizer."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_compress.data.text import load_tokenizer
from lit_compress.errors import UserError
from lit_compress.export.checkpoint import last_checkpoint, load_checkpoint, student_from_checkpoint
from lit_compress.export.run_folder import run_tokenizer
from lit_compress.models.fold import fold_in_place
from lit_compress.models.folder import load_whole_model
from lit_compress.models.manifest_file import (
    UNFINISHED,
    check_unfinished,
    read_manifest,
    weight_of,
)
from lit_compress.models.packed import packed_linears
from lit_compress.nn.manifest import Manifest
from lit_compress.sources import resolve_package
from lit_compress.storage.weight import QuantizedWeight
from lit_compress.tasks import TokenClassificationTask

__all__ = ["Folded", "check_finite", "from_source", "from_student", "stored_state"]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A plain model, used up by a format, and what its layers have become.

    Attributes:
        model: with plain layers, whose weights are quantized already.
        manifest: with scales, as in ``compression.json``.
        tokenizer: of the model.
        weights: integers of linears and tables by module name, as their layers made them; those of a folder are found
            when a format asks for them, see :meth:`quantized`.

    """

    model: PreTrainedModel
    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)

    def quantized(self, name: str) -> QuantizedWeight | None:
        """The integers of a module's weight; None when it is not quantized.

        Raises:
            UserError: a folder's weight is not quantized with the scale that its ``compression.json`` gives.

        """
        if name not in self.weights:
            weight = weight_of(name, self.model.get_parameter(f"{name}.weight"), self.entries().get(name))
            if weight is not None:
                self.weights[name] = weight
        return self.weights.get(name)

    def take(self, name: str) -> QuantizedWeight | None:
        """:meth:`quantized`, not kept any longer: for formats that put the integers in the weight's place."""
        weight = self.quantized(name)
        self.weights.pop(name, None)
        return weight

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
        model = resolve_package(model, "--model")
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
    words = source["architecture"].endswith(TokenClassificationTask.architectures)  # as the data module reads it
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
    manifest, weights = fold_in_place(student)
    check_finite(student)
    return Folded(model=student.eval(), manifest=manifest, tokenizer=tokenizer, weights=weights)
