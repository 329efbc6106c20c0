"""out[index] = f(a[index], b[index], ...): integers exactly, floats as real numbers."""

from __future__ import annotations

from collections.abc import Callable

import sympy
import torch

from ..expr import Expr, Where
from .rules import At, Rule, constant, operator_name
from .rules_logic import logic

_WIDE = (torch.int32, torch.int64)
"""Integer types whose arithmetic on indices cannot wrap around."""


def _lift(apply: Callable[..., Expr | None]) -> Callable[..., Expr | None]:
    """f(where(c, 1, 2), 3) => where(c, f(1, 3), f(2, 3)) if constants are left."""
    def lifted(*values: Expr) -> Expr | None:
        chosen = [v for v in values if isinstance(v, Where)]
        others = [v for v in values if not isinstance(v, Where)]
        if len(chosen) == 1 and all(v.is_number for v in (*chosen[0].args[1:], *others)):
            branches = [apply(*(x if v is chosen[0] else v for v in values)) for x in chosen[0].args[1:]]
            return None if None in branches else Where(chosen[0].args[0], *branches)
        return apply(*values)
    return lifted


def _arithmetic(apply: Callable[..., Expr | None], *names: str) -> Rule:
    """A rule for numbers; narrow integers may wrap around and are loaded."""
    lifted = _lift(apply)

    def rule(at: At) -> Expr | None:
        if not (at.dtype.is_floating_point or at.dtype in _WIDE):
            return None
        values = [at.number(name) for name in names]
        return None if None in values else lifted(*values)
    return rule


def _sum(sign: int) -> Rule:
    def rule(at: At) -> Expr | None:
        if at.dtype == torch.bool:
            return logic(sympy.Or)(at)
        if not (at.dtype.is_floating_point or at.dtype in _WIDE):
            return None
        a, c, alpha = at.number("self"), at.number("other"), at.evaluator.scalar(at.arguments.get("alpha", 1))
        if a is None or c is None or alpha is None:
            return None
        return _lift(lambda a, c: a + sign * alpha * c)(a, c)
    return rule


def _mul(at: At) -> Expr | None:
    if at.dtype == torch.bool:
        return logic(sympy.And)(at)
    return _arithmetic(lambda a, c: a * c, "self", "other")(at)


def quotient(a: Expr, c: Expr) -> Expr | None:
    """a / c in floating point."""
    if c.is_zero:
        return None
    if c.is_number:
        return constant(float(a) / float(c)) if a.is_number else a * constant(1 / float(c))
    return a / c


def _div(at: At) -> Expr | None:
    mode = at.arguments.get("rounding_mode")
    if mode == "floor":
        return _floor_divide(at)
    if at.dtype.is_floating_point:
        return _arithmetic(quotient, "self", "other")(at) if mode is None else None
    return _floor_divide(at) if mode == "trunc" and _both_nonnegative(at) else None


def _both_nonnegative(at: At) -> bool:
    values = at.number("self"), at.number("other")
    return all(v is not None and v.is_integer and at.math.nonnegative(v) for v in values)


def _floor_divide(at: At) -> Expr | None:
    return _whole(at, lambda a, c: at.math.floordiv(a, c))


def _remainder(at: At) -> Expr | None:
    return _whole(at, lambda a, c: at.math.mod(a, c))


def _fmod(at: At) -> Expr | None:
    return _remainder(at) if _both_nonnegative(at) else None


def _whole(at: At, apply: Callable[[Expr, Expr], Expr]) -> Expr | None:
    """Integer division by what is known not to be zero."""
    a, c = at.number("self"), at.number("other")
    if at.dtype not in _WIDE or a is None or c is None or not (a.is_integer and c.is_integer and c.is_nonzero):
        return None
    return apply(a, c)


def _pow(at: At) -> Expr | None:
    def apply(a: Expr, c: Expr) -> Expr | None:
        if at.dtype.is_floating_point:
            if not c.is_number:
                return None
            return constant(float(a) ** float(c)) if a.is_number and a.is_nonnegative else a**c
        return a**c if c.is_Integer and 0 <= c <= 8 or a.is_number and c.is_Integer and c >= 0 else None
    return _arithmetic(apply, "self", "exponent")(at)


def _shift(at: At) -> Expr | None:
    by = at.number("other")
    left = operator_name(at.node) in ("bitwise_left_shift", "__lshift__")
    if by is None or not by.is_Integer or not 0 <= by < 31:
        return None
    return _arithmetic(lambda a: a * 2**by if left else at.math.floordiv(a, sympy.Integer(2**by)), "self")(at)


def _abs(at: At) -> Expr | None:
    def apply(a: Expr) -> Expr:
        return a if at.math.nonnegative(a) else -a if at.math.nonnegative(-a) else sympy.Abs(a)
    return _arithmetic(apply, "self")(at)


def extreme(at: At, largest: bool, a: Expr, c: Expr) -> Expr:
    """max or min, decided if it can be."""
    if at.math.nonnegative(a - c):
        return a if largest else c
    if at.math.nonnegative(c - a):
        return c if largest else a
    return (sympy.Max if largest else sympy.Min)(a, c)


def _extreme(largest: bool) -> Rule:
    def rule(at: At) -> Expr | None:
        if at.dtype == torch.bool:
            return logic(sympy.Or if largest else sympy.And)(at)
        return _arithmetic(lambda a, c: extreme(at, largest, a, c), "self", "other")(at)
    return rule


def _clamp(at: At) -> Expr | None:
    def apply(value: Expr) -> Expr | None:
        for name, largest in (("min", True), ("max", False)):
            if at.arguments.get(name) is None or value is None:
                continue
            bound = at.number(name)
            value = None if bound is None else extreme(at, largest, value, bound)
        return value
    return _arithmetic(apply, "self")(at)


def _function(apply: Callable[[Expr], Expr]) -> Rule:
    """A function of one floating number: computed for a constant, else kept as itself."""
    def rule(at: At) -> Expr | None:
        if not at.dtype.is_floating_point:
            return None
        value = at.number("self")
        if value is None:
            return None
        result = apply(value)
        return constant(float(result)) if result.is_number and result.is_finite else result
    return rule


def _negative(a: Expr) -> Expr:
    return -a


RULES: dict[str, Rule] = {
    "add": _sum(1), "sub": _sum(-1), "mul": _mul, "div": _div, "true_divide": _div, "floor_divide": _floor_divide,
    "rsub": lambda at: _arithmetic(lambda a, c: c - a, "self", "other")(at) if at["alpha"] == 1 else None,
    "remainder": _remainder, "fmod": _fmod, "pow": _pow, "neg": _arithmetic(_negative, "self"), "abs": _abs,
    **dict.fromkeys(("bitwise_left_shift", "bitwise_right_shift", "__lshift__", "__rshift__"), _shift),
    "maximum": _extreme(True), "minimum": _extreme(False),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "clip"), _clamp),
    "square": _arithmetic(lambda a: a * a, "self"),
    "relu": _arithmetic(lambda a: a if a.is_nonnegative else sympy.Max(a, 0), "self"),
    "tanh": _function(sympy.tanh), "exp": _function(sympy.exp), "sqrt": _function(sympy.sqrt),
    "log": _function(sympy.log), "rsqrt": _function(lambda a: 1 / sympy.sqrt(a)),
    "reciprocal": _function(lambda a: 1 / a), "sigmoid": _function(lambda a: 1 / (1 + sympy.exp(-a))),
}
