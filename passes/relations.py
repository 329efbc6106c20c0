"""a < c, decided where it can be proved; choices are lifted out: where(p, x, y) < c  =>  p & (x < c) | ~p & (y < c)"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor

import sympy
from sympy.core.relational import Relational
from sympy.core.sorting import default_sort_key

from ..expr import Expr, Where
from .proofs import Proofs, operator_of, outermost

_SWAPPED = {">": "<", ">=": "<="}
_RELATION: dict[str, Callable[[Expr, Expr], Expr]] = {"<": sympy.Lt, "<=": sympy.Le, "==": sympy.Eq, "!=": sympy.Ne}
_CHOICES = 4
"""Choices lifted out of one comparison at most."""


def ite(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """(condition and then) or (not condition and otherwise), for conditions."""
    if then == otherwise:
        return then
    if then == sympy.true:
        return sympy.Or(condition, otherwise)
    if otherwise == sympy.true:
        return sympy.Or(sympy.Not(condition), then)
    return sympy.Or(sympy.And(condition, then), sympy.And(sympy.Not(condition), otherwise))


class Relations(Proofs):
    """Conditions under the ranges of its proofs."""

    def relation(self, operator: str, a: Expr, c: Expr) -> Expr:
        """`a operator c` for integers (or whole constants), decided if it can be proved; choices are lifted out."""
        if operator in _SWAPPED:
            return self.relation(_SWAPPED[operator], c, a)
        choices = list(dict.fromkeys([*outermost(a, Where), *outermost(c, Where)]))
        if 0 < len(choices) <= _CHOICES:
            return self._lifted(operator, a, c, choices[0])
        if not (a.is_integer and c.is_integer):
            return self._with_constant(operator, a, c)
        difference = sympy.expand(c - a)
        if operator in ("==", "!="):
            return self._equality(operator == "==", a, c, difference)
        strict = int(operator == "<")
        if self.nonnegative(difference - strict):
            return sympy.true
        if self.nonnegative(strict - 1 - difference):
            return sympy.false
        return _RELATION[operator](a, c)

    def _lifted(self, operator: str, a: Expr, c: Expr, choice: Where) -> Expr:
        condition, then, otherwise = choice.args
        return ite(condition, *(
            self.assume(given)._of_fixed(operator, a.xreplace({choice: value}), c.xreplace({choice: value}))
            for given, value in ((condition, then), (sympy.Not(condition), otherwise))
        ))

    def _of_fixed(self, operator: str, a: Expr, c: Expr) -> Expr:
        """The relation, with every symbol that can only have one value replaced by it."""
        bounds = ((s, self.lowest.get(s, sympy.Integer(0))) for s in sorted(a.free_symbols | c.free_symbols, key=str))
        fixed = {s: low for s, low in bounds if s in self.ranges and self.ranges[s] - low == 1}
        return self.relation(operator, a.xreplace(fixed), c.xreplace(fixed))

    def _equality(self, equal: bool, a: Expr, c: Expr, difference: Expr) -> Expr:
        if self.nonnegative(difference - 1) or self.nonnegative(-difference - 1):
            return sympy.false if equal else sympy.true
        if difference == 0 or self.nonnegative(difference) and self.nonnegative(-difference):
            return sympy.true if equal else sympy.false
        if a.is_number or not c.is_number and default_sort_key(c) < default_sort_key(a):
            a, c = c, a
        return _RELATION["==" if equal else "!="](a, c)

    def given_equal(self, condition: Expr, a: Expr, c: Expr) -> Expr:
        """The condition where a = c is known: a is replaced, and terms that stand on both sides cancel."""
        if not isinstance(condition, Relational) or not condition.has(a):
            return condition
        difference = sympy.expand((condition.lhs - condition.rhs).xreplace({a: c}))
        left = sympy.Add(*(t for t in sympy.Add.make_args(difference) if not t.could_extract_minus_sign()))
        return self.relation(operator_of(condition), left, sympy.expand(left - difference))

    def _with_constant(self, operator: str, a: Expr, c: Expr) -> Expr:
        """An integer beside a number that is none: rounded to the integer that means the same."""
        if a.is_number and c.is_number or not (a.is_integer and c.is_Float or a.is_Float and c.is_integer):
            return _RELATION[operator](a, c)
        if operator in ("==", "!="):
            return sympy.false if operator == "==" else sympy.true
        if c.is_Float:  # a < 2.5 and a <= 2.5 are a <= 2
            return self.relation("<=", a, sympy.Integer(floor(c)))
        return self.relation("<=", sympy.Integer(ceil(a)), c)

    def redecided(self, condition: Expr) -> Expr:
        """The condition with every comparison decided that can be."""
        if isinstance(condition, Relational):
            return self.relation(operator_of(condition), condition.lhs, condition.rhs)
        if isinstance(condition, (sympy.And, sympy.Or, sympy.Not)):
            return condition.func(*map(self.redecided, condition.args))
        return condition
