"""compile(e) over a box of indices == e evaluated point by point."""

import itertools
import math

import hypothesis
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler import expr as E
from mla_compiler.lowering.torch_expr import compile, source
from mla_compiler.lowering.torch_index import box

from .strategies import TABLES, conditions, evaluate, integers, reals

SHAPE = {"b": 2, "h": 3, "i": 4, "j": 5}
SIZES, SCALARS = [3, 11], [0.75, -1.5]


def tables():
    torch.manual_seed(0)
    made = []
    for name, axes in TABLES.items():
        shape = [SHAPE[axis] for axis in axes]
        if name[0] == "M":
            made.append(torch.rand(shape) < 0.6)
        else:
            made.append(torch.randn(shape, dtype=torch.float64) if name[0] == "F" else torch.randint(-3, 9, shape))
    return made


def check(e, rows, columns, batch, heads):
    given_tables, s = tables(), torch.randn(batch, heads, rows[1] - rows[0], columns[1] - columns[0], dtype=torch.float64)
    got = compile(e, torch.float64)(*box(batch, heads, rows, columns), given_tables, SIZES, SCALARS, s)
    got = (got if isinstance(got, torch.Tensor) else torch.full((), got, dtype=torch.float64)).expand(s.shape)
    lists = [table.tolist() for table in given_tables]
    for b, h, i, j in itertools.product(*map(range, s.shape)):
        names = {"b": b, "h": h, "i": rows[0] + i, "j": columns[0] + j, "n0": 3, "n1": 11, "x0": 0.75, "x1": -1.5}
        want = evaluate(e, {**names, "s": s[b, h, i, j].item()}, lists)
        assert got[b, h, i, j].item() == (want if isinstance(want, bool | int) else pytest.approx(want, rel=1e-9, abs=1e-9))


boxes = st.sampled_from([((0, 4), (0, 5), 2, 3), ((3, 4), (0, 5), 2, 3), ((0, 1), (2, 4), 1, 1), ((2, 3), (4, 5), 1, 3)])


@given(e=st.one_of(integers(), conditions(), reals()), where=boxes)
@settings(max_examples=100, deadline=None)
def test_random_expressions(e, where):
    hypothesis.assume(not e.has(sympy.nan, sympy.zoo))
    check(e, *where)


@pytest.mark.parametrize(
    "text",
    [
        "sqrt(n0 + i)", "exp(-x0)*s", "log(j + 1)", "floor(x0*j)", "ceiling(x1*i)", "2**(-(h + 1)/4)", "(i + 1)**(-2)",
        "(j + 1)**(1/2)/(i + 1)", "abs(i - j)", "x0**2", "max(x1*s, x0)", "i // 3 * 2 - j % 3",
        "where(M0[b, j], T1[b, i], -1)*x0",
        "where(F3[b, h, i, j] > 0, s, -inf)", "T4[()] + i", "M5[i, j] ^ M0[b, j]", "~(M0[b, j] | (i < j))", "i/3 < j/2",
        "(-i) // 4", "(i - 7*j) % 5", "3", "1/3", "M0[b, T1[b, i]] & (j < 3)",
    ],
)
def test_each_part_of_the_language(text):
    check(E.from_text(text), (0, 4), (0, 5), 2, 3)
    check(E.from_text(text), (2, 3), (3, 4), 1, 1)


def test_scalars_follow_ieee():
    x0 = sympy.Symbol("x0", real=True)
    assert compile(1 / x0)(0, 0, 0, 0, [], [], [0.0]) == math.inf
    assert compile(sympy.log(x0))(0, 0, 0, 0, [], [], [0.0]) == -math.inf
    assert math.isnan(compile(sympy.sqrt(x0))(0, 0, 0, 0, [], [], [-1.0]))


def test_a_mask_of_one_decode_step_is_arithmetic_on_ints():
    e = E.from_text("T0[()] + i + 1")
    assert compile(e)(*box(1, 1, (0, 1), (0, 9)), [torch.tensor(256)], [], []) == 257


def test_a_load_by_bare_indices_is_a_view():
    table = torch.randn(2, 1, 4, 5)
    got = compile(E.from_text("F0[b, 0, i, j]"))(*box(2, 3, (1, 3), (2, 5)), [table], [], [])
    assert torch.equal(got, table[:, :, 1:3, 2:5])
    assert got.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()


def test_a_load_outside_its_table_is_clamped():
    e = E.from_text("where(j < 3, F0[j], F0[j - 100])")
    got = compile(e)(*box(1, 1, (0, 1), (0, 6)), [torch.tensor([7.0, 8.0, 9.0])], [], [])
    assert got.flatten().tolist() == [7, 8, 9, 7, 7, 7]


def test_sums_of_narrow_tables_do_not_overflow():
    table = torch.full((1, 2), 100, dtype=torch.int8)
    got = compile(E.from_text("T0[b, j] + 100"))(*box(1, 1, (0, 1), (0, 2)), [table], [], [])
    assert got.flatten().tolist() == [200, 200]


def test_shared_parts_are_computed_once():
    text = source(E.from_text("where(F0[b, j] > 0, F0[b, j], -F0[b, j]) + tanh(s) + tanh(s)**2"))
    assert text.count("load(") == 1
    assert text.count("tanh") == 1


@pytest.mark.parametrize("e", [sympy.sin(E.s), sympy.Symbol("y") + 1, sympy.Gt(sympy.erf(E.s), 0)])
def test_what_is_not_of_the_language_is_refused(e):
    with pytest.raises(ValueError, match="not of the expression language"):
        compile(e)
