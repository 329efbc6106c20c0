"""Where a softmax may stand in a graph: called, exp over its own sum, or exp of a difference from a log-sum-exp.

Needs: the functional graph. Keeps: everything; the candidates are only named here, `find_softmax` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from .views import is_layout

aten = torch.ops.aten
CASTS = (torch.ops.prims.convert_element_type.default, aten._to_copy.default, aten.clone.default)
_DIFFERENCES = (aten.sub.Tensor, aten.add.Tensor)


@dataclass(frozen=True)
class Core:
    """A softmax: `weights` = softmax of `logits` over its dimension `dim` (negative).

    `logarithm`, if weights = exp(z - log total): (z, total = sum exp(logits)); a softmax only where z is logits, which is
    for the evaluator to prove.
    """

    weights: Node
    logits: Node
    dim: int
    logarithm: tuple[Node, Node] | None = None


def cores(graph: Graph) -> Iterator[Core]:
    """Every softmax in the graph, spelled out or called."""
    for node in graph.nodes:
        if node.target is aten._softmax.default:
            yield Core(node, node.args[0], _from_end(node.args[0], node.args[1]))
        elif node.target is aten.sum.dim_IntList and len(node.args[1]) == 1:
            yield from _spelled_out(node)
            yield from _by_logarithm(node)


def _spelled_out(total: Node) -> Iterator[Core]:
    exp = _uncast(total.args[0])
    if exp.target is not aten.exp.default:
        return
    for node in _through(total):
        for user in node.users:
            if user.target is aten.div.Tensor and user.args[1] is node and _uncast(user.args[0]) is exp:
                yield Core(user, exp.args[0], _from_end(exp, total.args[1][0]))
            elif user.target is aten.reciprocal.default:
                for weights in (w for one in _through(user) for w in one.users):
                    if weights.target is aten.mul.Tensor and exp in map(_uncast, weights.args[:2]):
                        yield Core(weights, exp.args[0], _from_end(exp, total.args[1][0]))


def _by_logarithm(total: Node) -> Iterator[Core]:
    """exp of something that the logarithm of the sum goes into by additions alone: logsumexp, log_softmax."""
    exp = _uncast(total.args[0])
    if exp.target is not aten.exp.default:
        return
    for log in (user for one in _through(total) for user in one.users if user.target is aten.log.default):
        for end in _sums(log):
            for weights in (user for user in end.users if user.target is aten.exp.default):
                yield Core(weights, exp.args[0], _from_end(exp, total.args[1][0]), (end, total))


def _sums(log: Node) -> Iterator[Node]:
    """What the node goes into by additions, subtractions and rearrangement."""
    pending, seen = [log], {log}
    while pending:
        node = pending.pop()
        yield node
        for user in node.users:
            if user not in seen and (user.target in _DIFFERENCES or is_layout(user)):
                seen.add(user)
                pending.append(user)


def _uncast(node: Node) -> Node:
    while node.target in CASTS:
        node = node.args[0]
    return node


def _through(node: Node) -> Iterator[Node]:
    """The node, and what is only a cast, copy or broadcast of it."""
    yield node
    for user in node.users:
        if user.target in (*CASTS, aten.expand.default):
            yield from _through(user)


def _from_end(node: Node, dim: int) -> int:
    return dim if dim < 0 else dim - node.meta["val"].dim()
