"""0 <= symbol < bound  =>  expr >= 0

The proof eliminates one bounded term after another, each replaced by its least favourable bound, until sizes are left: a
polynomial without a negative coefficient. "Not proved" is no statement; every "proved" holds for all values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import sympy
from sympy.core.relational import Relational
from sympy.core.sorting import default_sort_key

from ..expr import Expr, FloorDiv, Load, PythonMod, Where

P = TypeVar("P", bound="Proofs")

_DEPTH = 12
"""Bounded terms eliminated in one proof at most."""
_OPERATOR: dict[type, str] = {
    sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">=", sympy.Eq: "==", sympy.Ne: "!=",
}
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""a operator c  <=>  c FLIPPED[operator] a"""


def operator_of(relation: Expr) -> str:
    """"<", "<=", ">", ">=", "==" or "!="."""
    return _OPERATOR[type(relation)]


def outermost(expr: Expr, kind: type) -> Iterator[Expr]:
    """The subexpressions of a kind that stand in no tensor index and in no other of that kind."""
    if isinstance(expr, kind):
        yield expr
    elif not isinstance(expr, Load):
        for arg in expr.args:
            yield from outermost(arg, kind)


class Proofs:
    """What follows from `low <= symbol < high`.

    `ranges` maps a symbol to its exclusive upper bound (the lower one is 0); `lowest` gives other lower bounds, and those
    of sizes. Unknown integer symbols that sympy knows to be nonnegative count as sizes.
    """

    def __init__(self, ranges: Mapping[Expr, Expr], lowest: Mapping[Expr, Expr] | None = None) -> None:
        self.ranges = {symbol: sympy.sympify(bound) for symbol, bound in ranges.items()}
        self.lowest = lowest if lowest is not None else {}
        self._proved: dict[Expr, bool] = {}

    def nonnegative(self, expr: Expr, depth: int = _DEPTH) -> bool:
        """True if expr >= 0 for every value of its symbols; False if that is not proved."""
        if expr.is_number:
            return bool(expr >= 0)
        known = self._proved.get(expr)
        if known is None:
            known = self._proved[expr] = self._prove(sympy.expand(expr), depth)
        return known

    def _prove(self, expr: Expr, depth: int) -> bool:
        if expr.is_number:
            return bool(expr >= 0)
        if depth == 0 or not expr.is_extended_real:
            return False
        if self._sizes_only(expr):
            return self._sign_of_sizes(expr)
        for where in outermost(expr, Where):
            branches = ((where.args[0], where.args[1]), (sympy.Not(where.args[0]), where.args[2]))
            return all(self.assume(c).nonnegative(expr.xreplace({where: x}), depth - 1) for c, x in branches)
        return any(self.nonnegative(least, depth - 1) for least in self._lower_estimates(expr))

    def _sizes_only(self, expr: Expr) -> bool:
        return all(s not in self.ranges for s in expr.free_symbols) and not expr.atoms(
            Load, Where, FloorDiv, PythonMod, sympy.Max, sympy.Min, sympy.Abs
        )

    def _sign_of_sizes(self, expr: Expr) -> bool:
        """A polynomial in sizes, each its least value and a rest >= 0: where no coefficient is negative, no value is."""
        if expr.is_nonnegative:
            return True
        if not all(s.is_nonnegative and s.is_integer for s in expr.free_symbols):
            return False
        shifted = expr.xreplace({s: s + self._least(s) for s in expr.free_symbols})
        return all(c >= 0 for c in sympy.expand(shifted).as_coefficients_dict().values())

    def _least(self, size: Expr) -> Expr:
        return self.lowest.get(size, sympy.Integer(1 if size.is_positive else 0))

    def _lower_estimates(self, expr: Expr) -> Iterator[Expr]:
        """Expressions that are never above expr, each with one bounded term less."""
        generators = sorted(self._generators(expr), key=lambda g: (g.is_Symbol, default_sort_key(g)))
        for generator in generators:
            slope = expr.coeff(generator, 1)
            rest = sympy.expand(expr - slope * generator)
            sign = 1 if self.nonnegative(slope, 3) else -1 if self.nonnegative(-slope, 3) else 0
            for bound in self._bounds(generator, lower=sign > 0) if sign else ():
                yield rest + slope * bound
            if isinstance(generator, FloorDiv) and sign:
                yield from self._exact_quotient(generator, slope, rest)
            if generator.is_Symbol and sign:
                return

    def _generators(self, expr: Expr) -> set[Expr]:
        found = set()
        for term in sympy.Add.make_args(expr):
            for factor in sympy.Mul.make_args(term):
                if isinstance(factor, (FloorDiv, PythonMod, sympy.Max, sympy.Min, sympy.Abs, Load)) or factor in self.ranges:
                    found.add(factor)
        return found

    def _bounds(self, term: Expr, lower: bool) -> Iterator[Expr]:
        """Inclusive bounds of one term, on the side asked for."""
        if term in self.ranges:
            yield self.lowest.get(term, sympy.Integer(0)) if lower else self.ranges[term] - 1
        elif isinstance(term, Load) and term.kind_letter == "M":
            yield sympy.Integer(0 if lower else 1)
        elif isinstance(term, PythonMod) and term.args[1].is_positive:
            yield sympy.Integer(0) if lower else term.args[1] - 1
        elif isinstance(term, (sympy.Max, sympy.Min)) and isinstance(term, sympy.Max) == lower:
            yield from term.args
        elif isinstance(term, sympy.Abs) and lower:
            yield sympy.Integer(0)
        elif isinstance(term, FloorDiv) and term.args[1].is_positive:
            numerator, denominator = term.args
            yield from self._quotient_bounds(numerator, denominator, lower)

    def _quotient_bounds(self, a: Expr, c: Expr, lower: bool) -> Iterator[Expr]:
        if lower and self.nonnegative(a, 4):
            yield sympy.Integer(0)
        if not lower:
            yield from (FloorDiv(top, c) for top in self._above(a))

    def _above(self, a: Expr) -> Iterator[Expr]:
        """What bounds a from above: all its symbols at their largest."""
        if a.free_symbols and all(s in self.ranges for s in a.free_symbols) and not a.atoms(Load):
            top = a.xreplace({s: self.ranges[s] - 1 for s in a.free_symbols})
            if all(self.nonnegative(a.coeff(s, 1), 3) for s in a.free_symbols) and not top.has(*a.free_symbols):
                yield top

    @staticmethod
    def _exact_quotient(quotient: FloorDiv, slope: Expr, rest: Expr) -> Iterator[Expr]:
        """c * (a // c) lies in [a - c + 1, a]."""
        a, c = quotient.args
        times = slope / c
        if times.is_Integer and c.is_positive:
            yield rest + (times * (a - c + 1) if times > 0 else times * a)

    # --------------------------------------------------------------------------------------------------- assumptions

    def assume(self: P, condition: Expr) -> P:
        """These ranges, narrowed by a condition of the form symbol < bound (<=, >, >=, ==), or a conjunction of such."""
        ranges, lowest = dict(self.ranges), dict(self.lowest)
        for literal in sympy.And.make_args(condition):
            if isinstance(literal, Relational):
                self._narrow(literal, ranges, lowest)
        return self if (ranges, lowest) == (self.ranges, self.lowest) else type(self)(ranges, lowest)

    def _narrow(self, literal: Expr, ranges: dict[Expr, Expr], lowest: dict[Expr, Expr]) -> None:
        operator = operator_of(literal)
        if not (literal.lhs.is_integer and literal.rhs.is_integer):
            return
        for symbol in literal.free_symbols & ranges.keys():
            rest = sympy.expand(literal.lhs - literal.rhs)
            slope = rest.coeff(symbol, 1)
            bound = -slope * (rest - slope * symbol)
            if abs(slope) != 1 or not all(s not in self.ranges for s in bound.free_symbols) or bound.atoms(Load):
                continue
            way = operator if slope == 1 else FLIPPED.get(operator, operator)
            above = {"<": bound, "<=": bound + 1, "==": bound + 1}.get(way)
            below = {">": bound + 1, ">=": bound, "==": bound}.get(way)
            if above is not None and self.nonnegative(ranges[symbol] - above):
                ranges[symbol] = above
            if below is not None and self.nonnegative(below - lowest.get(symbol, sympy.Integer(0))):
                lowest[symbol] = below
