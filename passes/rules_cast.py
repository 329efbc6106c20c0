"""out[index] = dtype(a[index]): a cast is followed where it keeps the value, or rounds one floating type to another."""

from __future__ import annotations

import torch

from ..expr import Expr
from .rules import At, Rule, as_number
from .rules_logic import as_condition, comparable

_WIDE = (torch.int32, torch.int64)
_NARROW = (torch.float16, torch.bfloat16)


def _cast(at: At) -> Expr | None:
    name = next(iter(at.arguments))
    source, target, value = at.operand_dtype(name), at.dtype, at.operand(name)
    if value is None or source is None or source.is_complex or target.is_complex:
        return None
    if target == torch.bool:
        return as_condition(at, value, source)
    number = as_number(value)
    if not target.is_floating_point:
        return _to_integer(at, number, source, target)
    rounded = source in _NARROW and bool(number.is_integer) and not comparable(number, source)
    return None if rounded else number


def _to_integer(at: At, value: Expr, source: torch.dtype, target: torch.dtype) -> Expr | None:
    if not (value.is_integer and comparable(value, source)):
        return None
    if target in _WIDE or source == target:
        return value
    limits = torch.iinfo(target)
    fits = at.math.nonnegative(value - limits.min) and at.math.nonnegative(limits.max - value)
    return value if fits else None


def _copy(at: At) -> Expr | None:
    """copy(self, src): src, cast to the type of self."""
    same = at.operand_dtype("src") == at.dtype
    return at.operand("src") if same else None


RULES: dict[str, Rule] = {
    **dict.fromkeys(("_to_copy", "convert_element_type", "to", "type_as"), _cast), "copy": _copy,
}
