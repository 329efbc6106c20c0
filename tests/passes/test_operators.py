"""Each operator's rule: the element it reads is the element the program computes; what may not be repeated is loaded."""

from __future__ import annotations

import itertools
import time

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from mla_compiler import expr as E
from mla_compiler.passes.denote import Evaluator
from mla_compiler.passes.index_math import IndexMath
from mla_compiler.passes.split_mask import hidden
from tests.passes.tracing import denote, evaluate, grid, tables, trace

I = torch.arange(-6, 6).reshape(3, 4)
N = torch.arange(12).reshape(3, 4)
X = torch.linspace(-2, 2, 12).reshape(3, 4)
SYMBOLS = (E.i, E.j)

EXACT = {
    "add": lambda: torch.add(I, N, alpha=3),
    "sub": lambda: 5 - I - N,
    "mul": lambda: I * N * 2,
    "neg": lambda: -I,
    "floor division": lambda: I // 3 + torch.div(N, 4, rounding_mode="floor"),
    "remainder": lambda: I % 5 + torch.remainder(N, 3),
    "negative divisor": lambda: I // -4 + N % -5,
    "truncated": lambda: torch.div(N, 4, rounding_mode="trunc") + torch.fmod(N, 5),
    "truncated negative": lambda: torch.div(I, 4, rounding_mode="trunc"),
    "abs": lambda: I.abs(),
    "pow": lambda: I**2 + 2 ** N.clamp(max=5),
    "shift": lambda: (N >> 1) + (I << 2),
    "maximum": lambda: torch.maximum(I, N - 3),
    "minimum": lambda: torch.minimum(I, N - 3),
    "clamp": lambda: I.clamp(-2, 3),
    "clamp by tensor": lambda: I.clamp(min=N - 5),
    "where": lambda: torch.where(I > N - 8, I, N),
    "masked fill": lambda: I.masked_fill(N % 2 == 0, 9),
    "compare": lambda: (I < 3) & (I >= -2) | (N != 4) & (N == I + 6),
    "bool arithmetic": lambda: (I > 0) * 2 + (N > 3),
    "bool equality": lambda: (I > 0) == (N > 3),
    "xor": lambda: (I > 0) ^ (N > 8),
    "not": lambda: ~(I > 0),
    "logical": lambda: torch.logical_and(I, N) | torch.logical_not(I),
    "casts": lambda: (I.float() * 2).long() + (N > 3).float().int(),
    "to bool": lambda: N.bool() & I.to(torch.float32).bool(),
    "iota": lambda: torch.arange(2, 10, 2) + I,
    "full": lambda: torch.full((3, 4), 7) + torch.ones_like(I) + torch.zeros(4).long(),
    "embedding": lambda: torch.nn.functional.embedding(N % 3, I)[..., 1],
    "gather": lambda: I.gather(1, N % 4),
    "index select": lambda: I.index_select(0, torch.tensor([2, 0, 2])),
    "index": lambda: I[N % 3, torch.tensor([1, -1, 0, -2])],
    "index and slice": lambda: I[None, :, torch.tensor([1, 3, 0, 2])][0],
    "cumsum of ones": lambda: torch.ones_like(I).cumsum(1),
    "cumsum": lambda: I.cumsum(1),
    "any": lambda: (I[:1, :1] > -9).any(-1, keepdim=True).expand(3, 4),
    "sum": lambda: I.sum(0).expand(3, 4),
    "tril": lambda: I.tril(-1) + I.triu(1),
    "copy": lambda: I.clone().copy_(N),
    "scalar": lambda: I + torch.tensor(3),
    "half is rounded": lambda: (N + 2047).half() == 2048.0,
    "bfloat is rounded": lambda: (N * 100).bfloat16().float() == N * 100,
    "large integers as floats": lambda: (I + 2**24).float() == 2.0**24,
    "narrow": lambda: I.to(torch.int8) * 50,
    "bytes": lambda: (N > 3).byte() - 1,
    "float comparison": lambda: X * 3 / 3 == X,
    "float to int": lambda: (X * 2).long(),
    "isnan": lambda: ~(X.log() < 0),
}


def read_of(program) -> tuple[sympy.Basic, Tensor, Tensor]:
    """(expression, its value everywhere, what the program computes), with the tensors above as inputs."""
    def run(i: Tensor, n: Tensor, x: Tensor) -> Tensor:
        globals().update(I=i, N=n, X=x)
        return program()
    held = I, N, X
    try:
        traced = trace(run, *held)
        expected, values = run(*held), traced.run(*held)
    finally:
        globals().update(I=held[0], N=held[1], X=held[2])
    value, evaluator = denote(traced, SYMBOLS)
    result = evaluate(value, grid(SYMBOLS, tuple(expected.shape)), tables(evaluator, values))
    return value, result.expand(expected.shape), expected


