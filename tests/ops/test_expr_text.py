"""from_text(to_text(e)) == e, and AttentionSpec.parse(str(spec)) == spec."""

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler import expr as E
from mla_compiler.ir import AttentionSpec

from .strategies import canonical, conditions, integers, reals

n0, n1, n2 = (E.index_symbol(f"n{k}") for k in range(3))
x0 = sympy.Symbol("x0", real=True)
M0, T1, F2 = (E.table(name) for name in ("M0", "T1", "F2"))


@given(st.one_of(integers(3), reals(3)).map(canonical))
@settings(max_examples=60, deadline=None)
def test_what_is_printed_is_read_back(e):
    assert E.from_text(E.to_text(e)) == e


@given(conditions(3).map(canonical))
@settings(max_examples=60, deadline=None)
def test_conditions_are_read_back(e):
    assert E.from_text(E.to_text(e), condition=True) == e


@pytest.mark.parametrize(
    ("e", "text"),
    [
        ((E.j <= E.i) & E.truth(E.Load(M0, E.b, E.j)), "(j <= i) & M0[b, j]"),
        (~E.truth(E.Load(M0, E.b, E.j)), "~M0[b, j]"),
        (E.Load(T1), "T1[()]"),
        (E.Load(T1, E.b) + 1, "T1[b] + 1"),
        (50.0 * sympy.tanh(0.0025 * E.s), "50.0*tanh(0.0025*s)"),
        (E.Load(F2, E.h) * (E.j - E.i) + x0 * E.s, "s*x0 + (-i + j)*F2[h]"),
        (E.FloorDiv(E.i, 64), "i//64"),
        (sympy.Rational(3, 4) * E.s, "3*s/4"),
        (2 * (n0 + n1) * (n1 + n2) / 3, None),
        (-(n0 + n1) * (n1 + n2), None),
        (1 / (2 * (n0 + n1)), None),
        ((n0 + n1) ** -2 / sympy.sqrt(n2 + 1), None),
        (sympy.Integer(10) ** 40 + E.i, None),
        (sympy.Float(0.1) * E.s + sympy.Float(1e-300), None),
        (sympy.Not((E.i < E.j) & (E.i < n0)), None),
        (sympy.Xor(E.i < E.j, E.j < n0, E.b < 3), None),
        (sympy.exp(1) * E.s, None),
        (sympy.nan, "nan"),
        (-sympy.oo, "-inf"),
        (sympy.true, "True"),
        (sympy.floor(x0 * E.i), None),
        (2 ** (-(E.h + 1) / 4), None),
    ],
)
def test_text(e, text):
    assert E.from_text(E.to_text(e)) == e
    assert text is None or E.to_text(e) == text


@pytest.mark.parametrize("e", [sympy.sin(E.s), sympy.Symbol("y"), sympy.I * E.s, sympy.Sum(E.j, (E.j, 0, n0))])
def test_what_is_not_of_the_language_is_not_read(e):
    with pytest.raises(ValueError, match="cannot read|unknown name"):
        E.from_text(E.to_text(e))


@pytest.mark.parametrize("text", ["y", "q[b]", "f(i)", "i if b else j", "i < j < n0", "'a'", "min", "i @ j", "n", "x", "i +"])
def test_what_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match="cannot read|unknown name|first letter"):
        E.from_text(text)


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_specs_are_read_back(data):
    spec = AttentionSpec(
        score=data.draw(reals().map(canonical)),
        lo=data.draw(integers().map(canonical)),
        hi=data.draw(st.one_of(integers().map(canonical), st.just(sympy.oo))),
        residue=data.draw(conditions().map(canonical)),
        sink=data.draw(st.none() | reals(1, leaves=(x0,)).map(canonical)),
        tile=data.draw(st.none() | st.just(E.Load(T1, E.b, E.FloorDiv(E.i, 64)))),
        group=data.draw(st.integers(1, 16)),
        heads_first=data.draw(st.booleans()),
        kv_splits=data.draw(st.integers(0, 8)),
    )
    again = AttentionSpec.parse(str(spec))
    assert again == spec
    assert str(again) == str(spec)


def test_tables_are_numbered_in_one_order():
    spec = AttentionSpec(score=E.s + E.Load(F2, E.h), residue=E.truth(E.Load(M0, E.b, E.j)), hi=E.Load(T1, E.b))
    assert spec.tables == ("M0", "T1", "F2")


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="no field 'scor'.*score"):
        AttentionSpec.parse("scor: s")


def test_a_spec_needs_a_score():
    with pytest.raises(ValueError, match="score"):
        AttentionSpec.parse("group: 2")
