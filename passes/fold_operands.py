"""k[b,h,j,d] = cache[b, h // G, j, d]  =>  attend(q, cache, ...; group = G): repeats, transposes, slices are indices

Each operand is followed up through views, copies and casts as far as its elements still stand on a plain grid of
(batch, head group, position, channel); the kernel reads that tensor by its strides and repeats nothing.

Needs: Attention.q, k, v. Keeps: the value of every element; a cast is passed only where q, k and v then agree in dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import Reason, Rejected
from .attention import Attention, Operand, d, size_of
from .build import Builder
from .denote import Evaluator
from .views import peel

aten = torch.ops.aten


@dataclass(frozen=True)
class Axis:
    """Where one of (batch, head, position, channel) lies: dimension `dim` of the node, from `start`, `extent` long."""

    dim: int
    start: int = 0


@dataclass(frozen=True)
class Grid:
    """An operand as a grid: `axes` by name (b, h, row, d), constant dimensions in `selects`.

    An axis that is missing has one element, or is broadcast.

    `merged`: batch and head lie in one dimension, the head fastest, `heads` of them.
    `split`: the head lies in two, `split` and the next; the other fields speak of the node with the two seen as one.
    """

    node: Node
    axes: dict[str, Axis]
    selects: dict[int, int]
    group: int
    heads: int
    merged: bool = False
    split: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.node.meta["val"].dtype


def match(site: Attention, evaluator: Evaluator) -> tuple[Grid, Grid, Grid] | Rejected:
    """The most upstream grids of q, k and v that agree in dtype, and k with v in their group."""
    roles = {"q": (site.q, E.i), "k": (site.k, E.j), "v": (site.v, E.j)}
    grids = {name: list(_grids(site, operand, row, evaluator)) for name, (operand, row) in roles.items()}
    grids["q"] = [grid for grid in grids["q"] if grid.group == 1]
    for name, found in grids.items():
        if not found:
            return Rejected(site.anchor.name, Reason.OPERANDS, f"{name} = {_describe(roles[name][0])}")
    return _choose(grids) or Rejected(site.anchor.name, Reason.DTYPE, ", ".join(str(g[-1].dtype) for g in grids.values()))


def _choose(grids: dict[str, list[Grid]]) -> tuple[Grid, Grid, Grid] | None:
    """Smallest dtype first (the one before an upcast), then the largest group, then the furthest upstream."""
    dtypes = set.intersection(*({grid.dtype for grid in found} for found in grids.values()))
    for dtype in sorted(dtypes, key=lambda t: t.itemsize):
        q, k, v = ([grid for grid in found if grid.dtype == dtype] for found in grids.values())
        for group in sorted({g.group for g in k} & {g.group for g in v}, reverse=True):
            return q[-1], _last(k, group), _last(v, group)
    return None


def _last(grids: list[Grid], group: int) -> Grid:
    return [grid for grid in grids if grid.group == group][-1]


def _grids(site: Attention, operand: Operand, row: sympy.Symbol, evaluator: Evaluator) -> Iterator[Grid]:
    """Every node up the chain that holds the operand as a grid, nearest first."""
    for node, index in peel(evaluator, operand.node, operand.index):
        grid = grid_at(site, node, index, row)
        if grid is not None:
            yield grid


def grid_at(site: Attention, node: Node, index: tuple[sympy.Basic, ...], row: sympy.Symbol) -> Grid | None:
    """node[index] as a grid; None if it stands on none."""
    return _grid(node, index, row, site.sizes.ranges[row], site.sizes.heads)


def _grid(
    node: Node, index: tuple[sympy.Basic, ...], row: sympy.Symbol, rows: sympy.Basic, heads: sympy.Basic
) -> Grid | None:
    axes: dict[str, Axis] = {}
    selects: dict[int, int] = {}
    group, kv_heads, merged = 1, 1, False
    names = {E.b: "b", row: "row", d: "d"}
    split, index = _one_head(node, index)
    for dim, at in enumerate(index):
        if at.is_Integer:
            selects[dim] = int(at)
            continue
        head = _head(at, heads)
        if head is not None:
            name, start, (group, kv_heads, merged) = "h", head[0], head[1:]
        else:
            symbol = next(iter(at.free_symbols & names.keys()), None)
            offset = at - symbol if symbol is not None else None
            if offset is None or not offset.is_Integer:
                return None
            name, start = names[symbol], int(offset)
        if name in axes or start < 0:
            return None
        axes[name] = Axis(dim, start)
    if "d" not in axes or ("row" not in axes and rows != 1) or (merged and "b" in axes):
        return None
    if "h" not in axes:
        if not heads.is_Integer:
            return None
        group = int(heads)
    return Grid(node, axes, selects, group, kv_heads, merged, split)


def _one_head(node: Node, index: tuple[sympy.Basic, ...]) -> tuple[int | None, tuple[sympy.Basic, ...]]:
    """(dim, index with h in the place of h // n, h % n) where the two dimensions can be seen as one; else (None, index)."""
    strides = node.meta["val"].stride()
    for dim, at in enumerate(index[:-1]):
        size = size_of(node, dim + 1)
        adjacent = size.is_Integer and size > 1 and bool(sympy.sympify(strides[dim]) == size * strides[dim + 1])
        if adjacent and at == E.FloorDiv(E.h, size) and index[dim + 1] == E.PythonMod(E.h, size):
            return dim, (*index[:dim], E.h, *index[dim + 2 :])
    return None, index


def _head(at: sympy.Basic, heads: sympy.Basic) -> tuple[int, int, int, bool] | None:
    """h, h // G + c, or b*heads/G + h // G  ->  (start, group, key heads, merged with the batch)."""
    if not at.has(E.h) or not heads.is_Integer:
        return None
    found = [f for f in at.atoms(E.FloorDiv) if f.args[0] == E.h and f.args[1].is_Integer]
    head, group = (found[0], int(found[0].args[1])) if len(found) == 1 else (E.h, 1)
    kv_heads = int(heads) // group
    rest = at - head
    if rest.is_Integer:
        return int(rest), group, kv_heads, False
    if sympy.expand(rest - E.b * kv_heads) == 0 and (group == 1 or int(heads) % group == 0):
        return 0, group, kv_heads, True
    return None


def build(grid: Grid, builder: Builder, batch: sympy.Basic, rows: sympy.Basic, channels: sympy.Basic) -> Node:
    """The operand as a tensor [batch, key heads, rows, channels]: slice, select, split, permute, broadcast; views only."""
    extents = {"b": batch, "h": sympy.Integer(grid.heads), "row": rows, "d": channels}
    node = grid.node
    if grid.split is not None:
        shape = _shape(node)
        whole = [*shape[: grid.split], extents["h"], *shape[grid.split + 2 :]]
        node = builder.call(aten.view.default, node, list(map(builder.integer, whole)))
    node = _slices(node, grid, builder, extents)
    order: list[str | None] = [None] * len(node.meta["val"].shape)
    for name, axis in grid.axes.items():
        order[axis.dim] = name
    for dim in sorted(grid.selects, reverse=True):
        node = builder.call(aten.select.int, node, dim, grid.selects[dim])
        del order[dim]
    if grid.merged:
        at = order.index("h")
        shape = list(map(builder.integer, [*_shape(node)[:at], batch, extents["h"], *_shape(node)[at + 1 :]]))
        node = builder.call(aten.view.default, node, shape)
        order.insert(at, "b")
    return _arranged(node, order, builder, batch)


def _slices(node: Node, grid: Grid, builder: Builder, extents: dict[str, sympy.Basic]) -> Node:
    for name, axis in grid.axes.items():
        if grid.merged and name == "h":
            continue
        if axis.start or size_of(node, axis.dim) != extents[name]:
            end = builder.integer(axis.start + extents[name])
            node = builder.call(aten.slice.Tensor, node, axis.dim, axis.start, end)
    return node


def _arranged(node: Node, order: list[str | None], builder: Builder, batch: sympy.Basic) -> Node:
    """Dimensions named by `order` put into (b, h, row, d); a missing one is made, of size 1 or expanded."""
    wanted = [name for name in ("b", "h", "row", "d") if name in order]
    if wanted != order:
        node = builder.call(aten.permute.default, node, [order.index(name) for name in wanted])
    for at, name in enumerate(("b", "h", "row")):
        if name not in wanted:
            node = builder.call(aten.unsqueeze.default, node, at)
    if _shape(node)[0] != batch:
        node = builder.call(aten.expand.default, node, [builder.integer(batch), -1, -1, -1])
    return node


def _shape(node: Node) -> list[sympy.Basic]:
    return [size_of(node, dim) for dim in range(node.meta["val"].dim())]


def _describe(operand: Operand) -> str:
    return f"{operand.node.name}[{', '.join(E.to_text(at) for at in operand.index)}]"
