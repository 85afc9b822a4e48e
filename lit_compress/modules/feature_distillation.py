"""Distillation terms that look inside both models: hidden states, attention maps, self-attention relations."""

from collections.abc import Sequence
from math import gcd
from typing import Any, Literal

from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional.distill import attention_kl, attention_mse, hidden_mse, relation_kl
from lit_compress.functional.layer_maps import LAYER_MAPS
from lit_compress.modules.distillation import Distillation, projection_to
from lit_compress.tasks import Batch

__all__ = ["AttentionDistillation", "HiddenDistillation", "RelationDistillation"]

LayerMap = dict[int, int] | Literal["uniform", "last", "skip", "drop_multiples"]

_ATTENTION_LOSSES = {"mse": attention_mse, "kl": attention_kl}
_PROJECTIONS = ("query", "key", "value")


class HiddenDistillation(Distillation):
    """Hidden states: mean squared error between mapped layers, padding left out, mean over the pairs.

    Args:
        weight: factor of the term.
        layer_map: student index to teacher index into ``hidden_states`` (0 is the embedding output, 1 the first
            layer), or a rule: ``uniform`` spreads the student's layers evenly over the teacher's, embedding to
            embedding; ``last`` takes the teacher's top layers, ``skip`` every k-th (BERT-PKD); ``drop_multiples`` is
            ROSITA's.
        projection: a learned matrix, one for all pairs, from the student's width to the teacher's; it is trained with
            the student and is not part of what is exported.
        normalize: divide each pair by the teacher's mean square (SparseML's per-layer distillation).
        reduction: ``mean`` or ``sum`` over the pairs (ROSITA sums).
        mask_padding: leave padding out; ROSITA's official code does not.
        teacher: name of the teacher to use; None averages over all.

    """

    needs_hidden_states = True

    def __init__(
        self,
        weight: float = 1.0,
        layer_map: LayerMap = "uniform",
        projection: bool = False,
        normalize: bool = False,
        reduction: Literal["mean", "sum"] = "mean",
        mask_padding: bool = True,
        teacher: str | None = None,
    ) -> None:
        super().__init__(weight)
        _check_layer_map(layer_map)
        _check_choice("reduction", reduction, ("mean", "sum"))
        self.project, self.normalize = projection, normalize
        self.layer_map: LayerMap = layer_map
        self.reduction, self.mask_padding, self.teacher = reduction, mask_padding, teacher
        self.projection: nn.Linear | None = None

    def prepare(self, student: Any, teachers: Sequence[Any]) -> None:
        if self.project:
            self.projection = projection_to(student.hidden_size, (teacher.hidden_size for teacher in teachers))
        else:
            for teacher in teachers:
                _check_widths(student.hidden_size, teacher.hidden_size)

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        pairs = _pairs(self.layer_map, len(student.hidden_states) - 1, len(teacher.hidden_states) - 1)
        mask = batch.inputs["attention_mask"] if self.mask_padding else None
        terms = []
        for s, t in pairs.items():
            ours, theirs = _hidden_state(student, s, "student"), _hidden_state(teacher, t, "teacher")
            if self.projection is not None:
                ours = self.projection(ours)
            _check_widths(ours.shape[-1], theirs.shape[-1])
            terms.append(hidden_mse(ours, theirs, mask, self.normalize))
        total = sum(terms[1:], terms[0])
        return total / len(terms) if self.reduction == "mean" else total


class AttentionDistillation(Distillation):
    """Attention maps: how far the student's attention probabilities are from the teacher's, mean over mapped layers.

    Both models compute their probabilities explicitly, which is slower and takes more memory than a fused kernel; the
    student's are those before dropout, and before :class:`~lit_compress.strategies.QuantAwareTraining` rounds them.

    Args:
        weight: factor of the term.
        loss: ``mse``, or ``kl`` of the distributions (MiniLM, arXiv 2002.10957, with ``layer_map: {-1: -1}``).
        layer_map: student layer to teacher layer (1 is the first, -1 the last), or a rule as in
            :class:`HiddenDistillation`, without the embeddings.
        heads: ``match`` compares head by head and needs equal numbers; ``mean`` averages over the heads first.
        teacher: name of the teacher to use; None averages over all.

    """

    needs_attentions = True

    def __init__(
        self,
        weight: float = 1.0,
        loss: Literal["mse", "kl"] = "mse",
        layer_map: LayerMap = "uniform",
        heads: Literal["match", "mean"] = "match",
        teacher: str | None = None,
    ) -> None:
        super().__init__(weight)
        _check_layer_map(layer_map)
        _check_choice("loss", loss, tuple(_ATTENTION_LOSSES))
        _check_choice("heads", heads, ("match", "mean"))
        self.loss, self.heads, self.teacher = loss, heads, teacher
        self.layer_map: LayerMap = layer_map

    def prepare(self, student: Any, teachers: Sequence[Any]) -> None:
        if self.heads == "match":
            for teacher in teachers:
                _check_heads(student.num_attention_heads, teacher.num_attention_heads)

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        for output, who in ((student, "student"), (teacher, "teacher")):
            if not output.attentions:
                raise UserError(f"distillation: the {who} returns no attention maps; remove this term")
        pairs = _pairs(self.layer_map, len(student.attentions), len(teacher.attentions))
        # Only a rule names embeddings without being asked: they have no attention.
        if not isinstance(self.layer_map, dict):
            pairs.pop(0, None)
        terms = []
        for s, t in pairs.items():
            ours, theirs = _attention_map(student, s, "student"), _attention_map(teacher, t, "teacher")
            if self.heads == "mean":
                ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
            _check_heads(ours.shape[1], theirs.shape[1])
            terms.append(_ATTENTION_LOSSES[self.loss](ours, theirs, batch.inputs["attention_mask"]))
        return sum(terms[1:], terms[0]) / len(terms)


