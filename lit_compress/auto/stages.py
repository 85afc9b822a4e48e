"""The trainings of a family as the stages of a recipe: each an ordinary configuration of `fit`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_compress.choices import TrainerPrecision
from lit_compress.planning.structure import Structure

__all__ = ["TEACHER", "Training", "int8_stage", "member_stage", "momentum", "teacher_stage"]

TEACHER = "teacher"
# Fractions of a training: until when heads and neurons go, and from when on it computes with integers.
_CUT, _PRUNINGS = 0.3, 5
_QUANTIZE, _FREEZE = 0.6, 0.9
_BITS = 7  # correct and fast on every processor


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all trainings of a family have in common.

    Args:
        data: the `data` section of each.
        seed: of each.
        learning_rate: of a dense model; a pruned one takes three times as much.
        label_map: names of the model's classes -> labels of the data, where they differ.
        embeds: whether the model makes vectors of texts, and no logits.
        precision: of each, as Lightning's Trainer names it.

    """

    data: Mapping[str, Any]
    seed: int
    learning_rate: float
    label_map: Mapping[str, str | int] | None = None
    embeds: bool = False
    precision: TrainerPrecision = "32-true"


def teacher_stage(training: Training, model: str, steps: int) -> dict[str, Any]:
    """Fine-tune a pretrained encoder.

    Args:
        training: see :class:`Training`.
        model: folder or hub name.
        steps: of the optimizer.

    """
    options = {"pretrained": model, "optimization": {"learning_rate": training.learning_rate, "warmup": "10%"}}
    return _stage(training, {"class_path": "LitTeacher", "init_args": options}, [], steps)


def int8_stage(training: Training, teacher: str, steps: int) -> dict[str, Any]:
    """Put the teacher itself on integers: ranges are observed while its weights adapt a little.

    Args:
        training: see :class:`Training`.
        teacher: the model, as a stage names it.
        steps: of the optimizer, few.

    """
    model = _student(training, training.learning_rate / 5, teacher, teacher, None)
    return _stage(training, model, [_quantization(0.0, 0.5, steps)], steps)


def member_stage(
    training: Training,
    previous: tuple[str, Structure],
    teacher: str,
    structure: Structure,
    steps: int,
    int8: bool,
) -> dict[str, Any]:
    """Make a member of the one before: layers go at once, heads and neurons in the first third, then it learns.

    Args:
        training: see :class:`Training`.
        previous: the model that it begins with, as a stage names it, and its structure.
        teacher: the dense model, as a stage names it.
        structure: what is to be left; nothing that is not in the previous one.
        steps: of the optimizer.
        int8: whether it computes with integers in the end.

    """
    source, before = previous
    # Each remaining layer imitates the teacher's layer that it comes from.
    layers = {0: 0} | {place: index + 1 for place, index in enumerate(structure.kept, 1)}
    strategies = _cuts(before, structure, steps)
    if int8:
        strategies.append(_quantization(_QUANTIZE, _FREEZE, steps))
    model = _student(training, 3 * training.learning_rate, source, teacher, layers)
    return _stage(training, model, strategies, steps)


def momentum(steps: float) -> float:
    """Fraction of the newest batch in a moving-average range, so that 99 % of it comes from these steps; 0.01 or more.

    Example:
        >>> momentum(1000), round(momentum(30), 3)
        (0.01, 0.142)

    """
    return max(0.01, round(1 - 0.01 ** (1 / max(steps, 1)), 3))


def _cuts(before: Structure, structure: Structure, steps: int) -> list[dict[str, Any]]:
    """Strategies that take away what the structure before has too much."""
    strategies: list[dict[str, Any]] = []
    if structure.kept != before.kept:
        keep = [before.kept.index(layer) for layer in structure.kept]
        strategies.append({"class_path": "LayerDropping", "init_args": {"keep": keep}})
    shapes = [shape for shape in before.layers if shape is not None]
    had = [shapes[before.kept.index(layer)] for layer in structure.kept]
    widths: dict[str, Any] = {}
    if [shape.heads for shape in had] != (heads := [shape.heads for shape in structure.shapes]):
        widths["heads"] = heads
    if [shape.neurons for shape in had] != (neurons := [shape.neurons for shape in structure.shapes]):
        widths["neurons"] = neurons
    if widths:
        options = widths | {"pruning_steps": min(_PRUNINGS, max(int(_CUT * steps), 1)), "end": f"{_CUT:.0%}"}
        strategies.append({"class_path": "StructuredPruning", "init_args": options})
    if structure.rank != before.rank:
        strategies.append({"class_path": "LowRankEmbedding", "init_args": {"rank": structure.rank}})
    return strategies


def _quantization(start: float, freeze: float, steps: int) -> dict[str, Any]:
    options = {
        "start": f"{start:.0%}",
        "freeze_observers": f"{freeze:.0%}",
        "weight_bits": _BITS,
        "momentum": momentum((freeze - start) * steps),
    }
    return {"class_path": "QuantAwareTraining", "init_args": options}


def _student(
    training: Training, learning_rate: float, source: str, teacher: str, layers: dict[int, int] | None
) -> dict[str, Any]:
    distillation: dict[str, Any] = (
        {"kd": {"class_path": "EmbeddingDistillation"}}
        if training.embeds
        else {"kd": {"class_path": "LogitDistillation", "init_args": {"hardness": 0.9, "temperature": 2.0}}}
    )
    if layers is not None:
        distillation["hidden"] = {"class_path": "HiddenDistillation", "init_args": {"layer_map": layers}}
    options = {
        "pretrained": source,
        "teacher": teacher,
        "distillation": distillation,
        "optimization": {"learning_rate": round(learning_rate, 8), "warmup": "5%"},
    }
    return {"class_path": "LitStudent", "init_args": options}


def _stage(training: Training, model: dict[str, Any], strategies: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    if training.label_map:
        model["init_args"]["label_map"] = dict(training.label_map)
    settings: dict[str, Any] = {
        "seed_everything": training.seed,
        "model": model,
        "data": dict(training.data),
        "trainer": {"max_steps": steps, "max_epochs": -1},  # however many epochs that is
    }
    if training.precision != "32-true":  # which a stage is in without being told
        settings["trainer"]["precision"] = training.precision
    return settings | ({"compression": strategies} if strategies else {})
