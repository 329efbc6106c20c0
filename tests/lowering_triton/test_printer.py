"""What the printer writes, Triton computes: random integer and boolean expressions, point by point, under the interpreter."""

import itertools

import hypothesis
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler import expr as E
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen, modules, printed
from mla_compiler.lowering.errors import LoweringError

from ..ops.strategies import TABLES, conditions, evaluate, integers

PROBE = """

@triton.jit
def probe(out, {operands}):
    b, h = tl.program_id(0), tl.program_id(1)
    i, j = tl.arange(0, 4)[:, None], tl.arange(0, 8)[None, :]
    value = {hook}(b, h, i, {j}({operands}, 0)) + tl.zeros([4, 8], tl.int64)
    tl.store(out + ((b * 2 + h) * 4 + i) * 8 + j, value)
"""


def tables() -> list[torch.Tensor]:
    """12 long in each dimension: no index of the strategies falls outside."""
    torch.manual_seed(0)
    shapes = {name: (12,) * len(axes) for name, axes in TABLES.items()}
    kinds = {"M": lambda shape: torch.rand(shape) < 0.6, "T": lambda shape: torch.randint(-3, 9, shape), "F": torch.randn}
    return [kinds[name[0]](shape) for name, shape in shapes.items()]


def computed(text: str, condition: bool) -> torch.Tensor:
    """The expression over 2 x 2 x 4 x 8 points, by the generated function."""
    expr = E.from_text(text, condition)
    spec = AttentionSpec(E.s, residue=expr) if condition else AttentionSpec(E.s, lo=expr)
    names = printed.operands(spec)
    source = codegen.source(spec, "decode") + PROBE.format(
        operands=", ".join(names) or "nothing", hook="residue" if condition else "hull_lo", j="j, " if condition else "")
    values = {"n0": 3, "n1": 11, "x0": 0.75, "x1": -1.5}
    for name, table in zip(TABLES, tables(), strict=True):
        values |= {name: table} | {f"{name}_length{d}": 12 for d in range(table.dim())}
        values |= {f"{name}_stride{d}": stride for d, stride in enumerate(table.stride())}
    out = torch.full((2, 2, 4, 8), -99)
    modules.load(source, "probe").probe[(2, 2)](out, *[values[name] for name in names] or [0])
    return out


def check(interpreted, expr: sympy.Basic) -> None:
    condition = E.is_bool(expr)
    got = interpreted(computed, E.to_text(expr), condition)
    lists = [table.tolist() for table in tables()]
    for b, h, i, j in itertools.product(range(2), range(2), range(4), range(8)):
        point = {"b": b, "h": h, "i": i, "j": j, "n0": 3, "n1": 11, "x0": 0.75, "x1": -1.5}
        assert got[b, h, i, j].item() == evaluate(expr, point, lists), (expr, point)


def test_random_expressions(interpreted):
    @settings(max_examples=60, deadline=None)
    @given(st.one_of(conditions(), integers().filter(lambda e: E.j not in e.free_symbols)))
    def same(expr):
        hypothesis.assume(not expr.has(sympy.nan, sympy.zoo) and expr not in (sympy.true, sympy.false))
        check(interpreted, expr)

    same()


@pytest.mark.parametrize("text", ["(i - j) // 3", "(i - j) % 5", "-(j + 1) // 4", "(i - 7*j) % 4 - (j - i) // (h + 1)"])
def test_division_rounds_down(interpreted, text):
    check(interpreted, sympy.Eq(E.from_text(text), -2))


@pytest.mark.parametrize("expr", [
    sympy.Function("erf")(E.s), E.s**E.i, sympy.nan, sympy.Symbol("y"), E.s + E.Load(E.table("F0"), E.FloorDiv(E.s, 2)),
], ids=str)
def test_what_triton_cannot_say_is_refused(expr):
    with pytest.raises(LoweringError, match="score"):
        printed.hooks(AttentionSpec(expr))


def test_tables_have_one_rank():
    with pytest.raises(LoweringError, match="F0 is indexed with"):
        printed.hooks(AttentionSpec(E.s + E.Load(E.table("F0"), E.h) + E.Load(E.table("F0"), E.h, E.i)))
