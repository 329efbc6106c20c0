"""The language in which attention is understood: scalar expressions over an index and tensor loads.

    predicate   (j <= i) & M0[b, j]                 which keys a query sees
    score       50.0*tanh(0.0025*s) + F0[h]*(j - i) what becomes of s = q[b,h,i,:] . k[b,h,j,:]

Symbols: `b` batch, `h` query head, `i` query position, `j` key position, all counted from 0; `s` the dot product;
`n0, n1, ...` run-time integers (SymInt sizes); `x0, x1, ...` run-time floats. A tensor element is `Load(table, *index)`,
printed `T0[b, j]`; the first letter of a table's name is its type: M bool, T integer, F float. A bool element stands in
a condition as `Ne(M0[b, j], 0)`, printed `M0[b, j]`.

`to_text` and `from_text` are inverse to each other; the text is what the compile cache, the goldens and the user see.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import sympy
from sympy.printing.str import StrPrinter
from torch.utils._sympy.functions import FloorDiv, PythonMod

__all__ = [
    "FloorDiv", "Load", "PythonMod", "Where", "b", "from_text", "h", "i", "index_symbol", "is_bool", "j", "loads",
    "s", "table", "to_text", "truth",
]

Expr: TypeAlias = sympy.Basic


def index_symbol(name: str) -> sympy.Symbol:
    """An integer that is never negative: an index, or a size."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


b, h, i, j = (index_symbol(name) for name in "bhij")
s = sympy.Symbol("s", real=True)


def table(name: str) -> sympy.Symbol:
    """The name of a tensor in a Load. First letter: M bool, T integer, F float."""
    if name[0] not in "MTF":
        raise ValueError(f"table {name!r}: the first letter must be M (bool), T (integer) or F (float)")
    return sympy.Symbol(name)


class Load(sympy.Function):
    """Load(table, *index): one element of a tensor. Integer-valued for M (0 or 1) and T, real for F."""

    def _eval_is_real(self) -> bool:
        return True

    def _eval_is_integer(self) -> bool | None:
        return True if self.kind_letter in "MT" else None

    def _eval_is_nonnegative(self) -> bool | None:
        return True if self.kind_letter == "M" else None

    @property
    def kind_letter(self) -> str:
        return str(self.args[0].name)[0]

    @property
    def name(self) -> str:
        return str(self.args[0].name)

    @property
    def index(self) -> tuple[Expr, ...]:
        return self.args[1:]


class Where(sympy.Function):
    """Where(condition, then, otherwise): the element-wise choice."""

    nargs = 3

    @classmethod
    def eval(cls, condition: Expr, then: Expr, otherwise: Expr) -> Expr | None:
        if condition == sympy.true or then == otherwise:
            return then
        return otherwise if condition == sympy.false else None

    def _eval_is_real(self) -> bool | None:
        return True if self.args[1].is_extended_real and self.args[2].is_extended_real else None

    def _eval_is_integer(self) -> bool | None:
        return True if self.args[1].is_integer and self.args[2].is_integer else None


def truth(load: Load) -> Expr:
    """A bool element as a condition."""
    return sympy.Ne(load, 0)


def is_bool(expr: Expr) -> bool:
    return isinstance(expr, sympy.logic.boolalg.Boolean) and not isinstance(expr, sympy.Symbol)


def loads(expr: Expr) -> list[Load]:
    """Every tensor element in the expression, in an order that depends on the expression alone."""
    return sorted(expr.atoms(Load), key=lambda load: (load.name, str(load)))


# ---------------------------------------------------------------------------------------------------------------- text

_INFIX = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">="}


class _Printer(StrPrinter):
    """Python syntax, total: whatever of the language it prints, `from_text` reads back."""

    def _print_Load(self, e: Load) -> str:
        return f"{e.name}[{', '.join(map(self._print, e.index)) or '()'}]"

    def _print_Where(self, e: Where) -> str:
        return f"where({', '.join(map(self._print, e.args))})"

    def _print_Relational(self, e: Any) -> str:
        left, right = e.lhs, e.rhs
        if isinstance(left, Load) and left.kind_letter == "M" and right == 0:
            return ("" if isinstance(e, sympy.Ne) else "~") + self._print(left)
        return f"({self._print(left)} {_INFIX[type(e)]} {self._print(right)})"

    def _join(self, e: Expr, sign: str) -> str:
        return "(" + f" {sign} ".join(sorted(map(self._print, e.args))) + ")"

    def _print_And(self, e: Expr) -> str:
        return self._join(e, "&")

    def _print_Or(self, e: Expr) -> str:
        return self._join(e, "|")

    def _print_Xor(self, e: Expr) -> str:
        return self._join(e, "^")

    def _print_Not(self, e: Expr) -> str:
        return f"~{self._print(e.args[0])}"

    def _binary(self, e: Expr, sign: str) -> str:
        left, right = (self._print(a) if a.is_Atom or isinstance(a, Load) else f"({self._print(a)})" for a in e.args)
        return f"({left} {sign} {right})"

    def _print_FloorDiv(self, e: Expr) -> str:
        return self._binary(e, "//")

    def _print_PythonMod(self, e: Expr) -> str:
        return self._binary(e, "%")

    _print_Mod = _print_PythonMod

    def _print_Float(self, e: sympy.Float) -> str:
        return repr(float(e))

    def _print_Exp1(self, e: Expr) -> str:
        return "exp(1)"

    def _print_Infinity(self, e: Expr) -> str:
        return "inf"

    def _print_NegativeInfinity(self, e: Expr) -> str:
        return "-inf"

    def _print_BooleanTrue(self, e: Expr) -> str:
        return "True"

    def _print_BooleanFalse(self, e: Expr) -> str:
        return "False"

    def _print_Function(self, e: Any) -> str:
        return f"{type(e).__name__.lower()}({', '.join(map(self._print, e.args))})"

    _print_Min = _print_Max = _print_Abs = _print_Function


