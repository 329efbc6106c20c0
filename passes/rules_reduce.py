"""Sums over an index: matrix products stay loads of a known product; a reduction is read only if it cannot vary."""

from __future__ import annotations

import sympy
import torch

from ..expr import Expr
from .rules import At, Rule, as_number
from .rules_pointwise import as_condition


def _product(lhs: str, rhs: str) -> Rule:
    return lambda at: at.evaluator.product(at.node, at.index, at[lhs], at[rhs])


def _added_product(lhs: str, rhs: str) -> Rule:
    """beta * input + alpha * (lhs @ rhs); beta = 0 ignores the input, NaN and all."""
    def rule(at: At) -> Expr | None:
        alpha, beta = (at.evaluator.scalar(at[name]) for name in ("alpha", "beta"))
        added = sympy.Integer(0) if beta == 0 else at.number("self")
        if alpha is None or beta is None or added is None or not at.dtype.is_floating_point:
            return None
        return beta * added + alpha * at.evaluator.product(at.node, at.index, at[lhs], at[rhs])
    return rule


def _cumsum(at: At) -> Expr | None:
    """The running sum of one constant c is c * (x + 1). The sum of `diff(position_ids) != 1` is 0 if nothing is packed."""
    if not at.index or at.dtype not in (torch.int32, torch.int64):
        return None
    dim = at.dim()
    u = at.evaluator.fresh(at.node, dim, at.size()[dim])
    value = as_number(at.read(at["self"], at.replaced(dim, u)))
    return value * (at.index[dim] + 1) if value.is_Integer else None


def _any_or_all(at: At) -> Expr | None:
    """Of elements that do not vary along the reduced dimensions, if there is one at all."""
    value = as_condition(at, _unvarying(at))
    return value if value is None or at.dtype == torch.bool else None


def _unvarying(at: At) -> Expr | None:
    source = at["self"]
    sizes = at.size(source)
    asked = at.arguments.get("dim")
    asked = range(len(sizes)) if asked is None or asked == [] else [asked] if isinstance(asked, int) else asked
    dims = {d % len(sizes) for d in asked} if sizes else set()
    if not all(at.math.nonnegative(sizes[d] - 1) for d in dims):
        return None
    kept = iter(at.index if not at.arguments.get("keepdim") else [x for d, x in enumerate(at.index) if d not in dims])
    index = [at.evaluator.fresh(at.node, d, n) if d in dims else next(kept) for d, n in enumerate(sizes)]
    value = at.read(source, index)
    return None if value.free_symbols & {index[d] for d in dims} else value


RULES: dict[str, Rule] = {
    "mm": _product("self", "mat2"), "bmm": _product("self", "mat2"),
    "baddbmm": _added_product("batch1", "batch2"), "addmm": _added_product("mat1", "mat2"),
    "cumsum": _cumsum, "any": _any_or_all, "all": _any_or_all, "amax": _unvarying, "amin": _unvarying,
}
