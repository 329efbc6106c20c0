"""where(c, x, -inf) + where(d, 0, -inf)  =>  visible where c & d, with value x

Values that stand for "not visible" (-inf, the least number of a floating type) are pulled out of a score or an additive
mask; where something is visible, the value is what it was.
"""

from __future__ import annotations

import sympy
import torch

from ..expr import Expr, Where, is_bool
from .relations import ite

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FAR = -1e30
"""No score of finite operands comes near, and exp(_FAR - score) is 0."""
_LEAST = frozenset(torch.finfo(dtype).min for dtype in _FLOATS)


def hidden(value: Expr, dtype: torch.dtype = torch.float32) -> bool:
    """A constant that stands for "not visible": -inf, the least number of a floating type (possibly scaled), or of dtype."""
    if value == -sympy.oo:
        return True
    return bool(value.is_Number and (value <= max(_FAR, torch.finfo(dtype).min) or float(value) in _LEAST))


def split_mask(value: Expr, dtype: torch.dtype = torch.float32) -> tuple[Expr, Expr]:
    """value = where(predicate, rest, hidden), as (predicate, rest). A condition is its own predicate, with rest 0."""
    if is_bool(value):
        return value, sympy.Integer(0)
    predicate, rest = _split(value, dtype if dtype.is_floating_point else torch.float32)
    return predicate, sympy.Integer(0) if rest is None else rest


def _split(value: Expr, dtype: torch.dtype) -> tuple[Expr, Expr | None]:
    """(predicate, rest); rest is None where nothing is ever visible."""
    if hidden(value, dtype):
        return sympy.false, None
    if isinstance(value, Where):
        return _split_choice(value, dtype)
    if value.is_Add:
        return _split_sum(value, dtype)
    if value.is_Mul:
        return _split_scaled(value, dtype)
    return sympy.true, value


def _split_choice(value: Where, dtype: torch.dtype) -> tuple[Expr, Expr | None]:
    condition, then, otherwise = value.args
    (seen, x), (other_seen, y) = _split(then, dtype), _split(otherwise, dtype)
    predicate = ite(condition, seen, other_seen)
    if x is None or y is None:
        return predicate, y if x is None else x
    return predicate, Where(condition, x, y)


def _split_sum(value: Expr, dtype: torch.dtype) -> tuple[Expr, Expr | None]:
    parts = [_split(term, dtype) for term in value.args]
    predicate = sympy.And(*(p for p, _ in parts))
    rests = [rest for _, rest in parts]
    return predicate, None if None in rests else sympy.Add(*rests)


def _split_scaled(value: Expr, dtype: torch.dtype) -> tuple[Expr, Expr | None]:
    """A positive constant times a choice: into the branches, where the product may still hide."""
    factor, rest = value.as_coeff_Mul()
    if not isinstance(rest, (Where, sympy.Add)) or not factor.is_positive:
        return sympy.true, value
    if isinstance(rest, sympy.Add):
        return _split(sympy.Add(*(factor * term for term in rest.args)), dtype)
    condition, then, otherwise = rest.args
    predicate, inner = _split_choice(Where(condition, factor * then, factor * otherwise), dtype)
    return (sympy.true, value) if predicate == sympy.true else (predicate, inner)
