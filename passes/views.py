"""x[b,h,j,d] = y[f(b,h,j,d)]: the tensors that hold the same elements, one step upstream at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sympy
import torch
from torch.fx import Node

from .denote import VIEWS, Evaluator
from .rules import At, operator_name

CASTS = ("_to_copy", "convert_element_type")

Place = tuple[Node, tuple[sympy.Basic, ...]]


def is_layout(node: Node) -> bool:
    """Whether the operator only moves, copies or casts elements."""
    return operator_name(node) in VIEWS or operator_name(node) in CASTS


def peel(evaluator: Evaluator, node: Node, index: Sequence[sympy.Basic]) -> Iterator[Place]:
    """(node, index), and then each place upstream where the same element is found; a cast between floats is passed too."""
    place: Place | None = (node, evaluator.canonical(node, index))
    while place is not None:
        yield place
        place = step(evaluator, *place)


def step(evaluator: Evaluator, node: Node, index: tuple[sympy.Basic, ...]) -> Place | None:
    """One place upstream; None where the element is computed."""
    name = operator_name(node)
    if name in CASTS:
        source: object = node.args[0]
        moved: Sequence[sympy.Basic] | None = index
        if not all(isinstance(x, Node) and x.meta["val"].dtype.is_floating_point for x in (source, node)):
            return None
    elif name in VIEWS:
        at = At(evaluator, node, index, evaluator.arguments(node))
        source, moved = at.source, VIEWS[name](at)
    else:
        return None
    if moved is None:
        return None
    assert isinstance(source, Node) and isinstance(source.meta["val"], torch.Tensor)
    return source, evaluator.canonical(source, moved)
