"""visible(b,h,i,j)  <=>  lo <= j < hi  and  residue          for 0 <= j < S

    (j <= i) & (i - 4096 < j) & M[b, j]     lo = i - 4095   hi = i + 1   residue = M[b, j]
    (j <= i) | (j < T[b])                   hi = max(i + 1, T[b])
    T[b, i] == T[b, j]                      residue

A condition is a hull, exact or not: an interval of j that holds every j where it is true. Hulls of a conjunction
intersect, those of a disjunction are enveloped; a condition whose hull is exact leaves no residue. `lo` and `hi` may lie
outside [0, S]: they are clipped by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanFunction, to_nnf

from ..expr import Expr, FloorDiv, Where, j
from .index_math import IndexMath
from .proofs import FLIPPED, operator_of
from .split_mask import hidden, split_mask

__all__ = ["Raised", "hidden", "raise_mask", "split_mask"]

_COMPARISONS = 256
"""Comparisons of a predicate for which a hull is looked for, at most."""


@dataclass(frozen=True)
class Raised:
    """visible <=> lo <= j < hi and residue."""

    lo: Expr
    hi: Expr
    residue: Expr


@dataclass(frozen=True)
class _Hull:
    """condition => row and lo <= j < hi; if exact, also the converse. `row` has no j; lo 0 and hi oo bind nothing."""

    lo: Expr = sympy.Integer(0)
    hi: Expr = sympy.oo
    row: Expr = sympy.true
    exact: bool = False


_ALL = _Hull(exact=True)
_NONE = _Hull(row=sympy.false, exact=True)


def raise_mask(predicate: Expr, ranges: Mapping[Expr, Expr], keys: Expr, lowest: Mapping[Expr, Expr] | None = None) -> Raised:
    """The hull of the visible keys, and what the hull does not say.

    `ranges`: exclusive upper bounds of the index symbols; `keys`: S, the number of keys; `lowest`: of the sizes.
    """
    if _too_large(predicate):
        return Raised(sympy.Integer(0), sympy.oo, predicate)
    math = IndexMath({**ranges, j: keys}, lowest)
    condition = to_nnf(math.redecided(to_nnf(predicate, simplify=False)), simplify=False)
    solver = _Solver(math, keys)
    parts = [(c, solver.hull(c)) for c in sorted(sympy.And.make_args(condition), key=str)]
    whole = solver.intersection([hull for _, hull in parts])
    lo, hi = solver.bounds(whole)
    return Raised(lo, hi, sympy.true if hi == 0 else sympy.And(*(c for c, hull in parts if not hull.exact)))


def _too_large(predicate: Expr) -> bool:
    """More comparisons than a hull is worth, once exclusive or and the like are written out."""
    def size(c: Expr) -> int:
        parts = [size(arg) for arg in c.args] if isinstance(c, BooleanFunction) else []
        return 2 ** min(len(parts), 10) * max(parts) if isinstance(c, sympy.Xor) else sum(parts) or 1
    return size(predicate) > _COMPARISONS


class _Solver:
    """Hulls of conditions, under proofs by `math` for 0 <= j < keys."""

    def __init__(self, math: IndexMath, keys: Expr) -> None:
        self.math = math
        self.keys = keys

    def hull(self, c: Expr) -> _Hull:
        if j not in c.free_symbols:
            return _Hull(row=c, exact=True)
        if isinstance(c, sympy.And):
            return self.intersection([self.hull(part) for part in sorted(c.args, key=str)])
        if isinstance(c, sympy.Or):
            return self._alternatives(sorted(c.args, key=str))
        return self._literal(operator_of(c), c.lhs, c.rhs) if isinstance(c, Relational) else _Hull()

    def bounds(self, hull: _Hull) -> tuple[Expr, Expr]:
        """lo and hi of a hull, with hi = 0 in rows that see nothing."""
        if hull.row == sympy.true:
            return hull.lo, hull.hi
        if hull.row == sympy.false:
            return sympy.Integer(0), sympy.Integer(0)
        return hull.lo, Where(hull.row, self.keys if hull.hi == sympy.oo else hull.hi, sympy.Integer(0))

    # ------------------------------------------------------------------------------------------------ and, or

    def intersection(self, hulls: list[_Hull]) -> _Hull:
        lo = self._most([h.lo for h in hulls if h.lo != 0], largest=True)
        hi = self._most([h.hi for h in hulls if h.hi != sympy.oo], largest=False)
        return self._clipped(_Hull(lo, hi, sympy.And(*(h.row for h in hulls)), all(h.exact for h in hulls)))

    def _alternatives(self, conditions: list[Expr]) -> _Hull:
        """The envelope: exact for intervals that all start at 0, or all end at S, or never meet in a row."""
        hulls = [self.hull(c) for c in conditions]
        hulls = [h for h in hulls if h.row != sympy.false]
        if _ALL in hulls or not hulls:
            return _ALL if hulls else _NONE
        exact = all(h.exact for h in hulls)
        if len(hulls) == 2 and hulls[1].row == sympy.Not(hulls[0].row):
            first, second = hulls
            return self._by_row(first, second, exact)
        row = sympy.Or(*(h.row for h in hulls))
        if exact and all(h.lo == 0 for h in hulls):
            return self._clipped(_Hull(hi=self._most([self.bounds(h)[1] for h in hulls], largest=True), row=row, exact=True))
        if exact and all(h.hi == sympy.oo for h in hulls):
            starts = [h.lo if h.row == sympy.true else Where(h.row, h.lo, self.keys) for h in hulls]
            return self._clipped(_Hull(lo=self._most(starts, largest=False), row=row, exact=True))
        lo = self._most([h.lo for h in hulls], largest=False)
        hi = self._most([h.hi for h in hulls], largest=True)
        return self._clipped(_Hull(lo, hi, row, exact and len(hulls) == 1))

    def _by_row(self, a: _Hull, c: _Hull, exact: bool) -> _Hull:
        """One interval in some rows, the other in the rest."""
        hi = [self.keys if h.hi == sympy.oo else h.hi for h in (a, c)]
        return self._clipped(_Hull(Where(a.row, a.lo, c.lo), Where(a.row, *hi), sympy.true, exact))

    def _most(self, bounds: list[Expr], largest: bool) -> Expr:
        """max or min without the terms that are proved to be no tighter than another; of none, what binds nothing."""
        if not bounds:
            return sympy.Integer(0) if largest else sympy.oo
        if not largest and sympy.Integer(0) in bounds:
            return sympy.Integer(0)
        kept: list[Expr] = []
        for bound in dict.fromkeys(bounds):
            if any(self._beyond(k, bound, largest) for k in kept):
                continue
            kept = [k for k in kept if not self._beyond(bound, k, largest)] + [bound]
        return (sympy.Max if largest else sympy.Min)(*kept)

    def _beyond(self, a: Expr, c: Expr, largest: bool) -> bool:
        """a >= c for max, a <= c for min, proved."""
        if not largest:
            a, c = c, a
        if a == sympy.oo or c.is_number and c <= 0 and self.math.nonnegative(a):
            return True
        return not a.has(sympy.oo) and not c.has(sympy.oo) and self.math.nonnegative(a - c)

    def _clipped(self, hull: _Hull) -> _Hull:
        """Bounds that bind nothing are dropped."""
        lo = sympy.Integer(0) if self.math.nonnegative(-hull.lo) else hull.lo
        free = hull.hi != sympy.oo and not hull.hi.has(sympy.oo) and self.math.nonnegative(hull.hi - self.keys)
        return _Hull(lo, sympy.oo if free else hull.hi, hull.row, hull.exact)

    # ----------------------------------------------------------------------------------------------- comparisons

    def _literal(self, operator: str, left: Expr, right: Expr) -> _Hull:
        """left operator right, of integers. Moved to `term operator rest` where only the term has j, if there is one."""
        if not (left.is_integer and right.is_integer):
            return _Hull()
        difference = sympy.expand(left - right)
        terms = [t for t in sympy.Add.make_args(difference) if j in t.free_symbols]
        linear = sum((t for t in terms if t.coeff(j, 1).is_Integer and t == t.coeff(j, 1) * j), sympy.Integer(0))
        others = [t for t in terms if not t.coeff(j, 1).is_Integer or t != t.coeff(j, 1) * j]
        if not others:
            return self._linear(operator, linear.coeff(j, 1), difference - linear)
        if len(others) != 1 or linear != 0:
            return _Hull()
        factor, term = others[0].as_coeff_Mul()
        rest = -(difference - others[0])
        if not factor.is_Integer or not isinstance(term, (FloorDiv, sympy.Max, sympy.Min, sympy.Abs)):
            return _Hull()
        if factor < 0:
            operator, factor, rest = FLIPPED.get(operator, operator), -factor, -rest
        return self._scaled_term(operator, factor, term, rest)

    def _scaled_term(self, operator: str, factor: Expr, term: Expr, rest: Expr) -> _Hull:
        """factor * term `operator` rest, for factor > 0"""
        if factor == 1 or operator == "!=":
            return self._term(operator, term, rest) if factor == 1 else _Hull()
        least, most = -self.math.floordiv(-rest, factor), self.math.floordiv(rest, factor)
        at_least, at_most = self._term(">=", term, least), self._term("<=", term, most)
        match operator:
            case "==":
                return self.intersection([at_least, at_most])
            case ">=":
                return at_least
            case "<=":
                return at_most
        return self._term(operator, term, most if operator == ">" else least)

    def _linear(self, operator: str, slope: Expr, rest: Expr) -> _Hull:
        """slope * j + rest `operator` 0"""
        if operator == "!=":
            return self._unequal(slope, rest)
        if slope < 0:
            operator, slope, rest = FLIPPED.get(operator, operator), -slope, -rest
        at_least = -self.math.floordiv(rest, slope)            # j >= ceil(-rest / slope)
        beyond = self.math.floordiv(-rest, slope) + 1          # j <= floor(-rest / slope)
        lo = {"==": at_least, ">=": at_least, ">": beyond}.get(operator, sympy.Integer(0))
        hi = {"==": beyond, "<=": beyond, "<": at_least}.get(operator, sympy.oo)
        return self._clipped(_Hull(lo, hi, exact=True))

    def _unequal(self, slope: Expr, rest: Expr) -> _Hull:
        """j != e cuts off an end, if e is one."""
        e = -rest / slope
        if e == 0:
            return _Hull(lo=sympy.Integer(1), exact=True)
        return _Hull(hi=e, exact=True) if e.is_integer and sympy.expand(e - self.keys + 1) == 0 else _Hull()

    def _term(self, operator: str, term: Expr, rest: Expr) -> _Hull:
        if isinstance(term, FloorDiv):
            numerator, denominator = term.args
            return self._quotient(operator, numerator, denominator, rest)
        if operator == "!=" or operator == "==":
            return _Hull()
        if isinstance(term, sympy.Abs):
            term = sympy.Max(term.args[0], -term.args[0], evaluate=False)
        every = isinstance(term, sympy.Max) == (operator in ("<", "<="))
        conditions = [self.math.relation(operator, arg, rest) for arg in term.args]
        conditions = sorted(conditions, key=str)
        return self.intersection([self.hull(c) for c in conditions]) if every else self._alternatives(conditions)

    def _quotient(self, operator: str, a: Expr, c: Expr, rest: Expr) -> _Hull:
        """a // c `operator` rest, for c > 0: a lies between multiples of c."""
        if not c.is_positive:
            return _Hull()
        start, end = sympy.expand(c * rest), sympy.expand(c * (rest + 1))
        match operator:
            case "<":
                return self._literal("<", a, start)
            case "<=":
                return self._literal("<", a, end)
            case ">":
                return self._literal(">=", a, end)
            case ">=":
                return self._literal(">=", a, start)
            case "==":
                return self.intersection([self._literal(">=", a, start), self._literal("<", a, end)])
        return _Hull()
