"""An expression (mla_compiler.expr)  =>  Triton statements and a Triton expression.

    T0[b, j] == T0[b, i]      =>      v0 = tl.load(T0 + ...)
                                      v1 = tl.load(T0 + ...)
                                      v0 == v1
Every element is loaded once, at 64-bit addresses, and within the table: an index outside it (which only the branch of a
Where that is not taken can have) reads nothing and gives 0. Integers are int32 until a product of two unknowns, a table
or an address needs 64 bits; reals are float32.
"""

from __future__ import annotations

import math

import sympy

from .. import expr as E
from .errors import LoweringError

_RELATION = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">="}
_CALL = {
    sympy.exp: "tl.exp({})", sympy.log: "tl.log({})", sympy.tanh: "tanh({})", sympy.Abs: "tl.abs({})",
}
_LOGIC = {sympy.And: " & ", sympy.Or: " | ", sympy.Xor: " ^ "}
_SYMBOLS = ("b", "h", "i", "j", "s")


class Printer:
    """Prints expressions of one function; `statements` are the loads they need, in order."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.statements: list[str] = []
        self._loaded: dict[sympy.Basic, str] = {}

    def real(self, expr: sympy.Basic) -> str:
        """As float32."""
        if isinstance(expr, sympy.Number) or expr in (sympy.oo, -sympy.oo):
            return _float(float(expr))
        text = self.print(expr)
        return f"tl.cast({bare(text)}, tl.float32)" if expr.is_integer else text

    def print(self, expr: sympy.Basic) -> str:
        """One Triton expression, in parentheses wherever it is not an atom or a call. LoweringError if there is none."""
        for kind in type(expr).__mro__:
            method = getattr(self, f"_print_{kind.__name__}", None)
            if method is not None:
                return str(method(expr))
        raise LoweringError(f"{type(expr).__name__} cannot be written in Triton: {expr}")

    # ---- leaves

    def _print_Symbol(self, e: sympy.Symbol) -> str:
        if e.name not in _SYMBOLS and not (e.name[0] in "nx" and e.name[1:].isdigit()):
            raise LoweringError(f"unknown symbol {e.name!r}")
        self.used.add(e.name)
        return str(e.name)

    def _print_Integer(self, e: sympy.Integer) -> str:
        return str(int(e)) if e >= 0 else f"({int(e)})"

    def _print_Number(self, e: sympy.Number) -> str:
        return _float(float(e))

    def _print_NaN(self, e: sympy.Basic) -> str:
        raise LoweringError("an expression is NaN")

    def _print_BooleanTrue(self, e: sympy.Basic) -> str:
        return "True"

    def _print_BooleanFalse(self, e: sympy.Basic) -> str:
        return "False"

    def _print_Load(self, e: E.Load) -> str:
        if e not in self._loaded:
            address = self._address(e)
            name = f"v{len(self._loaded)}"
            comment = f"# {E.to_text(e)}"
            cast = {"M": ".to(tl.int32)", "T": "", "F": ".to(tl.float32)"}[e.kind_letter]
            self.statements += [comment, f"{name} = tl.load({address}){cast}"]
            self._loaded[e] = name
        return self._loaded[e]

    def _address(self, e: E.Load) -> str:
        terms, inside = [self._use(e.name)], []
        for dim, index in enumerate(e.index):
            if index == 0:
                continue
            text = self._named(index)
            wide = text if index.is_number else f"{text}.to(tl.int64)"
            terms.append(f"{wide} * {self._use(f'{e.name}_stride{dim}')}")
            if index not in (E.b, E.h) and not index.is_number:
                inside += [] if index.is_nonnegative else [f"({text} >= 0)"]
                inside.append(f"({text} < {self._use(f'{e.name}_length{dim}')})")
        return " + ".join(terms) + (f",\n             mask={' & '.join(inside)}, other=0" if inside else "")

    def _use(self, name: str) -> str:
        self.used.add(name)
        return name

    def _named(self, index: sympy.Basic) -> str:
        """A name for an index, or the index itself if it is a name or a number."""
        if index.is_Symbol or index.is_number:
            return self.print(index)
        if index not in self._loaded:
            text = self.print(index)
            self._loaded[index] = f"at{len(self._loaded)}"
            self.statements.append(f"{self._loaded[index]} = {bare(text)}")
        return self._loaded[index]

    # ---- conditions

    def _print_Relational(self, e: sympy.core.relational.Relational) -> str:
        return f"({self.print(e.lhs)} {_RELATION[type(e)]} {self.print(e.rhs)})"

    def _print_BooleanFunction(self, e: sympy.Basic) -> str:
        if type(e) not in _LOGIC:
            raise LoweringError(f"{type(e).__name__} cannot be written in Triton: {e}")
        return "(" + _LOGIC[type(e)].join(map(self.print, _ordered(e.args))) + ")"

    def _print_Not(self, e: sympy.Basic) -> str:
        return f"({self.print(e.args[0])} == 0)"

    def _print_Where(self, e: E.Where) -> str:
        condition, then, otherwise = e.args
        write = self.print if E.is_bool(then) or (then.is_integer and otherwise.is_integer) else self.real
        return f"tl.where({self.print(condition)}, {write(then)}, {write(otherwise)})"

    # ---- arithmetic

    def _print_Add(self, e: sympy.Add) -> str:
        write = self.print if e.is_integer else self.real
        text = ""
        for term in _ordered(e.args):
            minus = term.could_extract_minus_sign() and text
            text += (f" {'-' if minus else '+'} " if text else "") + write(-term if minus else term)
        return f"({text})"

    def _print_Mul(self, e: sympy.Mul) -> str:
        if e.is_integer and all(a.is_integer for a in e.args):
            factors = [self.print(a) for a in _ordered(e.args)]
            if sum(not a.is_number for a in e.args) > 1:
                factors[-1] = f"tl.cast({factors[-1]}, tl.int64)"
            return "(" + " * ".join(factors) + ")"
        above = [a for a in e.args if not _is_inverse(a)]
        below = [1 / a for a in e.args if _is_inverse(a)]
        top = " * ".join(map(self.real, _ordered(above))) or "1.0"
        return f"({top}" + "".join(f" / {self.real(a)}" for a in _ordered(below)) + ")"

    def _print_Pow(self, e: sympy.Pow) -> str:
        base, power = e.args
        if power == sympy.Rational(1, 2):
            return f"tl.sqrt_rn({self.real(base)})"
        if power.is_Integer and 2 <= power <= 4:
            text = f"tl.cast({self.print(base)}, tl.int64)" if base.is_integer else self.real(base)
            return "(" + " * ".join([text] * int(power)) + ")"
        if power.is_number and power < 0:
            return f"(1.0 / {self.real(1 / e)})"
        if base.is_number and base > 0:
            return f"tl.exp2({self.real(power * sympy.Float(math.log2(base)))})"
        raise LoweringError(f"a power cannot be written in Triton: {e}")

    def _print_floor(self, e: sympy.Basic) -> str:
        return f"tl.floor({bare(self.real(e.args[0]))}).to(tl.int64)"

    def _print_ceiling(self, e: sympy.Basic) -> str:
        return f"tl.ceil({bare(self.real(e.args[0]))}).to(tl.int64)"

    def _print_FloorDiv(self, e: sympy.Basic) -> str:
        return self._divide(e, "//", "floor_div")

    def _print_PythonMod(self, e: sympy.Basic) -> str:
        return self._divide(e, "%", "floor_mod")

    _print_Mod = _print_PythonMod

    def _divide(self, e: sympy.Basic, sign: str, function: str) -> str:
        above, below = e.args
        if not (above.is_integer and below.is_integer):
            raise LoweringError(f"{sign} of reals cannot be written in Triton: {e}")
        if above.is_nonnegative and below.is_nonnegative:
            return f"({self.print(above)} {sign} {self.print(below)})"
        self.used.add(function)
        return f"{function}({self.print(above)}, {self.print(below)})"

    def _print_Max(self, e: sympy.Max) -> str:
        return self._extreme(e, "tl.maximum")

    def _print_Min(self, e: sympy.Min) -> str:
        return self._extreme(e, "tl.minimum")

    def _extreme(self, e: sympy.Basic, function: str) -> str:
        """NaN wins, as in torch."""
        write, tail = (self.print, "") if e.is_integer else (self.real, ", propagate_nan=tl.PropagateNan.ALL")
        first, *rest = map(write, _ordered(e.args))
        for text in rest:
            first = f"{function}({first}, {text}{tail})"
        return first

    def _print_Function(self, e: sympy.Function) -> str:
        if type(e) not in _CALL:
            raise LoweringError(f"{type(e).__name__} cannot be written in Triton: {e}")
        if type(e) is sympy.tanh:
            self.used.add("tanh")
        write = self.print if e.is_integer else self.real
        return _CALL[type(e)].format(bare(write(e.args[0])))


def bare(text: str) -> str:
    """Without the outer parentheses, if they enclose it all."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1] if text.startswith("(") else text


def _is_inverse(e: sympy.Basic) -> bool:
    return isinstance(e, sympy.Pow) and e.exp.is_number and bool(e.exp < 0)


def _ordered(args: tuple[sympy.Basic, ...] | list[sympy.Basic]) -> list[sympy.Basic]:
    """The terms of s, then numbers, then by text, the negative last: the same source for the same meaning."""
    return sorted(args, key=lambda a: (not a.has(E.s), a.could_extract_minus_sign(), not a.is_number, str(a)))


def _float(value: float) -> str:
    if math.isnan(value):
        raise LoweringError("an expression is NaN")
    return repr(value) if math.isfinite(value) else f'float("{value}")'
