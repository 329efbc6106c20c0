"""K[b,h,j,d] = pages[table[b, j // P], h, j % P, d]  =>  attend_paged(q, pages, table): no gather is left in the graph

    flashmla::pool_view(pages, scales, table, lengths)   a pool's pages; keys from lengths[b] on are not there
    slots[index], index_select(slots, 0, index)          transformers' continuous batching: pages of one token

Needs: grids from fold_operands. Keeps: what a query sees. The keys that a pool's view shows beyond its lengths it shows as
zeros, for nobody to attend to (`pool.ops`); here they are hidden, whatever the mask says of them. What is read in any other
way stays a tensor that is gathered, and the site says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import AttentionSpec
from ..pool.formats import pair_of
from .attention import Sizes, size_of
from .build import Builder, aten
from .denote import Evaluator
from .fold_operands import Grid
from .rules import operator_name

_GATHERS = ("pool_view", "index", "index_select")
_INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Gather:
    """An operand as rows of `store`, found through `table`; `end`, if given, is one past the last key of row b.

    store [P, H, page, D] or, if `flat`, [slots, H, D]; table [B, N], or [N] of a batch of one.
    """

    store: Node
    scales: Node | None
    table: Node
    end: sympy.Basic | None
    format: str
    page: int
    flat: bool = False
    bounds: Node | None = None


@dataclass(frozen=True)
class Paged:
    """Keys and values of one attention, in pages that one table tells of."""

    k: Gather
    v: Gather

    @property
    def format(self) -> str:
        """As attend_paged takes it."""
        return pair_of(self.k.format, self.v.format) or self.k.format

    @property
    def columns(self) -> sympy.Basic:
        return size_of(self.k.table, -1)


def match(grids: Sequence[tuple[Grid, sympy.Basic]], evaluator: Evaluator) -> Paged | str | None:
    """Keys and values in pages; why they stay gathered, if one of them is; None if neither is gathered.

    `grids`: those of k and v (or of a latent and its rope key), each with its number of channels.
    """
    if not any(operator_name(grid.node) in _GATHERS for grid, _ in grids):
        return None
    found = []
    for grid, channels in grids:
        one = _gather(grid, channels, evaluator)
        if isinstance(one, str):
            return one
        found.append(one)
    k, v = found
    alike = (k.page, k.end, k.flat) == (v.page, v.end, v.flat) and pair_of(k.format, v.format) is not None
    if not alike or not _same(k.table, v.table, evaluator):
        return "keys and values lie in different pages"
    return Paged(k, v)


def _gather(grid: Grid, channels: sympy.Basic, evaluator: Evaluator) -> Gather | str:
    """The gather that the grid's node is, or what stands in the way."""
    given, name = evaluator.arguments(grid.node), operator_name(grid.node)
    if name not in _GATHERS:
        return f"{grid.node.name} is no gather"
    gather, names = _pool_view(given, evaluator) if name == "pool_view" else _slots(name, given)
    if gather is None:
        return f"{grid.node.name} gathers no rows of one dimension"
    if not _whole(grid, names, evaluator) or evaluator.size(grid.node)[-1] != channels:
        return f"a part of {grid.node.name} is read"
    return gather


def _pool_view(given: Mapping[str, Any], evaluator: Evaluator) -> tuple[Gather, tuple[str, ...]]:
    """With the names of its dimensions."""
    end, page = evaluator.read(given["lengths"], (E.b,)), int(size_of(given["pages"], 2))
    found = Gather(given["pages"], given["scales"], given["table"], end, given["format"], page, bounds=given["bounds"])
    return found, ("b", "h", "row", "d")


def _slots(name: str, given: Mapping[str, Any]) -> tuple[Gather | None, tuple[str, ...]]:
    """slots[index], index [N] or [B, N]."""
    table = given["index"] if name == "index_select" else given["indices"][0]
    others = given["dim"] != 0 if name == "index_select" else any(at is not None for at in given["indices"][1:])
    if table is None or others or given["self"].meta["val"].dim() != 3 or table.meta["val"].dtype not in _INTEGERS:
        return None, ()
    rank = table.meta["val"].dim()
    return Gather(given["self"], None, table, None, "plain", 1, flat=True), ("b", "row", "h", "d")[2 - rank:]


def _whole(grid: Grid, names: tuple[str, ...], evaluator: Evaluator) -> bool:
    """Whether each dimension of the node is the axis of that name, from its first element on."""
    sizes, axes = evaluator.size(grid.node), {axis.dim: (name, axis.start) for name, axis in grid.axes.items()}
    if grid.merged or grid.split is not None or len(sizes) != len(names):
        return False
    return all(axes.get(dim) == (name, 0) or (dim not in axes and sizes[dim] == 1) for dim, name in enumerate(names))


def _same(one: Node, other: Node, evaluator: Evaluator) -> bool:
    """Whether two tables hold the same numbers."""
    if one is other:
        return True
    if evaluator.size(one) != evaluator.size(other):
        return False
    index = (E.b, E.j)[-len(evaluator.size(one)):]
    return bool(evaluator.read(one, index) == evaluator.read(other, index))


def narrowed(spec: AttentionSpec, paged: Paged, sizes: Sizes) -> AttentionSpec:
    """The spec with what is no key hidden: beyond the lengths, and beyond S where the last page reaches further."""
    ends = [] if spec.hi == sympy.oo else [spec.hi]
    ends += [] if paged.k.end is None else [paged.k.end]
    ends += [] if paged.columns * paged.k.page == sizes.keys else [sizes.keys]
    return dataclasses.replace(spec, hi=sympy.Min(*ends) if ends else sympy.oo)


@dataclass(frozen=True)
class Operands:
    """The nodes that attend_paged takes: k and v [P, H, page, D], their scales, pages [B, N]."""

    k: Node
    v: Node
    k_scales: Node | None
    v_scales: Node | None
    pages: Node
    format: str


def build(paged: Paged, builder: Builder) -> Operands:
    """Views of what is there: a slot of a flat store is a page of one token."""
    k, v, table = paged.k.store, paged.v.store, paged.k.table
    if paged.k.flat:
        k, v = (builder.call(aten.unsqueeze.default, x, 2) for x in (k, v))
    if table.meta["val"].dim() == 1:
        table = builder.call(aten.unsqueeze.default, table, 0)
    return Operands(k, v, paged.k.scales, paged.v.scales, table, paged.format)
