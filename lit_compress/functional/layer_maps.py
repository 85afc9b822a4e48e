"""Which layer of a teacher each layer of a student imitates; 0 is the embedding output, 1 the first layer."""

from collections.abc import Callable
from math import gcd

__all__ = ["LAYER_MAPS", "drop_multiples_map", "last_map", "skip_map", "uniform_map"]


def uniform_map(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Student layer ``i`` imitates teacher layer ``round(i * teacher_layers / student_layers)``; 0 imitates 0.

    Example:
        >>> uniform_map(3, 6)
        {0: 0, 1: 2, 2: 4, 3: 6}

    """
    return {i: round(i * teacher_layers / student_layers) for i in range(student_layers + 1)}


def last_map(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """The top layers of the teacher, in order; embeddings are free (PKD-Last, Sun et al. 2019, arXiv 1908.09355).

    Raises:
        ValueError: the teacher has fewer layers.

    Example:
        >>> last_map(3, 12)
        {1: 10, 2: 11, 3: 12}

    """
    _check_depth("last", student_layers, teacher_layers)
    return {i: teacher_layers - student_layers + i for i in range(1, student_layers + 1)}


def skip_map(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Every k-th layer of the teacher from the k-th on, k = teacher // student; embeddings are free (PKD-Skip).

    Raises:
        ValueError: the teacher has fewer layers.

    Example:
        >>> skip_map(5, 12)
        {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}

    """
    _check_depth("skip", student_layers, teacher_layers)
    every = teacher_layers // student_layers
    return {i: i * every for i in range(1, student_layers + 1)}


def drop_multiples_map(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """ROSITA's map (arXiv 2103.11367, official code): evenly if it divides, else without every so-many-th output.

    When the depths do not divide, those teacher outputs ``i`` (0 is the embedding output) are left out for which
    ``i + 1`` is a multiple of ``teacher_layers / student_layers``; the student's outputs imitate the rest in order.

    Raises:
        ValueError: that leaves another number of outputs than the student has.

    Example:
        >>> list(drop_multiples_map(8, 12).values())
        [0, 1, 3, 4, 6, 7, 9, 10, 12]

    """
    _check_depth("drop_multiples", student_layers, teacher_layers)
    if teacher_layers % student_layers == 0:
        return {i: i * teacher_layers // student_layers for i in range(student_layers + 1)}
    # The whole multiples of a fraction are the multiples of its reduced numerator.
    period = teacher_layers // gcd(student_layers, teacher_layers)
    kept = [i for i in range(teacher_layers + 1) if (i + 1) % period]
    if len(kept) != student_layers + 1:
        raise ValueError(
            f"'drop_multiples' keeps {len(kept) - 1} of {teacher_layers} layers, not {student_layers}; "
            "use 'uniform' or name the pairs"
        )
    return dict(enumerate(kept))


def _check_depth(name: str, student_layers: int, teacher_layers: int) -> None:
    if student_layers > teacher_layers:
        raise ValueError(
            f"{name!r} needs a teacher with at least {student_layers} layers, and it has {teacher_layers}; "
            "use 'uniform' or name the pairs"
        )


LAYER_MAPS: dict[str, Callable[[int, int], dict[int, int]]] = {
    "uniform": uniform_map,
    "last": last_map,
    "skip": skip_map,
    "drop_multiples": drop_multiples_map,
}