class RelationDistillation(Distillation):
    """Self-attention relations of one layer: how similar the tokens' queries, keys and values are to each other.

    MiniLMv2 (Wang et al. 2020, arXiv 2012.15828): needs equal vocabularies, and neither equal widths nor equal numbers
    of attention heads. With ``relations: [value]`` and the models' number of heads it is the value relation of MiniLM
    (arXiv 2002.10957), which is used together with an :class:`AttentionDistillation` with ``loss: kl``.

    Args:
        weight: factor of the term, the sum over the relations.
        relations: any of ``query``, ``key``, ``value``.
        relation_heads: into how many parts the vectors are cut; divides both widths.
        student_layer: layer of the student, 1 is the first, -1 the last.
        teacher_layer: layer of the teacher; an upper one below the last may be the better for a deep teacher.
        teacher: name of the teacher to use; None averages over all.

    """

    def __init__(
        self,
        weight: float = 1.0,
        relations: Sequence[Literal["query", "key", "value"]] = _PROJECTIONS,
        relation_heads: int = 48,
        student_layer: int = -1,
        teacher_layer: int = -1,
        teacher: str | None = None,
    ) -> None:
        super().__init__(weight)
        if not relations or set(relations) - set(_PROJECTIONS) or len(set(relations)) < len(relations):
            raise UserError(f"distillation relations: {list(relations)} must be one or more of query, key, value")
        if relation_heads < 1:
            raise UserError(f"distillation relation_heads: {relation_heads} must be at least 1")
        self.relations, self.relation_heads, self.teacher = relations, relation_heads, teacher
        self.needs_projections = (student_layer, teacher_layer)

    def prepare(self, student: Any, teachers: Sequence[Any]) -> None:
        for teacher in teachers:
            _check_relation_heads(self.relation_heads, student.hidden_size, teacher.hidden_size)

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        assert self.needs_projections is not None
        student_layer, teacher_layer = self.needs_projections
        found = student.projections[student_layer], teacher.projections[teacher_layer]
        mask, terms = batch.inputs["attention_mask"], []
        for name in self.relations:
            ours, theirs = (each[name][:, : mask.shape[1]] for each in found)
            _check_relation_heads(self.relation_heads, ours.shape[-1], theirs.shape[-1])
            terms.append(relation_kl(ours, theirs, self.relation_heads, mask))
        return sum(terms[1:], terms[0])


def _pairs(layer_map: LayerMap, student_layers: int, teacher_layers: int) -> dict[int, int]:
    if isinstance(layer_map, dict):
        return layer_map
    try:
        return LAYER_MAPS[layer_map](student_layers, teacher_layers)
    except ValueError as error:
        raise UserError(f"distillation layer_map: {error}") from error


def _hidden_state(output: Any, index: int, who: str) -> Tensor:
    if not -len(output.hidden_states) <= index < len(output.hidden_states):
        raise UserError(
            f"distillation layer_map: the {who} has no hidden state {index}; it has 0 (embeddings) "
            f"to {len(output.hidden_states) - 1}"
        )
    return output.hidden_states[index]


def _attention_map(output: Any, index: int, who: str) -> Tensor:
    layers = len(output.attentions)
    if index == 0 or not -layers <= index <= layers:
        raise UserError(
            f"distillation layer_map: the {who} has no attention map {index}; it has 1 (first layer) to {layers}"
        )
    return output.attentions[index - 1 if index > 0 else index]


def _check_layer_map(layer_map: LayerMap) -> None:
    if not isinstance(layer_map, dict):
        _check_choice("layer_map", layer_map, tuple(LAYER_MAPS))
    elif not layer_map:
        raise UserError("distillation layer_map: {} has no pair; name one, or remove the term")


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"distillation {key}: {value!r} must be one of {', '.join(allowed)}")


def _check_widths(student: int, teacher: int) -> None:
    if student != teacher:
        raise UserError(
            f"distillation hidden: the student is {student} wide and the teacher {teacher}; "
            "set projection to true, or use another teacher"
        )


def _check_heads(student: int, teacher: int) -> None:
    if student != teacher:
        raise UserError(
            f"distillation heads: the student has {student} attention heads and the teacher {teacher}; "
            "set heads to mean, or use RelationDistillation"
        )


def _check_relation_heads(heads: int, student: int, teacher: int) -> None:
    both = gcd(student, teacher)
    if both % heads:
        usable = [n for n in range(1, both + 1) if both % n == 0]
        raise UserError(
            f"distillation relation_heads: {heads} does not divide both widths, {student} of the student and {teacher} "
            f"of the teacher; usable are {', '.join(map(str, usable))}"
        )
