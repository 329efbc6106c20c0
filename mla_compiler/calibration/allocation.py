"""max Σ left out, with Σ cost <= budget        over one value for each layer

By Lagrange: for a price each layer takes for itself the value with the greatest (left out - price * cost); the price is the
lowest at which the costs together keep to the budget. What is left of the budget goes to whichever layer can still leave out
most for it, as long as one can.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..sparsity import EXACTLY, Sparsity
from .curves import Curve, Point

NOTHING = Point(EXACTLY, (0, 0), 0.0)
STEPS = 80
"""Halvings of the range of prices, in its logarithm."""


def allocate(curves: Sequence[Curve], budget: float) -> dict[str, Sparsity]:
    """The policy of each layer; budget in nats a token."""
    low, high = -100.0, 100.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(curves, _at(curves, middle)) <= budget else (middle, high)
    chosen = _at(curves, high)
    while better := _step(curves, chosen, budget - cost(curves, chosen)):
        chosen[better[0]] = better[1]
    return {curve.layer: point.policy for curve, point in zip(curves, chosen, strict=True)}


def cost(curves: Sequence[Curve], chosen: Sequence[Point]) -> float:
    return sum(curve.weight * point.error for curve, point in zip(curves, chosen, strict=True))


def _at(curves: Sequence[Curve], log_price: float) -> list[Point]:
    """What each layer takes; of equals the cheaper, which comes first. 2^log_price FLOPs a nat, of all layers' FLOPs."""
    whole = sum(curve.points[0].flops[0] for curve in curves) or 1

    def worth(curve: Curve, point: Point) -> float:
        return float(point.flops[1] / whole - 2.0**log_price * curve.weight * point.error)

    return [max((NOTHING, *curve.points), key=lambda point, curve=curve: worth(curve, point)) for curve in curves]  # type: ignore[misc]


def _step(curves: Sequence[Curve], chosen: Sequence[Point], left: float) -> tuple[int, Point] | None:
    """(layer, point): the change of one layer that leaves out most more at a cost of at most `left`; None if there is none."""
    found = [
        (point.flops[1] - own.flops[1], at, point) for at, (curve, own) in enumerate(zip(curves, chosen, strict=True))
        for point in curve.points if point.flops[1] > own.flops[1] and curve.weight * (point.error - own.error) <= left]
    return max(found, key=lambda each: each[0])[1:] if found else None
