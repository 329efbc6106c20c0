"""out[index] = dtype(a[index]): a cast is followed where it keeps the value, or rounds one floating type to another."""

from __future__ import annotations

import sympy
import torch

from ..expr import Expr, Load, is_bool
from .rules import At, Rule, as_number, exact
from .rules_logic import as_condition

_WIDE = (torch.int32, torch.int64)
_LIMIT = {torch.float16: 2**11, torch.bfloat16: 2**8}
"""Whole numbers up to here are exact in a narrow floating type; in float32 up to 2**24, beyond any index compared."""


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


RULES: dict[str, Rule] = {
    **dict.fromkeys(("_to_copy", "convert_element_type", "to", "type_as"), _cast), "copy": _copy,
}
