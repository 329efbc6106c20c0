"""out[index] = a[index] & b[index], a < b, where(c, a, b): conditions, and choices by them.

A comparison is read only where repeating it cannot differ: of integers and constants, not of floats, which may be rounded
or NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy
import torch

from ..expr import Expr, Where, is_bool
from .relations import ite
from .rules import At, Rule, as_number


def pick(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """The choice between two conditions is a condition, between numbers a Where."""
    if is_bool(then) and is_bool(otherwise):
        return ite(condition, then, otherwise)
    return Where(condition, as_number(then), as_number(otherwise))


def as_condition(at: At, value: Expr | None) -> Expr | None:
    """value != 0, if that is exact."""
    if value is None or is_bool(value):
        return value
    return at.math.relation("!=", value, sympy.Integer(0)) if _comparable(value) else None


def _comparable(value: Expr) -> bool:
    """Integer, or chosen among constants: comparing it symbolically cannot differ, not even for a NaN."""
    if isinstance(value, Where):
        return _comparable(value.args[1]) and _comparable(value.args[2])
    return bool(value.is_number or value.is_integer)


def logic(join: Callable[..., Expr]) -> Rule:
    def rule(at: At) -> Expr | None:
        if at.dtype != torch.bool:
            return None
        values = [as_condition(at, at.operand(name)) for name in ("self", "other")]
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
    value = as_condition(at, at.operand("self")) if at.dtype == torch.bool else None
    return None if value is None else sympy.Not(value)


def _compare(operator: str) -> Rule:
    def rule(at: At) -> Expr | None:
        a, c = at.operand("self"), at.operand("other")
        if a is None or c is None:
            return None
        if is_bool(a) and is_bool(c) and operator in ("==", "!="):
            return sympy.Xor(a, c) if operator == "!=" else sympy.Not(sympy.Xor(a, c))
        a, c = as_number(a), as_number(c)
        return at.math.relation(operator, a, c) if _comparable(a) and _comparable(c) else None
    return rule


def _where(at: At) -> Expr | None:
    condition = as_condition(at, at.operand("condition"))
    if condition in (sympy.true, sympy.false):
        return _chosen(at, "self" if condition == sympy.true else "other")
    then, otherwise = _chosen(at, "self"), _chosen(at, "other")
    return None if condition is None or then is None or otherwise is None else pick(condition, then, otherwise)


def _chosen(at: At, name: str) -> Expr | None:
    value = at.operand(name)
    return value if value is None or at.dtype == torch.bool else as_number(value)


def _masked_fill(at: At) -> Expr | None:
    condition, value, then = as_condition(at, at.operand("mask")), at.operand("self"), at.operand("value")
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
