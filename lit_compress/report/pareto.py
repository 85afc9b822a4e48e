"""Which of several runs are worth having: no other is at least as good in both ways and better in one."""

from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Numbers of the points that no other one beats, by rising cost.

    A point is beaten by one that costs no more and is worth no less, when one of the two is strictly so. Equal points
    do not beat each other. A NaN is on no front.

    Args:
        costs: less is better.
        values: more is better, as many.

    Example:
        >>> pareto_front([10.0, 5.0, 7.0, 5.0], [0.92, 0.90, 0.89, 0.88])
        [1, 0]

    """
    points = [(cost, value, number) for number, (cost, value) in enumerate(zip(costs, values, strict=True))]
    points = [point for point in points if point[0] == point[0] and point[1] == point[1]]
    front: list[tuple[float, float, int]] = []
    for cost, value, number in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1] or (cost, value) == front[-1][:2]:
            front.append((cost, value, number))
    return [number for *_, number in front]
