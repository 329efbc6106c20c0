"""out[index] = a[index] & b[index], a < b, where(c, a, b): conditions, and choices by them.

A comparison is read only where repeating it cannot differ: of integers and constants, not of floats, which may be rounded
or NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy
import torch

from ..expr import Expr, Load, Where, is_bool
from .relations import ite
from .rules import At, Rule, as_number


def pick(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """The choice between two conditions is a condition, between numbers a Where."""
    if is_bool(then) and is_bool(otherwise):
        return ite(condition, then, otherwise)
    return Where(condition, as_number(then), as_number(otherwise))


def comparable(value: Expr, dtype: torch.dtype | None) -> bool:
    """Repeating a comparison of the value, held as dtype, cannot differ: no rounding, no NaN.

    Whole numbers made of indices are exact in float32 (below 2**24), not in the narrow types; loaded ones may be larger.
    """
    if isinstance(value, Where):
        return comparable(value.args[1], dtype) and comparable(value.args[2], dtype)
    if value.is_number or dtype is None or not dtype.is_floating_point:
        return bool(value.is_number or value.is_integer)
    return dtype in (torch.float32, torch.float64) and bool(value.is_integer) and not value.atoms(Load)


def as_condition(at: At, value: Expr | None, dtype: torch.dtype | None = None) -> Expr | None:
    """value != 0, if that is exact."""
    if value is None or is_bool(value):
        return value
    return at.math.relation("!=", value, sympy.Integer(0)) if comparable(value, dtype) else None


def condition_of(at: At, name: str) -> Expr | None:
    """The argument as a condition."""
    return as_condition(at, at.operand(name), at.operand_dtype(name))


def logic(join: Callable[..., Expr]) -> Rule:
    def rule(at: At) -> Expr | None:
        if at.dtype != torch.bool:
            return None
        values = [condition_of(at, name) for name in ("self", "other")]
        if None in values:
            return None
        joined = join(*values)
        return _within_ramps(at, joined) if isinstance(joined, sympy.And) else joined
    return rule


def _within_ramps(at: At, condition: Expr) -> Expr:
    """document[i] == document[j] & position[j] <= position[i]  =>  document[i] == document[j] & j <= i

    where document counts the jumps of position, so that within one the positions differ as their indices do.
    """
    ramps, parts = at.evaluator.ramps, list(condition.args)
    for same in [c for c in parts if isinstance(c, sympy.Eq) and c.lhs in ramps and c.rhs in ramps]:
        (a, dim), (c, _) = ramps[same.lhs], ramps[same.rhs]
        x, y = same.lhs.index[dim], same.rhs.index[dim]
        elsewhere = [d for d, (p, q) in enumerate(zip(same.lhs.index, same.rhs.index, strict=True)) if d != dim and p != q]
        if same.lhs.name == same.rhs.name and not elsewhere:
            parts = [part if part == same else at.math.given_equal(part, a, c + x - y) for part in parts]
    return sympy.And(*parts)


def _not(at: At) -> Expr | None:
    value = condition_of(at, "self") if at.dtype == torch.bool else None
    return None if value is None else sympy.Not(value)


def _compare(operator: str) -> Rule:
    def rule(at: At) -> Expr | None:
        a, c = at.operand("self"), at.operand("other")
        if a is None or c is None:
            return None
        if is_bool(a) and is_bool(c) and operator in ("==", "!="):
            return sympy.Xor(a, c) if operator == "!=" else sympy.Not(sympy.Xor(a, c))
        a, c = as_number(a), as_number(c)
        common = _common_dtype(at)
        return at.math.relation(operator, a, c) if comparable(a, common) and comparable(c, common) else None
    return rule


def _common_dtype(at: At) -> torch.dtype | None:
    """The type two tensors are compared in. A number beside an integer tensor counts as exact."""
    dtypes = [dtype for name in ("self", "other") if (dtype := at.operand_dtype(name)) is not None]
    return torch.promote_types(dtypes[0], dtypes[-1]) if dtypes else None


def _where(at: At) -> Expr | None:
    condition = condition_of(at, "condition")
    if condition in (sympy.true, sympy.false):
        return _chosen(at, "self" if condition == sympy.true else "other")
    then, otherwise = _chosen(at, "self"), _chosen(at, "other")
    return None if condition is None or then is None or otherwise is None else pick(condition, then, otherwise)


def _chosen(at: At, name: str) -> Expr | None:
    value = at.operand(name)
    return value if value is None or at.dtype == torch.bool else as_number(value)


def _masked_fill(at: At) -> Expr | None:
    condition, value, then = condition_of(at, "mask"), at.operand("self"), at.operand("value")
    if condition is None or value is None or then is None:
        return None
    return pick(condition, as_condition(at, then) if at.dtype == torch.bool else as_number(then), value)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__"), logic(sympy.And)),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__"), logic(sympy.Or)),
    **dict.fromkeys(("logical_xor", "bitwise_xor", "__xor__"), logic(sympy.Xor)),
    **dict.fromkeys(("logical_not", "bitwise_not"), _not),
    "lt": _compare("<"), "le": _compare("<="), "gt": _compare(">"), "ge": _compare(">="),
    "eq": _compare("=="), "ne": _compare("!="), "where": _where, "masked_fill": _masked_fill,
}
