"""out[index] = f(a[index], b[index], ...): arithmetic, comparison, logic, choice and casts."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import sympy
import torch

from ..expr import Expr, Load, Where, is_bool
from .index_math import ite, outermost
from .rules import At, Rule, as_number, constant, exact

_WIDE = (torch.int32, torch.int64)
_LIMIT = {torch.float16: 2**11, torch.bfloat16: 2**8}


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


# ------------------------------------------------------------------------------------------------------- arithmetic


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
            return _logic(sympy.Or)(at)
        if not (at.dtype.is_floating_point or at.dtype in _WIDE):
            return None
        a, c, alpha = at.number("self"), at.number("other"), at.evaluator.scalar(at.arguments.get("alpha", 1))
        if a is None or c is None or alpha is None:
            return None
        return _lift(lambda a, c: a + sign * alpha * c)(a, c)
    return rule


def _mul(at: At) -> Expr | None:
    if at.dtype == torch.bool:
        return _logic(sympy.And)(at)
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
    left = "left" in str(at.node.target)
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
            return _logic(sympy.Or if largest else sympy.And)(at)
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


# ------------------------------------------------------------------------------------------------------------ logic


def _logic(join: Callable[..., Expr]) -> Rule:
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


# ------------------------------------------------------------------------------------------------------------ casts


def _cast(at: At) -> Expr | None:
    source, target = at.operand_dtype(next(iter(at.arguments))), at.dtype
    value = at.operand(next(iter(at.arguments)))
    if value is None or source is None or source.is_complex or target.is_complex:
        return None
    if target == torch.bool:
        return as_condition(at, value)
    if not target.is_floating_point:
        return _to_integer(at, as_number(value), source, target)
    rounded = source in _LIMIT and not exact_in(at, value, source)
    return None if rounded and value.is_integer and not isinstance(value, Load) else as_number(value)


def exact_in(at: At, value: Expr, dtype: torch.dtype) -> bool:
    """Whole numbers up to the limit of dtype are held exactly."""
    limit = sympy.Integer(_LIMIT[dtype])
    return is_bool(value) or at.math.nonnegative(limit - value) and at.math.nonnegative(limit + value)


def _to_integer(at: At, value: Expr, source: torch.dtype, target: torch.dtype) -> Expr | None:
    if not (value.is_integer and exact(value)):
        return None
    if target in _WIDE:
        return value
    limits = torch.iinfo(target)
    fits = at.math.nonnegative(value - limits.min) and at.math.nonnegative(limits.max - value)
    return value if fits or source == target else None


def _copy(at: At) -> Expr | None:
    """copy(self, src): src, cast to the type of self."""
    same = at.operand_dtype("src") == at.dtype
    return at.operand("src") if same else None


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
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__"), _logic(sympy.And)),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__"), _logic(sympy.Or)),
    **dict.fromkeys(("logical_xor", "bitwise_xor", "__xor__"), _logic(sympy.Xor)),
    **dict.fromkeys(("logical_not", "bitwise_not"), _not),
    "lt": _compare("<"), "le": _compare("<="), "gt": _compare(">"), "ge": _compare(">="),
    "eq": _compare("=="), "ne": _compare("!="),
    "where": _where, "masked_fill": _masked_fill, "copy": _copy,
    **dict.fromkeys(("_to_copy", "convert_element_type", "to", "type_as"), _cast),
}
