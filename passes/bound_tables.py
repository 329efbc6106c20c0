"""residue = (T[b,i] == T[b,j]) & ...  =>  tile = 0 where max T[b,i-tile] < min T[b,j-tile] or the other way round, 2 where
all four bounds are one value, else 1        bounds of a tile by flashmla::bounds(T)

Packed documents, segments, modalities: what two positions share by a table is decided for whole tiles by the table's least
and greatest values there, once per forward and for every layer.

Needs: AttentionSpec.residue from raise_mask, tables still named by their nodes, no tile classes yet.
Keeps: the predicate; the residue is not touched.
"""

from __future__ import annotations

import dataclasses

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import TILE, AttentionSpec
from .build import Builder


def match(spec: AttentionSpec) -> list[tuple[E.Load, E.Load]]:
    """The conjuncts T[..., i] == T[..., j] of one table, as (load at i, load at j)."""
    found = []
    for term in spec.conjuncts:
        if isinstance(term, sympy.Eq) and isinstance(term.lhs, E.Load) and isinstance(term.rhs, E.Load):
            at_i, at_j = sorted((term.lhs, term.rhs), key=lambda load: load.index[-1] == E.j)
            lead = {symbol for load in (at_i, at_j) for at in load.index[:-1] for symbol in at.free_symbols}
            if at_i.name == at_j.name and (at_i.index[-1], at_j.index[-1]) == (E.i, E.j) and not lead & {E.i, E.j}:
                found.append((at_i, at_j))
    return found


def rewrite(spec: AttentionSpec, known: dict[str, Node], builder: Builder, leaves: dict[str, Node]) -> AttentionSpec:
    """With tile classes, if a table bounds the residue and nothing has classed its tiles yet."""
    pairs = match(spec) if spec.tile is None else []
    if not pairs:
        return spec
    nowhere, everywhere = [], []
    for at_i, at_j in pairs:
        if at_i.name not in known:
            known[at_i.name] = builder.call(torch.ops.flashmla.bounds.default, leaves[at_i.name])
        name = f"{at_i.kind_letter}:{known[at_i.name].name}"
        leaves[name] = known[at_i.name]
        (low_i, high_i), (low_j, high_j) = (
            [E.Load(E.table(name), *load.index[:-1], E.FloorDiv(load.index[-1], TILE), end) for end in (0, 1)]
            for load in (at_i, at_j)
        )
        nowhere.append(sympy.Or(high_i < low_j, high_j < low_i))
        everywhere.append(sympy.And(sympy.Eq(low_i, high_j), sympy.Eq(high_i, low_j)))
    whole = len(pairs) == len(spec.conjuncts)
    some = E.Where(sympy.And(*everywhere), sympy.Integer(2), sympy.Integer(1)) if whole else sympy.Integer(1)
    return dataclasses.replace(spec, tile=E.Where(sympy.Or(*nowhere), sympy.Integer(0), some))
