"""Random expressions of the language, and what they mean by loops over Python numbers."""

import math

import sympy
from hypothesis import strategies as st

from mla_compiler import expr as E

INDICES = [E.b, E.h, E.i, E.j]
SIZES = [E.index_symbol("n0"), E.index_symbol("n1")]
SCALARS = [sympy.Symbol("x0", real=True), sympy.Symbol("x1", real=True)]
TABLES = {"M0": ("b", "j"), "T1": ("b", "i"), "F2": ("h",), "F3": ("b", "h", "i", "j"), "T4": (), "M5": ("i", "j")}
"""Name of each table and the axes its dimensions are as long as."""


def _load(draw, letter):
    name = draw(st.sampled_from([name for name in TABLES if name[0] == letter]))
    axes = [getattr(E, axis) for axis in TABLES[name]]
    index = [draw(st.sampled_from([axis, axis, axis, axis + 1, E.FloorDiv(E.i + E.j, 2)])) for axis in axes]
    return E.Load(E.table(name), *index)


@st.composite
def integers(draw, depth=2):
    leaf = draw(st.integers(0, 3)) if depth else 0
    if leaf == 0:
        what = draw(st.integers(0, 3))
        if what == 0:
            return sympy.Integer(draw(st.integers(-9, 70)))
        return _load(draw, "T") if what == 1 else draw(st.sampled_from(INDICES + SIZES))
    x, y = draw(integers(depth - 1)), draw(integers(depth - 1))
    match draw(st.integers(0, 7)):
        case 0 | 1:
            return x + y
        case 2:
            return x - y
        case 3:
            return x * y
        case 4:
            return E.FloorDiv(x, sympy.Integer(draw(st.integers(1, 5))))
        case 5:
            return E.PythonMod(x, sympy.Integer(draw(st.integers(1, 5))))
        case 6:
            return sympy.Min(x, y) if draw(st.booleans()) else sympy.Max(x, y)
    return E.Where(draw(conditions(depth - 1)), x, y)


@st.composite
def conditions(draw, depth=2):
    what = draw(st.integers(0, 5)) if depth else draw(st.integers(0, 2))
    if what == 0:
        return E.truth(_load(draw, "M"))
    if what <= 2:
        relation = draw(st.sampled_from([sympy.Eq, sympy.Ne, sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge]))
        return relation(draw(integers(depth and depth - 1)), draw(integers(depth and depth - 1)))
    x, y = draw(conditions(depth - 1)), draw(conditions(depth - 1))
    return sympy.Not(x) if what == 5 else draw(st.sampled_from([sympy.And, sympy.Or, sympy.Xor]))(x, y)


@st.composite
def reals(draw, depth=2, leaves=(E.s, *SCALARS)):
    if not depth or draw(st.integers(0, 4)) == 0:
        match draw(st.integers(0, 3)):
            case 0:
                return sympy.Float(draw(st.floats(-8, 8).filter(lambda x: x == 0 or abs(x) > 1e-3)))
            case 1:
                return _load(draw, "F")
            case 2:
                return sympy.Rational(draw(st.integers(-7, 7)), draw(st.integers(1, 7))) * draw(integers(0))
        return draw(st.sampled_from(leaves))
    x, y = draw(reals(depth - 1, leaves)), draw(reals(depth - 1, leaves))
    match draw(st.integers(0, 6)):
        case 0:
            return x + y
        case 1:
            return x - y
        case 2:
            return x * y
        case 3:
            return sympy.tanh(x)
        case 4:
            return x / draw(st.integers(2, 9))
        case 5:
            return sympy.Min(x, y) if draw(st.booleans()) else sympy.Max(x, y)
    return E.Where(draw(conditions(depth - 1)), x, y)


def canonical(e):
    """As sympy builds it from its parts: two steps can leave `p | q | ~p`, which one step folds to True."""
    return e.func(*map(canonical, e.args)) if e.args else e


_FUNCTIONS = {
    sympy.exp: math.exp, sympy.log: math.log, sympy.tanh: math.tanh, sympy.Abs: abs, sympy.Min: min, sympy.Max: max,
    sympy.floor: math.floor, sympy.ceiling: math.ceil, sympy.Add: lambda *a: sum(a), sympy.Mul: lambda *a: math.prod(a),
    sympy.And: lambda *a: all(a), sympy.Or: lambda *a: any(a), sympy.Xor: lambda *a: bool(sum(a) % 2),
    sympy.Not: lambda a: not a, sympy.Pow: lambda x, y: x**y, E.FloorDiv: lambda x, y: x // y, E.PythonMod: lambda x, y: x % y,
    sympy.Eq: lambda x, y: x == y, sympy.Ne: lambda x, y: x != y, sympy.Lt: lambda x, y: x < y, sympy.Le: lambda x, y: x <= y,
    sympy.Gt: lambda x, y: x > y, sympy.Ge: lambda x, y: x >= y, E.Where: lambda c, x, y: x if c else y,
}


def evaluate(e, names, tables):
    """The value at one point, in Python numbers: `names` gives the symbols, `tables[k]` is nested lists."""
    if e in (sympy.true, sympy.false):
        return bool(e)
    if e.is_Number:
        return int(e) if e.is_Integer else float(e)
    if isinstance(e, sympy.Symbol):
        return names[e.name]
    if isinstance(e, E.Load):
        value = tables[int(e.name[1:])]
        for at in e.index:
            value = value[min(max(evaluate(at, names, tables), 0), len(value) - 1)]
        return value
    return _FUNCTIONS[type(e)](*[evaluate(a, names, tables) for a in e.args])
