"""Attention(q, k, v, spec)  =>  flashmla::attend(q, k, v, tables, sizes, scalars, "spec")

Tables, sizes and floats that the spec speaks of by node are named M0, T1, F2, ..., n0, ..., x0, ... in the order of the
arguments that carry them.

Needs: a complete spec and grids for q, k, v. Keeps: shape, stride and dtype of the value that is replaced.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import AttentionSpec
from . import page_cache
from .attention import Attention
from .build import Builder
from .denote import Evaluator
from .fold_operands import Grid, build
from .page_cache import Paged

aten = torch.ops.aten
_INDICES = {E.b, E.h, E.i, E.j, E.s}


@dataclass(frozen=True)
class Arguments:
    """A spec in the names of its arguments, and the nodes (or numbers) that carry them."""

    spec: AttentionSpec
    tables: tuple[Node, ...]
    sizes: tuple[Node | int, ...]
    scalars: tuple[Node | float, ...]


@dataclass(frozen=True)
class Names:
    """A spec in the names of its arguments, and what each argument is, in the evaluator's words."""

    spec: AttentionSpec
    tables: tuple[str, ...]
    sizes: tuple[sympy.Symbol, ...]
    scalars: tuple[sympy.Symbol, ...]


def named(spec: AttentionSpec, evaluator: Evaluator) -> Names:
    """The spec as the operator and its kernels speak of it."""
    names: dict[str, str] = {}
    for expression in spec.expressions():
        for load in E.loads(expression):
            names.setdefault(load.name, f"{load.kind_letter}{len(names)}")
    free = sorted(set().union(*(e.free_symbols for e in spec.expressions())) - _INDICES - set(map(E.table, names)), key=str)
    sizes = tuple(symbol for symbol in free if symbol not in evaluator.scalars)
    scalars = tuple(symbol for symbol in free if symbol in evaluator.scalars)
    renamed: dict[sympy.Basic, sympy.Basic] = {E.table(old): E.table(new) for old, new in names.items()}
    renamed |= {symbol: E.index_symbol(f"n{at}") for at, symbol in enumerate(sizes)}
    renamed |= {symbol: sympy.Symbol(f"x{at}", real=True) for at, symbol in enumerate(scalars)}
    return Names(renamed_spec(spec, renamed), tuple(names), sizes, scalars)


def arguments(spec: AttentionSpec, evaluator: Evaluator, builder: Builder) -> Arguments:
    """The nodes behind the names. Raises LookupError if a size belongs to no input."""
    names = named(spec, evaluator)
    return Arguments(
        spec=names.spec,
        tables=tuple(_with_rank(evaluator.leaves[name], builder) for name in names.tables),
        sizes=tuple(builder.integer(symbol) for symbol in names.sizes),
        scalars=tuple(evaluator.scalars[symbol] for symbol in names.scalars),
    )


def _with_rank(table: Node, builder: Builder) -> Node:
    """A scalar is loaded as T0[0]: it becomes a tensor of one element, by a view."""
    return table if table.meta["val"].dim() else builder.call(aten.unsqueeze.default, table, 0)


def renamed_spec(spec: AttentionSpec, names: dict[sympy.Basic, sympy.Basic]) -> AttentionSpec:
    """The spec with its symbols replaced, all at once."""
    changes = {
        field.name: value.xreplace(names)
        for field in dataclasses.fields(spec)
        if isinstance(value := getattr(spec, field.name), sympy.Basic)
    }
    return dataclasses.replace(spec, **changes)


def rewrite(
    site: Attention, grids: tuple[Grid, Grid, Grid], given: Arguments, builder: Builder, paged: Paged | None = None
) -> tuple[Node, Node]:
    """Put an attend node in the place of the anchor: that node, and the one that now has the anchor's value."""
    attend = _attend(site, grids, given, builder) if paged is None else _attend_paged(site, grids[0], given, builder, paged)
    out = like_anchor(attend, site, builder)
    site.anchor.replace_all_uses_with(out, propagate_meta=False)
    return attend, out


def _attend(site: Attention, grids: tuple[Grid, Grid, Grid], given: Arguments, builder: Builder) -> Node:
    sizes = site.sizes
    rows = (sizes.queries, sizes.keys, sizes.values)
    channels = (sizes.head_dim, sizes.head_dim, sizes.value_dim)
    q, k, v = (build(grid, builder, sizes.batch, r, c) for grid, r, c in zip(grids, rows, channels, strict=True))
    return builder.call(torch.ops.flashmla.attend.default, q, k, v, *_of_spec(given))


def _attend_paged(site: Attention, q: Grid, given: Arguments, builder: Builder, paged: Paged) -> Node:
    sizes, held = site.sizes, page_cache.build(paged, builder)
    return builder.call(
        torch.ops.flashmla.attend_paged.default, build(q, builder, sizes.batch, sizes.queries, sizes.head_dim), held.k, held.v,
        held.k_scales, held.v_scales, held.pages, held.format, *_of_spec(given),
        *([paged.k.bounds] if given.spec.sparsity.selects else []),
    )


def _of_spec(given: Arguments) -> tuple[list[Node], list[Node | int], list[Node | float], str]:
    """The last arguments of every attention."""
    return list(given.tables), list(given.sizes), list(given.scalars), str(given.spec)


def like_anchor(out: Node, site: Attention, builder: Builder) -> Node:
    """[B, H, T, Dv] as the anchor has it: merged or transposed as in p.v, and in its dtype."""
    was = site.anchor.meta["val"]
    if not site.handwritten:
        return out if was.dim() == 4 else builder.call(aten.squeeze.dim, out, 1)
    order = list(site.order)
    if order != [0, 1, 2, 3]:
        out = builder.call(aten.permute.default, out, order)
        out = builder.call(aten.clone.default, out)
    shape = [builder.integer(sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size)) for size in was.shape]
    out = builder.call(aten.reshape.default, out, shape)
    if was.dtype != out.meta["val"].dtype:
        out = builder.call(torch.ops.prims.convert_element_type.default, out, was.dtype)
    return out
