"""What every format is written from: a plain model, what its layers have become, and its tokenizer."""

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_compress.errors import UserError
from lit_compress.models.fold import fold_in_place
from lit_compress.models.manifest_file import weight_of
from lit_compress.models.sentence_embedding import DENSE
from lit_compress.nn.manifest import Manifest
from lit_compress.storage.weight import QuantizedWeight

__all__ = ["Folded", "check_finite", "from_student", "stored_state", "use_student"]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A plain model, which a format's writer may change in place, and what its layers have become.

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
    return use_student(copy.deepcopy(student), tokenizer)


def check_finite(model: PreTrainedModel) -> None:
    """Raise a ``UserError`` that names the first weight with NaN or an infinity in it."""
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise UserError(
                f"export: {name!r} has NaN or infinite values, the training diverged; give an earlier checkpoint, or "
                "train with a lower model.optimization.learning_rate"
            )


def stored_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model by name, those that several modules share once, as a file of Transformers has them."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    state = model.state_dict()
    return {
        name: tensor
        for name, tensor in state.items()
        if name.partition(".")[0] != DENSE  # which has a file of its own
        and not (name in tied and tied[name] in state and state[tied[name]].data_ptr() == tensor.data_ptr())
    }


def use_student(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Folded:
    """Fold a student in its training form, in place."""
    manifest, weights = fold_in_place(student)
    check_finite(student)
    return Folded(model=student.eval(), manifest=manifest, tokenizer=tokenizer, weights=weights)