def to_text(expr: Expr) -> str:
    """One line of Python syntax. Outer parentheses are dropped."""
    text = str(_Printer().doprint(sympy.sympify(expr)))
    return text[1:-1] if text.startswith("(") and _closes_at(text) == len(text) - 1 else text


def _closes_at(text: str) -> int:
    depth = 0
    for at, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return at
    return -1


_CALLS: dict[str, Callable[..., Expr]] = {
    "where": Where, "min": sympy.Min, "max": sympy.Max, "abs": sympy.Abs, "tanh": sympy.tanh, "exp": sympy.exp,
    "log": sympy.log, "floor": sympy.floor, "ceiling": sympy.ceiling, "sqrt": sympy.sqrt,
}
_BINARY: dict[type, Callable[[Any, Any], Expr]] = {
    ast.FloorDiv: FloorDiv, ast.Mod: PythonMod, ast.Pow: operator.pow,
    ast.BitAnd: sympy.And, ast.BitOr: sympy.Or, ast.BitXor: sympy.Xor,
}
_COMPARE: dict[type, Callable[[Any, Any], Expr]] = {
    ast.Eq: sympy.Eq, ast.NotEq: sympy.Ne, ast.Lt: sympy.Lt, ast.LtE: sympy.Le, ast.Gt: sympy.Gt, ast.GtE: sympy.Ge,
}
_NAMES: dict[str, Expr] = {"b": b, "h": h, "i": i, "j": j, "s": s, "inf": sympy.oo, "nan": sympy.nan}


def from_text(text: str, condition: bool = False) -> Expr:
    """The expression that `to_text` printed; a lone bool element is read as a condition if asked.

    Raises ValueError with the part it cannot read.
    """
    try:
        body = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read {text!r} as an expression: {error.msg}") from error
    return _condition(body) if condition else _build(body)


def _build(node: ast.expr) -> Expr:
    match node:
        case ast.Constant(value=bool() as value):
            return sympy.true if value else sympy.false
        case ast.Constant(value=int() as value):
            return sympy.Integer(value)
        case ast.Constant(value=float() as value):
            return sympy.Float(value)
        case ast.Name(id=name):
            return _name(name)
        case ast.Subscript(value=ast.Name(id=name), slice=index):
            return Load(table(name), *map(_build, index.elts if isinstance(index, ast.Tuple) else [index]))
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return sympy.Not(_condition(operand))
        case ast.UnaryOp(op=ast.USub()) | ast.BinOp(op=ast.Mult() | ast.Div()):
            return sympy.Mul(*_factors(node))
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            return sympy.Add(*_terms(node))
        case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() | ast.BitXor() as op, right=right):
            return _BINARY[type(op)](_condition(left), _condition(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_build(left), _build(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _COMPARE[type(op)](_build(left), _build(right))
        case ast.Call(func=ast.Name(id="where"), args=[condition, *rest]):
            return Where(_condition(condition), *map(_build, rest))
        case ast.Call(func=ast.Name(id=name), args=args) if name in _CALLS:
            return _CALLS[name](*map(_build, args))
    raise ValueError(f"cannot read {ast.unparse(node)!r} as an expression over b, h, i, j, s and tables")


def _factors(node: ast.expr) -> list[Expr]:
    """All factors at once: in two steps sympy would distribute a number over a sum that was printed as a product."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return [sympy.S.NegativeOne, *_factors(operand)]
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return [*_factors(left), *_factors(right)]
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return [*_factors(left), *(1 / factor for factor in _factors(right))]
    return [_build(node)]


def _terms(node: ast.expr) -> list[Expr]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [*_terms(left), *_terms(right)]
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return [*_terms(left), sympy.Mul(-1, *_factors(right))]
    return [_build(node)]


def _condition(node: ast.expr) -> Expr:
    value = _build(node)
    return truth(value) if isinstance(value, Load) else value


def _name(name: str) -> Expr:
    if name in _NAMES:
        return _NAMES[name]
    if name[0] == "n" and name[1:].isdigit():
        return index_symbol(name)
    if name[0] == "x" and name[1:].isdigit():
        return sympy.Symbol(name, real=True)
    raise ValueError(f"unknown name {name!r}: expected b, h, i, j, s, n<k>, x<k> or a table M<k>, T<k>, F<k>")


def conjunction(terms: list[Expr]) -> Expr:
    """All of them: True when there is none."""
    return reduce(sympy.And, terms, sympy.true)
