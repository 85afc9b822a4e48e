"""Distillation terms: what a student's loss takes from its teacher, named entries of ``LitStudent.distillation``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional.distill import hidden_mse, logit_kl

__all__ = ["Distillation", "HiddenDistillation", "LogitDistillation"]


class Distillation(nn.Module):
    """Base of all terms: subclass it, return a scalar from ``forward``, and name the class in the YAML.

    Attributes:
        weight: factor of the term in the loss.
        hardness: share of the task loss that the term replaces, in [0, 1].
        needs_hidden_states: whether both models must return ``hidden_states``.

    """

    weight: float = 1.0
    hardness: float = 0.0
    needs_hidden_states: bool = False

    def forward(self, student: Any, teacher: Any, batch: dict[str, Tensor]) -> Tensor:
        """Loss term from both models' Hugging Face outputs and the batch they saw."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(student, teacher, batch)")


class LogitDistillation(Distillation):
    """Softened logits: ``hardness * T^2 KL(teacher || student)``, and ``1 - hardness`` of the task loss.

    Hinton et al. 2015 (arXiv 1503.02531) in SparseML's parametrisation.

    Args:
        hardness: 0 is the labels alone, 1 the teacher alone.
        temperature: softens both distributions; 1 to 5.5 in the papers.

    """

    def __init__(self, hardness: float = 0.5, temperature: float = 2.0) -> None:
        super().__init__()
        if not 0 <= hardness <= 1:
            raise UserError(f"distillation hardness: {hardness} must be in [0, 1]")
        if not temperature > 0:
            raise UserError(f"distillation temperature: {temperature} must be above 0")
        self.weight = self.hardness = hardness
        self.temperature = temperature

    def forward(self, student: Any, teacher: Any, batch: dict[str, Tensor]) -> Tensor:
        if student.logits.shape[-1] == 1:
            # One output is a regression: a softmax over it is constant, its natural imitation is the squared error.
            return (student.logits - teacher.logits).square().mean()
        mask = batch["attention_mask"] if student.logits.ndim == 3 else None
        return logit_kl(student.logits, teacher.logits, self.temperature, mask)


class HiddenDistillation(Distillation):
    """Hidden states: mean squared error between mapped layers, padding left out, mean over the pairs.

    Args:
        weight: factor of the term.
        layer_map: student index to teacher index into ``hidden_states`` (0 is the embedding output, 1 the first
            layer); None spreads the student's layers evenly over the teacher's, embedding to embedding.

    """

    needs_hidden_states = True

    def __init__(self, weight: float = 1.0, layer_map: dict[int, int] | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.layer_map = layer_map

    def forward(self, student: Any, teacher: Any, batch: dict[str, Tensor]) -> Tensor:
        pairs = self.layer_map or uniform_layer_map(len(student.hidden_states) - 1, len(teacher.hidden_states) - 1)
        terms = []
        for s, t in pairs.items():
            ours, theirs = _pick(student, s, "student"), _pick(teacher, t, "teacher")
            if ours.shape != theirs.shape:
                raise UserError(
                    f"distillation hidden: the student is {ours.shape[-1]} wide and the teacher {theirs.shape[-1]}; "
                    "this term needs equal widths, so remove it from model.distillation or take another teacher"
                )
            terms.append(hidden_mse(ours, theirs, batch["attention_mask"]))
        return sum(terms[1:], terms[0]) / len(terms)


def uniform_layer_map(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Student layer ``i`` imitates teacher layer ``round(i * teacher_layers / student_layers)``; 0 imitates 0.

    Example:
        >>> uniform_layer_map(3, 6)
        {0: 0, 1: 2, 2: 4, 3: 6}

    """
    return {i: round(i * teacher_layers / student_layers) for i in range(student_layers + 1)}


def label_weight(terms: Sequence[Distillation]) -> float:
    """Factor of the task loss: what the terms' hardness leaves of it.

    Raises:
        UserError: the terms replace more than all of it.

    """
    total = sum(term.hardness for term in terms)
    if total > 1 + 1e-9:  # shares such as 0.1 and 0.9 add up to a rounding error more
        raise UserError(f"model.distillation: the hardness of all terms adds up to {total}; at most 1 is allowed")
    return max(1.0 - total, 0.0)


def named_terms(terms: Mapping[str, nn.Module], key: str, taken: Iterable[str] = ()) -> nn.ModuleDict:
    """The terms as submodules, once their names are known to be usable as such and free.

    Raises:
        UserError: a name is taken by another part of the loss, has a dot, or is an attribute of every module.

    """
    for name in terms:
        if name in {"loss", "task", *taken}:
            raise UserError(f"{key}: the name {name!r} is taken; choose another")
        if "." in name or not name or hasattr(nn.ModuleDict(), name):
            raise UserError(f"{key}: {name!r} cannot be a name; choose another, without dots")
    return nn.ModuleDict(terms)


def _pick(output: Any, index: int, who: str) -> Tensor:
    if not -len(output.hidden_states) <= index < len(output.hidden_states):
        raise UserError(
            f"distillation layer_map: the {who} has no hidden state {index}; it has 0 (embeddings) "
            f"to {len(output.hidden_states) - 1}"
        )
    return output.hidden_states[index]
