"""(b*H + h) // H => b        (b*H + h) % H => h        given 0 <= h < H"""

from __future__ import annotations

from collections.abc import Callable

import sympy
from sympy.core.sorting import default_sort_key
from torch.utils._sympy import functions as torch_functions

from ..expr import Expr, FloorDiv, PythonMod
from .relations import Relations

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


class IndexMath(Relations):
    """Quotients and remainders under the ranges of its proofs. What cannot be simplified stays as it was."""

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
        if isinstance(c, sympy.Add):
            return _divided_by_sum(sympy.expand(a), c)
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


def _is_whole(ratio: Expr) -> bool:
    """A monomial with a whole coefficient and no denominator, such as 3*b*s0."""
    coefficient, factors = ratio.as_coeff_mul()
    return coefficient.is_Integer and all(
        f.is_integer and (not f.is_Pow or f.exp.is_Integer and f.exp > 0) for f in factors
    )


def _divided_by_sum(a: Expr, c: Expr) -> tuple[Expr, Expr]:
    """b*n + b + j by n + 1: b, rest j. Polynomial division in the first symbol of c, if the quotient is whole."""
    n = min(c.free_symbols, key=str)
    if a.is_polynomial(n) and c.is_polynomial(n):
        quotient, rest = map(sympy.expand, sympy.div(a, c, n))
        if quotient.is_integer and rest.is_integer:
            return quotient, rest
    return sympy.Integer(0), a
