"""out[index] = in[g(index)] where g loads, or chooses: gathers, cat, pad, scatter into a slice."""

from __future__ import annotations

import sympy
import torch

from ..expr import Expr, Where
from .rules import At, Rule, as_number
from .rules_logic import as_condition, pick
from .rules_view import clamped, wrapped


def position(at: At, value: Expr, size: Expr) -> Expr:
    """An index that was computed or loaded, in [-size, size) or torch raises; negative counts from the end."""
    known = wrapped(at, value, size)
    return Where(at.math.relation("<", value, sympy.Integer(0)), value + size, value) if known is None else known


def _index(at: At) -> Expr | None:
    """self[i0, i1, ...]: index tensors are broadcast together; None keeps a dimension."""
    source, given = at["self"], list(at["indices"])
    sizes = at.size(source)
    given += [None] * (len(sizes) - len(given))
    if any(t is not None and t.meta["val"].dtype in (torch.bool, torch.uint8) for t in given):
        return None
    places = [d for d, t in enumerate(given) if t is not None]
    rank = max(t.meta["val"].dim() for t in given if t is not None)
    start = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    point = at.index[start:start + rank]
    kept = iter((*at.index[:start], *at.index[start + rank:]))
    index = [next(kept) if t is None else position(at, _at_point(at, t, point), n) for t, n in zip(given, sizes, strict=True)]
    return at.read(source, index)


def _at_point(at: At, tensor: object, point: tuple[Expr, ...]) -> Expr:
    rank = tensor.meta["val"].dim()  # type: ignore[attr-defined]
    return as_number(at.read(tensor, point[len(point) - rank:]))  # type: ignore[arg-type]


def _index_select(at: At) -> Expr | None:
    dim = at.dim(node=at["self"])
    x = as_number(at.read(at["index"], [at.index[dim]][: len(at.size(at["index"]))]))
    return at.read(at["self"], at.replaced(dim, x))


def _gather(at: At) -> Expr | None:
    dim = at.dim()
    return at.read(at["self"], at.replaced(dim, as_number(at.read(at["index"], at.index))))


def _embedding(at: At) -> Expr | None:
    row = at.read(at["indices"], at.index[:-1])
    return at.read(at["weight"], [row, at.index[-1]])


def _cat(at: At) -> Expr | None:
    """Part k holds the positions from the sum of the sizes before it."""
    parts = [p for p in at["tensors"] if p.meta["val"].dim() == len(at.index)]
    dim = at.dim()
    starts, end = [], sympy.Integer(0)
    for part in parts:
        starts.append(end)
        end = end + at.size(part)[dim]
    x = at.index[dim]
    value: Expr | None = None
    for k in reversed(range(len(parts))):
        here = at.math.relation("<", x, starts[k] + at.size(parts[k])[dim]) if value is not None else sympy.true
        if here == sympy.false or at.math.relation("<", x, starts[k]) == sympy.true:
            continue
        own = _typed(at, at.shifted(parts[k], dim, x - starts[k], f":{k}"))
        value = own if value is None or here == sympy.true else pick(here, own, value)
    return value


def _typed(at: At, value: Expr) -> Expr:
    return value if at.dtype == torch.bool else as_number(value)


def _stack(at: At) -> Expr | None:
    dim = at.dim()
    rest = (*at.index[:dim], *at.index[dim + 1:])
    values = [_typed(at, at.read(t, rest)) for t in at["tensors"]]
    value = values[-1]
    for k in reversed(range(len(values) - 1)):
        value = pick(at.math.relation("==", at.index[dim], sympy.Integer(k)), values[k], value)
    return value


def _pad(at: At) -> Expr | None:
    """constant_pad_nd(self, [before, after] of the last dimension first, value)."""
    source, fill = at["self"], at.evaluator.scalar(at["value"])
    if fill is None:
        return None
    pads = [at.evaluator.integer(p) for p in at["pad"]]
    inside, index, moved = sympy.true, list(at.index), []
    for k, before in enumerate(pads[::2]):
        d = len(index) - 1 - k
        size = at.size(source)[d]
        x = at.index[d] - before
        inside = sympy.And(inside, at.math.relation("<=", sympy.Integer(0), x), at.math.relation("<", x, size))
        index[d] = at.evaluator.fresh(at.node, d, size)
        moved.append((index[d], x))
    if inside == sympy.false:
        return fill if at.dtype != torch.bool else as_condition(at, fill)
    value = at.read(source, index).xreplace(dict(moved))
    return pick(inside, value, as_condition(at, fill) if at.dtype == torch.bool else as_number(fill))


def _slice_scatter(at: At) -> Expr | None:
    """src where start <= x < end in steps, else self."""
    dim = at.dim()
    size, x = at.size()[dim], at.index[dim]
    start = clamped(at, at["start"], size, default=0)
    end = size if at["end"] is None else clamped(at, at["end"], size, default=0)
    if start is None or end is None:
        return None
    step = sympy.Integer(at["step"])
    along = x - start
    inside = sympy.And(at.math.relation("<=", start, x), at.math.relation("<", x, end),
                       at.math.relation("==", at.math.mod(along, step), sympy.Integer(0)))
    if inside == sympy.false:
        return at.read(at["self"], at.index)
    written = _typed(at, at.shifted(at["src"], dim, at.math.floordiv(along, step)))
    return pick(inside, written, _typed(at, at.read(at["self"], at.index)))


def _select_scatter(at: At) -> Expr | None:
    dim = at.dim()
    where = wrapped(at, at.evaluator.integer(at["index"]), at.size()[dim])
    if where is None:
        return None
    written = at.read(at["src"], (*at.index[:dim], *at.index[dim + 1:]))
    return pick(at.math.relation("==", at.index[dim], where), _typed(at, written), at.read(at["self"], at.index))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    "index_select": _index_select, "gather": _gather, "embedding": _embedding, "cat": _cat, "stack": _stack,
    "constant_pad_nd": _pad, "slice_scatter": _slice_scatter, "select_scatter": _select_scatter,
}
