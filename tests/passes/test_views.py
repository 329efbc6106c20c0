"""Reading through any chain of views and copies gives exactly the element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mla_compiler import expr as E
from tests.passes.tracing import denote, evaluate, grid, size_values, tables, trace


def symbols(rank: int) -> tuple:
    return tuple(E.index_symbol(f"d{k}") for k in range(rank))


def check(program, *args: Tensor, dynamic: bool = False) -> str:
    """Reads the program's result symbolically and compares every element; gives the expression's text."""
    traced = trace(program, *args, dynamic=dynamic)
    expected = program(*args)
    index = symbols(expected.dim())
    read, evaluator = denote(traced, index)
    values = traced.run(*args)
    names = {**grid(index, tuple(expected.shape)), **size_values(traced, values)}
    result = evaluate(read, names, tables(evaluator, values))
    torch.testing.assert_close(result.expand(expected.shape), expected.to(result.dtype), rtol=0, atol=0)
    assert E.to_text(denote(traced, index)[0]) == E.to_text(read)
    return E.to_text(read)


VIEWS = {
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(-1, 0),
    "flatten": lambda x: x.reshape(-1),
    "split heads": lambda x: x.view(2, 6, 2, 2),
    "merge": lambda x: x.reshape(12, 4),
    "other factors": lambda x: x.reshape(3, 16),
    "gqa": lambda x: x[:, :, None].expand(2, 6, 3, 4).reshape(2, 18, 4),
    "slice": lambda x: x[:, 1:5:2, -2:],
    "slice past the end": lambda x: x[:, 2:100, -100:3],
    "select": lambda x: x[1, :, -1],
    "unsqueeze": lambda x: x.unsqueeze(-2).unsqueeze(0).squeeze(0),
    "flip": lambda x: x.flip(1, -1),
    "roll": lambda x: x.roll(2, 1).roll((1, -3), (0, 2)),
    "repeat": lambda x: x.repeat(2, 1, 3),
    "cat": lambda x: torch.cat([x[:, :2], x, x[:, 3:]], dim=1)[:, 1:7],
    "stack": lambda x: torch.stack([x, x + 1, x.flip(0)], dim=1),
    "pad": lambda x: torch.nn.functional.pad(x, (1, 2, -1, 1), value=7),
    "split": lambda x: torch.split(x, [1, 3], dim=-1)[1] + torch.unbind(x, 1)[2][:, None, :1],
    "chunk": lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=0),
    "diagonal": lambda x: x.diagonal(1, 1, 2),
    "rotate half": lambda x: torch.cat([-x[..., 2:], x[..., :2]], dim=-1),
    "interleave": lambda x: torch.stack([x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2),
    "copy": lambda x: x.clone().contiguous().mT,
    "slice scatter": lambda x: torch.slice_scatter(x, x[:, :2] * 10, 1, 1, 5, 2),
    "select scatter": lambda x: torch.select_scatter(x, x[:, 0] * 10, 1, -2),
    "written in place": lambda x: _written(x),
}


def _written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:3] = x[:, 4:6]
    x[0, :, 2] = 5
    return x


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", VIEWS)
def test_view(name: str, dynamic: bool) -> None:
    check(VIEWS[name], torch.arange(48).reshape(2, 6, 4), dynamic=dynamic)


@pytest.mark.parametrize(("program", "text"), [
    (lambda x: x.reshape(8, 5, 6).view(2, 4, 5, 6).transpose(1, 2), "T:x_1[d0, d2, d1, d3]"),
    (lambda x: x[:, :, None].expand(2, 4, 3, 5, 6).reshape(2, 12, 5, 6).view(24, 5, 6), "T:x_1[d0//12, d0 % 12//3, d1, d2]"),
    (lambda x: x.transpose(1, 2).reshape(2, 5, 24), "T:x_1[d0, d2//6, d1, d2 % 6]"),
    (lambda x: x.reshape(2, 4, 5, 6)[:, 1:3], "T:x_1[d0, d1 + 1, d2, d3]"),
])
def test_views_compose_to_a_short_index(program, text: str) -> None:
    text_read = check(program, torch.arange(240).reshape(2, 4, 5, 6))
    assert text_read.replace("(", "").replace(")", "") == text


def test_symbolic_views_leave_no_division() -> None:
    def program(x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        y = x.view(n, t, 4, 8).transpose(1, 2)
        return y.reshape(n * 4, t, 8).view(n, 4, t, 8).transpose(1, 2).reshape(n, t, 32)
    assert check(program, torch.arange(2 * 7 * 32).reshape(2, 7, 32), dynamic=True) == "T:x_1[d0, d1, d2]"


# ------------------------------------------------------------------------------------------------- random chains


@st.composite
def chains(draw):
    """A shape and a list of steps; each step is drawn knowing the shape so far."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4))
    steps, current = [], torch.zeros(shape)
    for _ in range(draw(st.integers(1, 6))):
        step = draw(_step(list(current.shape)))
        current = step[1](current)
        steps.append(step)
    return shape, steps


@st.composite
def _step(draw, shape):
    rank = len(shape)
    d = draw(st.integers(0, rank - 1))
    kind = draw(st.sampled_from(["permute", "reshape", "slice", "flip", "roll", "unsqueeze", "expand", "cat", "select", "pad"]))
    if kind == "permute":
        order = draw(st.permutations(range(rank)))
        return f"permute{order}", lambda x: x.permute(order)
    if kind == "reshape":
        sizes = draw(st.sampled_from(_factorings(torch.Size(shape).numel())))
        return f"reshape{sizes}", lambda x: x.reshape(sizes)
    if kind == "slice":
        start, step = draw(st.integers(0, shape[d] - 1)), draw(st.integers(1, 2))
        return f"slice{d},{start},{step}", lambda x: x[(slice(None),) * d + (slice(start, None, step),)]
    if kind == "select" and rank > 1:
        at = draw(st.integers(-shape[d], shape[d] - 1))
        return f"select{d},{at}", lambda x: x.select(d, at)
    if kind == "roll":
        by = draw(st.integers(-3, 3))
        return f"roll{d},{by}", lambda x: x.roll(by, d)
    if kind == "unsqueeze" and rank < 5:
        return f"unsqueeze{d}", lambda x: x.unsqueeze(d)
    if kind == "expand" and rank < 5:
        return f"expand{d}", lambda x: x.unsqueeze(d).expand(*x.shape[:d], 2, *x.shape[d:])
    if kind == "cat" and torch.Size(shape).numel() <= 200:
        return f"cat{d}", lambda x: torch.cat([x, x.flip(d)], d)
    if kind == "pad":
        return "pad", lambda x: torch.nn.functional.pad(x, (1, 0), value=-5)
    return f"flip{d}", lambda x: x.flip(d)


def _factorings(n: int) -> list[tuple[int, ...]]:
    pairs = [(a, n // a) for a in range(1, n + 1) if n % a == 0]
    return [(n,), *pairs, *((a, c, rest // c) for a, rest in pairs for c in range(2, rest) if rest % c == 0)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(chains())
def test_any_chain_reads_the_element(chain) -> None:
    shape, steps = chain

    def program(x: Tensor) -> Tensor:
        for _, step in steps:
            x = step(x)
        return x
    check(program, torch.arange(torch.Size(shape).numel()).reshape(shape))
