"""Integer arithmetic over bounded symbols: (b*H + h) // H => b, (b*H + h) % H => h, j < S => True     given 0 <= h < H

A fact is used only if it is proved: every answer is exact, "don't know" leaves the expression as it was. The proof that
an expression is never negative eliminates one bounded term after another, each replaced by its least favourable bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil, floor

import sympy
from sympy.core.sorting import default_sort_key
from torch.utils._sympy import functions as torch_functions

from ..expr import Expr, FloorDiv, Load, PythonMod, Where

_DEPTH = 12
_SWAPPED = {">": "<", ">=": "<="}
_INVERSE = {"<": ">=", "<=": ">", "==": "!="}
_RELATION: dict[str, Callable[[Expr, Expr], Expr]] = {"<": sympy.Lt, "<=": sympy.Le, "==": sympy.Eq, "!=": sympy.Ne}
_OPERATOR: dict[type, str] = {
    sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">=", sympy.Eq: "==", sympy.Ne: "!=",
}


def operator_of(relation: Expr) -> str:
    """"<", "<=", ">", ">=", "==" or "!="."""
    return _OPERATOR[type(relation)]


def ite(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """(condition and then) or (not condition and otherwise), for conditions."""
    if then == otherwise:
        return then
    if then == sympy.true:
        return sympy.Or(condition, otherwise)
    if otherwise == sympy.true:
        return sympy.Or(sympy.Not(condition), then)
    return sympy.Or(sympy.And(condition, then), sympy.And(sympy.Not(condition), otherwise))


def outermost(expr: Expr, kind: type) -> Iterator[Expr]:
    """The subexpressions of a kind that stand in no tensor index and in no other of that kind."""
    if isinstance(expr, kind):
        yield expr
    elif not isinstance(expr, Load):
        for arg in expr.args:
            yield from outermost(arg, kind)

_PLAIN: dict[type, Callable[..., Expr]] = {
    torch_functions.Mod: PythonMod, torch_functions.CleanDiv: FloorDiv, torch_functions.Max: sympy.Max,
    torch_functions.Min: sympy.Min, torch_functions.PowByNatural: sympy.Pow, torch_functions.Identity: lambda x: x,
    torch_functions.CeilDiv: lambda a, c: -FloorDiv(-a, c),
}


def plain(size: Expr) -> Expr:
    """A size as torch writes it, in the functions of our language."""
    if size.is_Atom:
        return size
    args = [plain(arg) for arg in size.args]
    return _PLAIN[type(size)](*args) if type(size) in _PLAIN else size if tuple(args) == size.args else size.func(*args)


class IndexMath:
    """Proofs and simplifications under `low <= symbol < high`.

    `ranges` maps a symbol to its exclusive upper bound (the lower one is 0); `lowest` gives other lower bounds, and those
    of sizes. Unknown integer symbols that sympy knows to be nonnegative count as sizes.
    """

    def __init__(self, ranges: Mapping[Expr, Expr], lowest: Mapping[Expr, Expr] | None = None) -> None:
        self.ranges = {symbol: sympy.sympify(bound) for symbol, bound in ranges.items()}
        self.lowest = lowest if lowest is not None else {}
        self._proved: dict[Expr, bool] = {}

    # -------------------------------------------------------------------------------------------------------- proofs

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
        """A polynomial in sizes, each written as its least value and a rest >= 0: no negative coefficient, no negative value."""
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
                if isinstance(factor, (FloorDiv, PythonMod, sympy.Max, sympy.Min, sympy.Abs, Load)):
                    found.add(factor)
                elif factor in self.ranges:
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
            for q in (size // c if size.is_Integer and c.is_Integer else FloorDiv(size, c) for size in self._above(a)):
                yield q

    def _above(self, a: Expr) -> Iterator[Expr]:
        """Sizes that bound a from above: all its symbols at their largest."""
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

    # --------------------------------------------------------------------------------------------- quotient, remainder

    def floordiv(self, a: Expr, c: Expr) -> Expr:
        """a // c, rounded down; c is not zero."""
        quotient, rest = self._divide(a, c)
        if c.is_positive and self._within(rest, c):
            return quotient
        return quotient + self._reduced(rest, c)

    def mod(self, a: Expr, c: Expr) -> Expr:
        """a - c * (a // c)."""
        rest = self._divide(a, c)[1]
        if c.is_positive and self._within(rest, c):
            return rest
        if isinstance(rest, PythonMod) and rest.args[1] == c:
            return rest
        return PythonMod(rest, c)

    @staticmethod
    def recombined(a: Expr) -> Expr:
        """c * (x // c) + x % c => x"""
        for rest in sorted(a.atoms(PythonMod), key=default_sort_key):
            slope = a.coeff(rest, 1)
            x, c = rest.args
            if slope != 0 and sympy.expand(a.coeff(FloorDiv(x, c), 1) - slope * c) == 0:
                a = sympy.expand(a + slope * (x - rest - c * FloorDiv(x, c)))
        return a

    def _within(self, a: Expr, c: Expr) -> bool:
        return self.nonnegative(a) and self.nonnegative(c - 1 - a)

    @staticmethod
    def _divide(a: Expr, c: Expr) -> tuple[Expr, Expr]:
        """quotient, rest: a = c * quotient + rest; the quotient collects the terms that c divides."""
        quotient, rest = sympy.Integer(0), sympy.Integer(0)
        for term in sympy.Add.make_args(sympy.expand(a)):
            ratio = term / c
            if term.is_Integer and c.is_Integer:
                quotient, rest = quotient + term // c, rest + term % c
            elif _is_whole(ratio):
                quotient += ratio
            else:
                rest += term
        return quotient, rest

    def _reduced(self, a: Expr, c: Expr) -> Expr:
        """(g*x + y) // (g*d) => x // d     given 0 <= y < g"""
        coefficients = {abs(k) for k in a.as_coefficients_dict().values() if k.is_Integer}
        for g in sorted((g for g in coefficients if g > 1 and c.is_Integer and c % g == 0), reverse=True):
            whole, rest = self._divide(a, g)
            if g != c and self._within(rest, g):
                return self.floordiv(whole, c // g)
        return FloorDiv(a, c)

    # ------------------------------------------------------------------------------------------------------ conditions

    def relation(self, operator: str, a: Expr, c: Expr) -> Expr:
        """`a operator c` for integers (or whole constants), decided if it can be proved; choices are lifted out."""
        if operator in _SWAPPED:
            return self.relation(_SWAPPED[operator], c, a)
        choices = list(dict.fromkeys([*outermost(a, Where), *outermost(c, Where)]))
        if 0 < len(choices) <= 4:
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
        if not isinstance(condition, sympy.core.relational.Relational) or not condition.has(a):
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
        if isinstance(condition, sympy.core.relational.Relational):
            return self.relation(_OPERATOR[type(condition)], condition.lhs, condition.rhs)
        if isinstance(condition, (sympy.And, sympy.Or, sympy.Not)):
            return condition.func(*map(self.redecided, condition.args))
        return condition

    def assume(self, condition: Expr) -> IndexMath:
        """These ranges, narrowed by a condition of the form symbol < bound (<=, >, >=, ==), or a conjunction of such."""
        ranges, lowest = dict(self.ranges), dict(self.lowest)
        for literal in sympy.And.make_args(condition):
            if isinstance(literal, sympy.core.relational.Relational):
                self._narrow(literal, ranges, lowest)
        return self if (ranges, lowest) == (self.ranges, self.lowest) else IndexMath(ranges, lowest)

    def _narrow(self, literal: Expr, ranges: dict[Expr, Expr], lowest: dict[Expr, Expr]) -> None:
        operator = _OPERATOR[type(literal)]
        if not (literal.lhs.is_integer and literal.rhs.is_integer):
            return
        for symbol in literal.free_symbols & ranges.keys():
            rest = sympy.expand(literal.lhs - literal.rhs)
            slope = rest.coeff(symbol, 1)
            bound = -slope * (rest - slope * symbol)
            if abs(slope) != 1 or not all(s not in self.ranges for s in bound.free_symbols) or bound.atoms(Load):
                continue
            way = operator if slope == 1 else {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(operator, operator)
            above = {"<": bound, "<=": bound + 1, "==": bound + 1}.get(way)
            below = {">": bound + 1, ">=": bound, "==": bound}.get(way)
            if above is not None and self.nonnegative(ranges[symbol] - above):
                ranges[symbol] = above
            if below is not None and self.nonnegative(below - lowest.get(symbol, sympy.Integer(0))):
                lowest[symbol] = below


def _is_whole(ratio: Expr) -> bool:
    """A monomial with a whole coefficient and no denominator, such as 3*b*s0."""
    coefficient, factors = ratio.as_coeff_mul()
    return coefficient.is_Integer and all(
        f.is_integer and (not f.is_Pow or f.exp.is_Integer and f.exp > 0) for f in factors
    )
