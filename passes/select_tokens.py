"""visible = M[b, i, j] and ...   where M = full(false).scatter(-1, topk, true)  =>  tokens = topk[b, i, :], visible = ...

DeepSeek's sparse attention chooses the keys of each query by their scores and then writes a dense mask. Read back, the mask
says j ∈ topk[b, i, :]: the chosen keys are all that has to be read. A choice of every key is no condition at all.

Needs: the spec's residue. Keeps: which keys are visible. The indices of one topk are distinct, so no key is chosen twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import AttentionSpec
from .attention import Attention, d, size_of
from .build import Builder
from .denote import Evaluator
from .fold_operands import Grid, build, grid_at
from .rules import At, constant, operator_name
from .views import CASTS, Place, step

_WIDE = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Selection:
    """`condition` of the residue says j ∈ tokens[b, i, :]. No `tokens`: it is always true. `count`: K, keys chosen in a row."""

    condition: sympy.Basic
    tokens: Grid | None
    count: sympy.Basic


def match(site: Attention, spec: AttentionSpec, evaluator: Evaluator) -> Selection | None:
    """The first condition of the residue that is a choice of tokens."""
    evaluator.ranges = site.sizes.ranges
    for condition in sympy.And.make_args(spec.residue):
        found = _read(site, condition, evaluator)
        if found is not None:
            return found
    return None


def without(spec: AttentionSpec, selection: Selection) -> AttentionSpec:
    """The spec without the condition that the tokens say."""
    rest = [part for part in sympy.And.make_args(spec.residue) if part != selection.condition]
    return replace(spec, residue=E.conjunction(rest))


def rewrite(site: Attention, selection: Selection, builder: Builder) -> Node | None:
    """tokens [B, T, K]"""
    if selection.tokens is None:
        return None
    whole = build(selection.tokens, builder, site.sizes.batch, site.sizes.queries, selection.count)
    return builder.call(torch.ops.aten.squeeze.dim, whole, 1)


def _read(site: Attention, condition: sympy.Basic, evaluator: Evaluator) -> Selection | None:
    """M[b, i, j] != 0, or == 0, of a scatter of one constant along j into another."""
    if not isinstance(condition, (sympy.Ne, sympy.Eq)) or not isinstance(condition.lhs, E.Load) or condition.rhs != 0:
        return None
    node, index = evaluator.leaves.get(condition.lhs.name), condition.lhs.index
    if node is None or operator_name(node) != "scatter":
        return None
    at = At(evaluator, node, tuple(index), evaluator.arguments(node))
    dim = at.dim()
    sizes = zip(at.size(), at.size(at["index"]), strict=True)
    if any(size != covered for k, (size, covered) in enumerate(sizes) if k != dim):
        return None  # rows that are not written
    if index[dim] != E.j or any(x.has(E.j, E.h) for k, x in enumerate(index) if k != dim):
        return None
    wanted = sympy.true if isinstance(condition, sympy.Ne) else sympy.false
    written, before = at["value"] if "value" in at.arguments else None, evaluator.read(at["self"], index)
    if isinstance(written, Node) or written is None or constant(bool(written)) != wanted or before != sympy.Not(wanted):
        return None
    return _selection(site, condition, at, dim)


def _selection(site: Attention, condition: sympy.Basic, at: At, dim: int) -> Selection | None:
    """The indices as they come from topk: distinct along `dim`."""
    evaluator, index = at.evaluator, at.replaced(dim, d)
    count = size_of(at["index"], dim)
    evaluator.ranges = {**site.sizes.ranges, d: count}
    places = list(_trail(evaluator, at["index"], index))
    grids = [grid for place in places if (grid := grid_at(site, *place, E.i)) is not None]
    evaluator.ranges = site.sizes.ranges
    if not grids or not _is_distinct(*places[-1], evaluator):
        return None
    everything = sympy.expand(count - site.sizes.keys) == 0
    return Selection(condition, None if everything else grids[-1], count)


def _trail(evaluator: Evaluator, node: Node, index: tuple[sympy.Basic, ...]) -> Iterator[Place]:
    """Places upstream of the same number; a cast between wide integers is passed."""
    place: Place | None = (node, evaluator.canonical(node, index))
    while place is not None:
        yield place
        source = place[0].args[0] if operator_name(place[0]) in CASTS else None
        wide = isinstance(source, Node) and {source.meta["val"].dtype, place[0].meta["val"].dtype} <= set(_WIDE)
        place = (source, place[1]) if wide else step(evaluator, *place)  # type: ignore[assignment]


def _is_distinct(node: Node, index: tuple[sympy.Basic, ...], evaluator: Evaluator) -> bool:
    """Whether node[index], along d, are indices of one row of a topk or a sort."""
    chosen = node.args[0] if operator_name(node) == "getitem" else None
    if not isinstance(chosen, Node) or operator_name(chosen) not in ("topk", "sort") or node.args[1] != 1:
        return False
    dim = evaluator.arguments(chosen)["dim"] % len(index)
    return (index[dim] - d).is_Integer and not any(x.has(d) for k, x in enumerate(index) if k != dim)
