"""Sums over an index: matrix products stay loads of a known product; a reduction is read only if it cannot vary."""

from __future__ import annotations

import sympy
import torch

from ..expr import Expr, Load, Where
from .rules import At, Rule, as_number
from .rules_logic import as_condition


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
    if value.is_Integer:
        return value * (at.index[dim] + 1)
    count = at.evaluator.leaf(at.node, at.index)
    ramp = _jumping(value, u)
    if ramp is not None:
        at.evaluator.ramps[count] = (ramp.xreplace({u: at.index[dim]}), dim)
    return count


def _jumping(value: Expr, u: Expr) -> Expr | None:
    """p[u], if value counts the u where p[u] is not p[u - 1] + 1: between equal counts p rises by 1 a step."""
    if not isinstance(value, Where) or value.args[1:] != (1, 0):
        return None
    jumps = [c for c in sympy.And.make_args(value.args[0]) if isinstance(c, sympy.Ne)]
    starts = [c for c in sympy.And.make_args(value.args[0]) if not isinstance(c, sympy.Ne)]
    if len(jumps) != 1 or any(c != sympy.Le(1, u) and c != sympy.Ge(u, 1) for c in starts):
        return None
    step = sympy.expand(jumps[0].lhs - jumps[0].rhs)
    for load in sorted(step.atoms(Load), key=str):
        ramp = sympy.expand(load - load.xreplace({u: u - 1}) - 1)
        if u in load.free_symbols and sympy.expand(ramp - step) * sympy.expand(ramp + step) == 0:
            return load
    return None


def _any_or_all(at: At) -> Expr | None:
    """Of elements that do not vary along the reduced dimensions, if there is one at all."""
    value = as_condition(at, _unvarying(at), at.operand_dtype("self"))
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
