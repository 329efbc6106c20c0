"""w[f(h, d), r]  =>  [H, size, R], a view: the rows of a projection that make some channels of every head

Needs: an element of the weight by head h, channel d and rank r. Keeps: the weight where it lies; only views are built.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from .attention import d
from .build import Builder

aten = torch.ops.aten

r = E.index_symbol("r")
"""Position within the latent."""
_NAMES = {E.h: "h", d: "d", r: "r"}


@dataclass(frozen=True)
class Axis:
    """Where one of (h, d, r) lies: dimension `dim`, from `start`, `extent` long."""

    dim: int
    start: int
    extent: int


@dataclass(frozen=True)
class Weight:
    """A matrix, or one for each head, in a tensor: constant dimensions in `selects`, then dimensions split in two in `splits`
    (dimension -> extent of the inner one); `axes` (h, d, r) counts dimensions after both."""

    node: Node
    selects: tuple[tuple[int, int], ...]
    splits: tuple[tuple[int, int], ...]
    axes: tuple[Axis, Axis, Axis]


def match(node: Node, index: tuple[sympy.Basic, ...], heads: int, size: int, rank: int) -> Weight | None:
    """node[index] as a weight, if every entry of the index is linear in one of h, d, r, or in h and d."""
    extents = {"h": heads, "d": size, "r": rank}
    selects, splits, axes = [], [], {}
    at = 0
    for dim, entry in enumerate(_with_channel(index) if size == 1 else index):
        if entry.is_Integer:
            selects.append((dim, int(entry)))
            continue
        found = _axes_of(entry, node.meta["val"].shape[dim])
        if found is None:
            return None
        names, inner = found
        if inner:
            splits.append((at, inner))
        for name, start in names:
            if name in axes or start < 0:
                return None
            axes[name] = Axis(at, start, extents[name])
            at += 1
        if inner and names[1][1] + extents[names[1][0]] > inner:
            return None  # channels of a head run into the next
    if size == 1 and "d" not in axes:
        axes["d"] = Axis(at, 0, 1)  # past the last: it is made
    if axes.keys() != extents.keys():
        return None
    return Weight(node, tuple(selects), tuple(splits), (axes["h"], axes["d"], axes["r"]))


def _with_channel(index: tuple[sympy.Basic, ...]) -> list[sympy.Basic]:
    """Of a part one channel wide, d = 0 may have gone from the index: it is put back beside a constant, or within a head."""
    entries = list(index)
    for wanted in (lambda e: e.is_Integer, lambda e: e.coeff(E.h, 1) != 1 and e.has(E.h)):
        for dim, entry in enumerate(entries):
            if not any(e.has(d) for e in entries) and wanted(entry):
                entries[dim] = entry + d
    return entries


def _axes_of(entry: sympy.Basic, size: object) -> tuple[list[tuple[str, int]], int] | None:
    """One dimension: its axes with their starts, outermost first, the extent of the inner one, 0 without."""
    symbols = sorted(entry.free_symbols & _NAMES.keys(), key=str)
    slopes = {symbol: entry.coeff(symbol, 1) for symbol in symbols}
    start = sympy.expand(entry - sum(slope * symbol for symbol, slope in slopes.items()))
    if not start.is_Integer or not all(slope.is_Integer for slope in slopes.values()) or r in symbols and len(symbols) > 1:
        return None
    if len(symbols) == 1 and slopes[symbols[0]] == 1:
        return [(_NAMES[symbols[0]], int(start))], 0
    outer, inner = (*sorted(symbols, key=lambda s: -slopes[s]), None)[:2] if len(symbols) == 2 else (None, None)
    if outer is None or inner is None or slopes[inner] != 1 or slopes[outer] < 1:
        return None
    extent = int(slopes[outer])
    if not isinstance(size, int) or size % extent:
        return None
    return [(_NAMES[outer], int(start) // extent), (_NAMES[inner], int(start) % extent)], extent


def build(weight: Weight, builder: Builder) -> Node:
    """The view [H, size, R]."""
    node = weight.node
    for dim, at in reversed(weight.selects):
        node = builder.call(aten.select.int, node, dim, at)
    for dim, inner in weight.splits:
        shape = list(node.meta["val"].shape)
        node = builder.call(aten.view.default, node, [*shape[:dim], shape[dim] // inner, inner, *shape[dim + 1:]])
    if max(axis.dim for axis in weight.axes) == node.meta["val"].dim():
        node = builder.call(aten.unsqueeze.default, node, -1)
    for axis in weight.axes:
        if axis.start or node.meta["val"].shape[axis.dim] != axis.extent:
            node = builder.call(aten.slice.Tensor, node, axis.dim, axis.start, axis.start + axis.extent)
    order = [axis.dim for axis in weight.axes]
    return node if order == [0, 1, 2] else builder.call(aten.permute.default, node, order)
