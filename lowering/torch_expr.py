"""expr.py => torch: `compile(e)(b, h, i, j, tables, sizes, scalars, s)` is the value of e over a box of indices

Python source is generated once per expression. An index is an int, an `Axis` (torch_index) or an integer tensor that
broadcasts over [B, H, T, S]; a result is a Python number where nothing varies, else a tensor. Integer parts are int64,
real parts are of `dtype` (and Python's float64 where they are scalars). Table `X<k>` is `tables[k]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import sympy
import torch
from sympy.core.relational import Relational
from torch import Tensor

from ..expr import FloorDiv, Load, PythonMod, Where, is_bool
from .torch_index import Value, load, values

Program = Callable[..., Value]

ARGUMENTS = "b, h, i, j, tables, sizes, scalars, s=None"

_COMPARE = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">="}
_LOGIC = {sympy.And: " & ", sympy.Or: " | ", sympy.Xor: " ^ "}
_CALLS = {sympy.exp: "exp", sympy.log: "log", sympy.tanh: "tanh", sympy.floor: "floor", sympy.ceiling: "ceil"}


@lru_cache(maxsize=4096)
def compile(expr: sympy.Basic, dtype: torch.dtype = torch.float32) -> Program:
    """The program of one expression. Raises ValueError naming a part that is not of the language."""
    space = {**_RUNTIME, "dtype": dtype}
    exec(source(expr), space)
    return space["program"]  # type: ignore[no-any-return]


def source(expr: sympy.Basic) -> str:
    """Python text of the program: one assignment for each distinct subexpression."""
    emitter = _Emitter()
    result = emitter.emit(expr, "bool" if is_bool(expr) else "int" if expr.is_integer else "real")
    return "\n    ".join([f"def program({ARGUMENTS}):", *emitter.lines, f"return {result}"])


class _Emitter:
    """Writes each subexpression once in each kind it is wanted: "bool", "int" (int64) or "real" (dtype)."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[tuple[sympy.Basic, str], str] = {}

    def emit(self, e: sympy.Basic, kind: str) -> str:
        """Name or literal of `e` as `kind`."""
        if e.is_number and kind != "bool":
            return _literal(e, kind)
        if (e, kind) not in self.names:
            code = getattr(self, f"_{kind}")(e)
            name = f"v{len(self.lines)}"
            self.lines.append(f"{name} = {code}")
            self.names[e, kind] = name
        return self.names[e, kind]

    def many(self, args: Sequence[sympy.Basic], kind: str) -> list[str]:
        return [self.emit(arg, kind) for arg in args]

    def _bool(self, e: sympy.Basic) -> str:
        if e in (sympy.true, sympy.false):
            return str(bool(e))
        if isinstance(e, Load):
            return self._load(e)
        if isinstance(e, sympy.Not):
            return f"{self.emit(e.args[0], 'bool')} ^ True"
        if type(e) in _LOGIC:
            return _LOGIC[type(e)].join(self.many(e.args, "bool"))
        if isinstance(e, Where):
            return self._where(e, "bool")
        if isinstance(e, Relational) and type(e) in _COMPARE:
            return self._relation(e)
        raise ValueError(f"{e} is no condition of the expression language")

    def _relation(self, e: Relational) -> str:
        left, right = e.args
        if isinstance(left, Load) and left.kind_letter == "M" and right == 0 and isinstance(e, sympy.Eq | sympy.Ne):
            return self.emit(left, "bool") + (" ^ True" if isinstance(e, sympy.Eq) else "")
        kind = "bool" if is_bool(left) else "int" if left.is_integer and right.is_integer else "real"
        return f" {_COMPARE[type(e)]} ".join(self.many(e.args, kind))

    def _int(self, e: sympy.Basic) -> str:
        if isinstance(e, sympy.Symbol):
            return f"sizes[{e.name[1:]}]" if e.name[0] == "n" and e.name != "n" else f"values({_known(e)})"
        if isinstance(e, Load):
            return f"as_int({self._load(e)})"
        return self._arithmetic(e, "int") if _stays_integer(e) else f"as_int({self._real(e)})"

    def _real(self, e: sympy.Basic) -> str:
        if isinstance(e, sympy.Symbol) and e.name == "s":
            return "s"
        if isinstance(e, sympy.Symbol) and e.name[0] == "x":
            return f"scalars[{e.name[1:]}]"
        if isinstance(e, Load):
            return f"as_real({self._load(e)}, dtype)"
        if type(e) in _CALLS:
            return f"call({_CALLS[type(e)]!r}, {self.emit(e.args[0], 'real')}, dtype)"
        if e.is_integer and _stays_integer(e):
            return f"as_real({self.emit(e, 'int')}, dtype)"
        return self._arithmetic(e, "real")

    def _arithmetic(self, e: sympy.Basic, kind: str) -> str:
        if isinstance(e, sympy.Add | sympy.Mul):
            return (" + " if isinstance(e, sympy.Add) else " * ").join(self.many(e.args, kind))
        if isinstance(e, sympy.Pow):
            return self._power(e, kind)
        if isinstance(e, FloorDiv | PythonMod | sympy.Mod):
            return (" // " if isinstance(e, FloorDiv) else " % ").join(self.many(e.args, kind))
        if isinstance(e, sympy.Min | sympy.Max):
            return f"{'least' if isinstance(e, sympy.Min) else 'most'}({', '.join(self.many(e.args, kind))})"
        if isinstance(e, sympy.Abs):
            return f"abs({self.emit(e.args[0], kind)})"
        if isinstance(e, Where):
            return self._where(e, kind)
        raise ValueError(f"{e} is not of the expression language")

    def _power(self, e: sympy.Pow, kind: str) -> str:
        base, exponent = e.args
        if exponent == sympy.S.Half:
            return f"call('sqrt', {self.emit(base, kind)}, dtype)"
        if exponent.is_Integer and exponent > 0:
            return f"{self.emit(base, kind)} ** {exponent}"
        return f"power({self.emit(base, 'real')}, {self.emit(exponent, 'real')}, dtype)"

    def _where(self, e: Where, kind: str) -> str:
        condition, then, otherwise = e.args
        return f"where({self.emit(condition, 'bool')}, {', '.join(self.many((then, otherwise), kind))}, {kind!r}, dtype)"

    def _load(self, e: Load) -> str:
        """A bare index stays an Axis, so that the load can be a view."""
        index = [a.name if str(a) in {"b", "h", "i", "j"} else self.emit(a, "int") for a in e.index]
        return f"load(tables[{e.name[1:]}], ({', '.join(index)}{',' if len(index) == 1 else ''}))"


