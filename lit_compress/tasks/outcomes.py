"""What a model did on each unit of the validation data, in a form whose metrics can be computed for any resample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

__all__ = ["Outcomes", "Scores", "array", "class_scores", "divide", "f1_of", "mean_of_known"]

Scores = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """A model's answers to the units that a resample draws: rows, sentences, questions or sequences.

    Attributes:
        unit: what a unit is called, in the plural.
        lengths: int ``(units,)``, of each unit's input.
        length_unit: what it is counted in.
        score: weights ``(resamples, units)``, how often each unit was drawn, to metric to ``(resamples,)``; the names
            and conventions are those of the task's metrics.
        score_classes: the same for each class: to class to metric; None where a task has no classes.
        class_units: how many units (or entities) each class has.
        confidence: of the predicted class, ``(units,)``; None where there are no probabilities.
        right: bool ``(units,)``, whether the answer is right; None where answers are not right or wrong.
        share: the metric that is the fraction of correct predictions, and its value when all are; None where there is
            none.
        goodness: how good each answer is, ``(units,)``, more is better; what says whether it became better or worse.
        constant: what every unit is answered with, when that is the same thing although it should not be.
        majority: the most frequent class and its share, the accuracy of a model that knows nothing.
        slices: name to bool ``(units,)``, in addition to the slices by length.
        tuned: option of the data module to the value that is best on these units.
        answers: of each unit, a text, a number or a tag for each word; empty where they say nothing to a reader.
        gold: the right answers, in the same form.
        examples: number of the first example of each unit, in the order of the data; None where each is a unit.

    """

    unit: str
    lengths: np.ndarray
    score: Callable[[np.ndarray], Scores]
    length_unit: str = "tokens"
    score_classes: Callable[[np.ndarray], dict[str, Scores]] | None = None
    class_units: Mapping[str, int] = field(default_factory=dict)
    confidence: np.ndarray | None = None
    right: np.ndarray | None = None
    share: tuple[str, float] | None = None
    goodness: np.ndarray | None = None
    constant: str | None = None
    majority: tuple[str, float] | None = None
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)
    tuned: Mapping[str, float] = field(default_factory=dict)
    answers: Sequence[str] | Sequence[float] | Sequence[list[str]] = ()
    gold: Sequence[str] | Sequence[float] | Sequence[list[str]] = ()
    examples: Sequence[int] | None = None


def class_scores(sums: np.ndarray, names: Sequence[str]) -> Callable[[np.ndarray], dict[str, Scores]]:
    """Recall, precision and F1 of each class from ``(units, 3 * classes)``: right, predicted and true ones."""

    def score(weights: np.ndarray) -> dict[str, Scores]:
        hits, found, true = np.split(weights @ sums, 3, axis=1)
        parts = {"recall": divide(hits, true), "precision": divide(hits, found), "f1": f1_of(hits, found, true)}
        return {name: {key: values[:, index] for key, values in parts.items()} for index, name in enumerate(names)}

    return score


def f1_of(hits: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F1 from the numbers of right, predicted and true ones; NaN where there are none."""
    return divide(2 * hits, found + true)


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by, silently."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is a number."""
    known = ~np.isnan(values)
    return divide(np.where(known, values, 0).sum(1), known.sum(1))


def array(tensor: Tensor) -> np.ndarray:
    """A tensor on the host, without its gradient."""
    return tensor.detach().cpu().numpy()
