"""residue = M[b,0,i,j] & ...  =>  lo = max(lo, T[b,0,i,0]), hi = min(hi, T[b,0,i,1])    T = flashmla::summarize(M)

A mask that cannot be raised, an input say, is summarised once per forward: per row the hull of its keys, per tile whether
none, some or all of them are seen. Layers that share the mask share the summary; block sparsity is not lost.

Needs: AttentionSpec.residue from raise_mask, tables still named by their nodes.
Keeps: the predicate. Each bound holds wherever the mask does; the residue is not touched.
"""

from __future__ import annotations

import dataclasses
import operator

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import TILE, AttentionSpec
from .build import Builder

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Summary:
    """What flashmla::summarize returns of one mask: the nodes of its hull [..., T, 2] and its tile classes."""

    hull: Node
    classes: Node


def match(spec: AttentionSpec) -> list[E.Load]:
    """The loads whose last index is j itself and that must not be 0: conjuncts of the residue."""
    return [load for term in spec.conjuncts if (load := _mask_load(term)) is not None]


def _mask_load(term: sympy.Basic) -> E.Load | None:
    if not (isinstance(term, sympy.Ne) and isinstance(term.lhs, E.Load) and term.rhs == 0):
        return None
    load = term.lhs
    *lead, last = load.index
    symbols = [at for at in lead if not at.is_Integer]
    plain = last == E.j and len(lead) <= 3 and set(symbols) <= {E.b, E.h, E.i} and len(symbols) == len(set(symbols))
    return load if load.kind_letter in "MT" and plain else None


def rewrite(
    spec: AttentionSpec, known: dict[str, Summary], builder: Builder, leaves: dict[str, Node]
) -> AttentionSpec:
    """Tighten the hull by each summarised mask; take tile classes where the mask is the whole residue."""
    found = match(spec)
    for load in found:
        summary = known.get(str(load)) or _summary(load, builder, leaves)
        known[str(load)] = summary
        at = [sympy.Integer(0) if symbol not in load.index else symbol for symbol in (E.b, E.h, E.i)]
        leaves[f"T:{summary.hull.name}"], leaves[f"T:{summary.classes.name}"] = summary.hull, summary.classes
        hull = E.table(f"T:{summary.hull.name}")
        first, end = E.Load(hull, *at, 0), E.Load(hull, *at, 1)
        lo = first if spec.lo == 0 else sympy.Max(spec.lo, first)
        hi = end if spec.hi == sympy.oo else sympy.Min(spec.hi, end)
        spec = dataclasses.replace(spec, lo=lo, hi=hi)
        if spec.residue == sympy.Ne(load, 0):
            tile = [*at[:2], at[2] if at[2] == 0 else E.FloorDiv(E.i, TILE), E.FloorDiv(E.j, TILE)]
            spec = dataclasses.replace(spec, tile=E.Load(E.table(f"T:{summary.classes.name}"), *tile))
    return spec


def _summary(load: E.Load, builder: Builder, leaves: dict[str, Node]) -> Summary:
    """The mask seen as [B or 1, H or 1, T or 1, S], and its summary."""
    node, index = leaves[load.name], list(load.index)
    if load.kind_letter == "T":
        node = builder.call(aten.ne.Scalar, node, 0)
    for dim in reversed(range(len(index))):
        if index[dim].is_Integer:
            node = builder.call(aten.select.int, node, dim, int(index[dim]))
            del index[dim]
    order = sorted(range(len(index)), key=lambda dim: (E.b, E.h, E.i, E.j).index(index[dim]))
    if order != list(range(len(index))):
        node = builder.call(aten.permute.default, node, order)
    for dim, symbol in enumerate((E.b, E.h, E.i)):
        if symbol not in index:
            node = builder.call(aten.unsqueeze.default, node, dim)
    both = builder.call(torch.ops.flashmla.summarize.default, node)
    parts = [builder.call(operator.getitem, both, at) for at in (0, 1)]
    return Summary(*parts)