def _stays_integer(e: sympy.Basic) -> bool:
    """Every step of computing it is exact in int64."""
    if isinstance(e, sympy.floor | sympy.ceiling):
        return False
    if isinstance(e, sympy.Pow) and not (e.exp.is_Integer and e.exp > 0):
        return False
    return all(a.is_integer for a in e.args if not is_bool(a))


def _known(symbol: sympy.Symbol) -> str:
    if symbol.name in {"b", "h", "i", "j"}:
        return symbol.name
    raise ValueError(f"{symbol} is not of the expression language: b, h, i, j, s, n<k>, x<k>")


def _literal(e: sympy.Basic, kind: str) -> str:
    if kind == "int" and e.is_Integer:
        return str(int(e)) if e >= 0 else f"({int(e)})"
    return f"({float(e)!r})"  # inf and nan are names of the program


# ------------------------------------------------------------------------------------------------------------- run time


def as_int(x: Value) -> int | Tensor:
    """Integer, exactly: narrow tables are widened so that sums cannot overflow."""
    return x.to(torch.int64) if isinstance(x, Tensor) else int(x)


def as_real(x: Value, dtype: torch.dtype) -> float | Tensor:
    return x.to(dtype) if isinstance(x, Tensor) else float(x)


def _scalar(x: float, dtype: torch.dtype) -> Tensor:
    """Scalars follow IEEE as tensors do, where Python's math would raise."""
    return torch.tensor(x, dtype=torch.float64)


def call(name: str, x: Value, dtype: torch.dtype) -> float | Tensor:
    """torch.<name>(x); a scalar stays one."""
    function = getattr(torch, name)
    return function(as_real(x, dtype)) if isinstance(x, Tensor) else function(_scalar(x, dtype)).item()


def power(x: Value, y: Value, dtype: torch.dtype) -> float | Tensor:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return torch.pow(x, y)  # type: ignore[call-overload, no-any-return]
    return torch.pow(_scalar(x, dtype), y).item()


def least(*args: Value) -> Value:
    number, tensor = _reduce(args, min, torch.minimum)
    return number if tensor is None else tensor if number is None else tensor.clamp(max=number)


def most(*args: Value) -> Value:
    number, tensor = _reduce(args, max, torch.maximum)
    return number if tensor is None else tensor if number is None else tensor.clamp(min=number)


def _reduce(args: Sequence[Value], of_numbers: Callable[..., Any], of_tensors: Callable[..., Any]) -> tuple[Any, Any]:
    """The extreme of the scalars and of the tensors, None where there is none."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    numbers = [a for a in args if not isinstance(a, Tensor)]
    return of_numbers(numbers) if numbers else None, functools.reduce(of_tensors, tensors) if tensors else None


def where(condition: Value, then: Value, otherwise: Value, kind: str, dtype: torch.dtype) -> Value:
    """The element-wise choice; a scalar condition chooses without computing."""
    if not isinstance(condition, Tensor):
        return then if condition else otherwise
    if kind == "real" and not isinstance(then, Tensor):
        then = torch.tensor(then, dtype=dtype, device=condition.device)
    return torch.where(condition, then, otherwise)  # type: ignore[arg-type]


_RUNTIME: dict[str, Any] = {
    "as_int": as_int, "as_real": as_real, "call": call, "inf": math.inf, "least": least, "load": load, "most": most,
    "nan": math.nan, "power": power, "values": values, "where": where,
}