@pytest.mark.parametrize("name", EXACT)
def test_integers_and_conditions_are_exact(name: str) -> None:
    value, result, expected = read_of(EXACT[name])
    assert torch.equal(result.to(expected.dtype), expected), E.to_text(value)
    assert E.is_bool(value) == (expected.dtype == torch.bool)


FLOATS = {
    "arithmetic": lambda: (X * 2 - I.float() / 3) / (X + 5),
    "scalar": lambda: 1.5 - X * 0.25,
    "functions": lambda: X.tanh().exp() + (X + 4).log(),
    "roots": lambda: (X + 4).sqrt() + (X + 4).rsqrt(),
    "sigmoid": lambda: X.sigmoid(),
    "reciprocal": lambda: (X + 4).reciprocal(),
    "clamp": lambda: X.clamp(-1, 1).relu(),
    "where": lambda: torch.where(I > 0, X, -X),
    "power": lambda: (X + 4) ** 1.5,
    "baddbmm": lambda: torch.baddbmm(X[None], X[None, :, :3], X[None, :3], beta=0.5, alpha=2)[0],
    "mm": lambda: X @ X.mT @ X,
    "addmm": lambda: torch.addmm(X[0], X[:, :3], X),
    "cast": lambda: X.double() * 3,
    "lifted": lambda: X + torch.tensor(-1e9),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats_agree_within_rounding(name: str) -> None:
    value, result, expected = read_of(FLOATS[name])
    torch.testing.assert_close(result.to(expected.dtype), expected, msg=lambda m: f"{E.to_text(value)}\n{m}")


def test_computed_floats_are_not_compared_again() -> None:
    for program in (EXACT["float comparison"], EXACT["isnan"], EXACT["half is rounded"]):
        assert [load.kind_letter for load in E.loads(read_of(program)[0])] == ["M"]


def test_a_buffer_is_an_input_not_a_constant() -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("limit", torch.tensor([3]))

        def forward(self) -> Tensor:
            return torch.arange(4) < self.limit
    module = Masked()
    graph = fx.Graph()
    limit = graph.get_attr("limit")
    limit.meta["val"] = module.limit
    graph.owning_module = module
    assert E.to_text(Evaluator(graph).read(limit, (E.j,))) == "T:limit[0]"


def test_hidden_values() -> None:
    least = {dtype: sympy.Float(torch.finfo(dtype).min) for dtype in (torch.float16, torch.bfloat16, torch.float32)}
    assert hidden(-sympy.oo) and all(hidden(value, dtype) for dtype, value in least.items())
    assert hidden(least[torch.float32], torch.float16) and hidden(least[torch.float32] * 2)
    assert not any(hidden(sympy.Float(value)) for value in (0, -1e4, -1e9, 1e38)) and not hidden(E.s)


AFFINE = st.tuples(st.integers(-8, 8), st.integers(-8, 8), st.integers(-20, 20))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(AFFINE, st.integers(1, 9), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_quotients_remainders_and_relations_are_exact(affine, c: int, rows: int, keys: int, outer: int) -> None:
    math = IndexMath({E.i: sympy.Integer(rows), E.j: sympy.Integer(keys)})
    a = affine[0] * E.i + affine[1] * E.j + affine[2]
    nested = math.floordiv(math.floordiv(a, sympy.Integer(c)), sympy.Integer(outer))
    found = [math.floordiv(a, sympy.Integer(c)), math.mod(a, sympy.Integer(c)), nested, math.relation("<", a, sympy.Integer(c))]
    for i, j in itertools.product(range(rows), range(keys)):
        n = affine[0] * i + affine[1] * j + affine[2]
        values = [e.subs({E.i: i, E.j: j}) for e in found]
        assert values == [n // c, n % c, n // c // outer, n < c]


def test_a_deep_network_takes_no_time() -> None:
    """32 masks over one chain, read once each: linear in the graph."""
    def network(x: Tensor) -> Tensor:
        mask = torch.ones(16, 16, dtype=torch.bool).tril()
        for _ in range(64):
            x = (x @ x.mT).masked_fill(~mask, 0.0) + x.tanh()
        return x
    traced = trace(network, torch.randn(16, 16))
    start = time.perf_counter()
    value, _ = denote(traced, SYMBOLS)
    assert time.perf_counter() - start < 2
    assert len(str(value)) < 50_000
