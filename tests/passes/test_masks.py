"""A raised mask means what the program computes, at every (b, i, j); pure bands leave no residue and a tight hull."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mla_compiler import expr as E
from mla_compiler.ir import AttentionSpec
from mla_compiler.passes.raise_mask import Raised, raise_mask, split_mask
from tests.passes.tracing import denote, evaluate, grid, size_values, tables, trace

INDEX = (E.b, E.h, E.i, E.j)
BATCH, ROWS, KEYS = 2, 7, 9

# A mask program is a function of (rows i, keys j, tensors) to bool [.., i, j]; the tensors are its inputs.
INPUTS = {
    "pad": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 1, 1, 0]], dtype=torch.bool),
    "document": torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 3], [5, 5, 5, 5, 5, 5, 1, 1, 1]]),
    "length": torch.tensor([3, 8]),
    "positions": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 9, 10], [5, 6, 2, 3, 4, 0, 0, 1, 2]]),
    "mixed": torch.tensor([4, -2, 0, 7, -8, 3, 1, 2, 5]),
}


class Point:
    """What a mask program may use: positions [T, 1] and [S], and inputs by name."""

    def __init__(self, rows: int, keys: int, inputs: dict[str, Tensor]) -> None:
        self.i, self.j = torch.arange(rows)[:, None], torch.arange(keys)
        self.inputs = inputs

    def at_keys(self, name: str) -> Tensor:
        return self.inputs[name][:, None, None, :]

    def at_rows(self, name: str) -> Tensor:
        return self.inputs[name][:, None, : self.i.shape[0], None]


BANDS = {
    "causal": lambda p: p.j <= p.i,
    "causal aligned to the end": lambda p: p.j <= p.i + 2,
    "window": lambda p: (p.j <= p.i) & (p.j > p.i - 3),
    "both sides": lambda p: (p.i - p.j).abs() < 3,
    "chunk": lambda p: (p.i // 3 == p.j // 3) & (p.j <= p.i),
    "chunk of keys": lambda p: p.j // 4 <= p.i // 2,
    "prefix": lambda p: (p.j < 4) | (p.j <= p.i),
    "prefix from a table": lambda p: (p.j < p.inputs["length"][:, None, None, None]) | (p.j <= p.i),
    "length": lambda p: p.j < p.inputs["length"][:, None, None, None],
    "length of some rows": lambda p: torch.where(p.at_rows("pad"), p.j <= p.i, p.j < 2),
    "rows": lambda p: p.at_rows("pad") & (p.j <= p.i),
    "half": lambda p: 2 * p.j + 1 <= p.i,
    "scaled": lambda p: (p.j * 3 > p.i * 2) & (p.j - 5 < p.i),
    "diagonal": lambda p: p.i == p.j,
    "suffix": lambda p: (p.j >= p.i) | (p.j > 5),
    "not": lambda p: ~((p.j > p.i) | (p.j < p.i - 2)),
    "extremes": lambda p: torch.maximum(p.i, p.j) <= p.i + 1,
    "clamped": lambda p: p.j <= p.i.clamp(min=2, max=4),
    "float": lambda p: (p.j - p.i).float() <= 0.5,
    "tril": lambda p: torch.ones(p.i.shape[0], p.j.shape[0], dtype=torch.bool).tril(1),
    "triu": lambda p: torch.ones(p.i.shape[0], p.j.shape[0]).triu(-1) == 1,
    "first column hidden": lambda p: (p.j != 0) & (p.j <= p.i + 1),
    "nothing": lambda p: (p.j < p.i) & (p.j > p.i),
    "everything": lambda p: p.j >= 0,
}

OTHERS = {
    "padding": lambda p: p.at_keys("pad") & (p.j <= p.i),
    "document": lambda p: (p.at_rows("document") == p.at_keys("document")) & (p.j <= p.i),
    "blocks": lambda p: (p.i // 2 + p.j // 3) % 2 == 0,
    "stripes": lambda p: (p.j % 3 == p.i % 3) & (p.j <= p.i),
    "two windows": lambda p: ((p.j <= p.i) & (p.j > p.i - 2)) | (p.j == 0),
    "gathered": lambda p: p.inputs["mixed"][p.j] > p.inputs["mixed"][p.i],
    "gathered from the end": lambda p: p.inputs["pad"][0][p.inputs["mixed"][p.j]],
    "sum of bools": lambda p: (p.at_keys("pad") + (p.j == p.i)) * (p.j <= p.i + 1),
    "xor": lambda p: (p.j < 3) ^ (p.i < 2) ^ p.at_keys("pad"),
    "counted": lambda p: p.at_keys("pad").long().cumsum(-1) > p.i,
    "concatenated": lambda p: torch.cat([torch.ones(p.i.shape[0], 3, dtype=torch.bool), (p.j <= p.i)[:, 3:]], -1),
    "padded with ones": lambda p: torch.nn.functional.pad((p.j <= p.i)[:, 2:], (2, 0), value=True),
    "written": lambda p: _written(p),
    "packed positions": lambda p: _packed(p),
    "not equal": lambda p: (p.j != p.i) & (p.j <= p.i + 1),
    "integers of narrow type": lambda p: (p.at_keys("pad").to(torch.uint8) - 1 > 0) | (p.j <= p.i),
    "tables of floats": lambda p: torch.logical_not(p.inputs["mixed"].float().sqrt()[p.j] > 1.5) & (p.j <= p.i),
    "nan": lambda p: ~(p.inputs["mixed"].float().log()[p.j] <= 0),
    "any": lambda p: p.at_keys("pad").any(-1, keepdim=True) & (p.j <= p.i),
    "rounded": lambda p: (p.j.to(torch.bfloat16) / 3 * 3) == p.j,
}


def _packed(p: Point) -> Tensor:
    """Documents found from positions, as transformers does, and causal by position."""
    positions = p.inputs["positions"]
    first = positions[:, :1] - 1
    document = (torch.diff(positions, prepend=first, dim=-1) != 1).cumsum(-1)
    rows = p.i.shape[0]
    same = document[:, None, :rows, None] == document[:, None, None, :]
    return same & (positions[:, None, None, :] <= positions[:, None, :rows, None])


def _written(p: Point) -> Tensor:
    mask = (p.j <= p.i).clone()
    mask[:, :2] = True
    mask[0] = p.inputs["pad"][0]
    return mask


def program(mask, rows: int = ROWS, keys: int = KEYS):
    """The mask as [B, 1, T, S], from the inputs as arguments."""
    def run(*inputs: Tensor) -> Tensor:
        p = Point(inputs[-1].shape[0] - (keys - rows), inputs[-1].shape[0], dict(zip(INPUTS, inputs, strict=True)))
        return mask(p).expand(BATCH, 1, p.i.shape[0], p.j.shape[0])
    return run


def raised(mask, dynamic: bool = False) -> tuple[Raised, Tensor, Tensor, dict]:
    """(raised, what it means on the inputs [B, 1, T, S], what the program says, names): after checking idempotence."""
    run, inputs = program(mask), tuple(INPUTS.values())
    traced = trace(run, *inputs, dynamic=dynamic)
    predicate, evaluator = denote(traced, INDEX)
    keys = evaluator.size(traced.out)[-1]
    found = raise_mask(predicate, evaluator.ranges, keys)
    again = raise_mask(visible(found), evaluator.ranges, keys)
    values, expected = traced.run(*inputs), run(*inputs)
    names = {**grid(INDEX, tuple(expected.shape)), **size_values(traced, values)}
    loaded = tables(evaluator, values)

    def on_inputs(e: sympy.Basic) -> Tensor:
        return evaluate(e, names, loaded).expand(expected.shape)
    assert torch.equal(on_inputs(predicate), expected), f"the evaluator: {E.to_text(predicate)}"
    hi = on_inputs(found.hi) if found.hi != sympy.oo else torch.full(expected.shape, KEYS)
    hull = (names[E.j] >= on_inputs(found.lo)) & (names[E.j] < hi)
    hi = on_inputs(again.hi) if again.hi != sympy.oo else torch.full(expected.shape, KEYS)
    assert torch.equal(hull, (names[E.j] >= on_inputs(again.lo)) & (names[E.j] < hi)), "raising again changes the hull"
    return found, hull, on_inputs(found.residue), expected


def visible(found: Raised) -> sympy.Basic:
    return AttentionSpec(score=E.s, lo=found.lo, hi=found.hi, residue=found.residue).predicate


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", BANDS)
def test_bands_are_all_hull(name: str, dynamic: bool) -> None:
    found, hull, _, expected = raised(BANDS[name], dynamic)
    assert found.residue == sympy.true, E.to_text(found.residue)
    assert torch.equal(hull, expected), (E.to_text(found.lo), E.to_text(found.hi))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", OTHERS)
def test_raised_mask_means_the_same(name: str, dynamic: bool) -> None:
    _, hull, residue, expected = raised(OTHERS[name], dynamic)
    assert torch.equal(hull & residue, expected)


def test_packed_documents_are_causal_in_position_and_in_index() -> None:
    found, *_ = raised(OTHERS["packed positions"])
    assert (found.lo, found.hi) == (0, E.i + 1)
    assert E.to_text(found.residue) == "T:cumsum[b, i] == T:cumsum[b, j]"


# ----------------------------------------------------------------------------------------------- random programs

_ATOMS = list(BANDS.values()) + [OTHERS[n] for n in ("padding", "document", "blocks", "gathered", "two windows", "written")]


@st.composite
def bounds(draw):
    """A linear comparison of positions, lengths and constants."""
    a, c, d = draw(st.integers(-2, 2)), draw(st.integers(-2, 2)), draw(st.integers(-6, 6))
    divisor = draw(st.sampled_from([1, 1, 2, 3]))
    table = draw(st.booleans())
    compare = draw(st.sampled_from([torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne]))
    return lambda p: compare(a * (p.j // divisor) + (p.inputs["length"][:, None, None, None] if table else 0), c * p.i + d)


def _join(children):
    return st.one_of(
        st.tuples(children, children).map(lambda ab: lambda p: ab[0](p) & ab[1](p)),
        st.tuples(children, children).map(lambda ab: lambda p: ab[0](p) | ab[1](p)),
        st.tuples(children, children, children).map(lambda abc: lambda p: torch.where(abc[0](p), abc[1](p), abc[2](p))),
        children.map(lambda a: lambda p: ~a(p)),
        st.tuples(children, children).map(lambda ab: lambda p: ab[0](p) ^ ab[1](p)),
    )


mask_programs = st.recursive(st.one_of(st.sampled_from(_ATOMS), bounds(), bounds()), _join, max_leaves=4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(mask_programs, st.booleans())
def test_any_program_keeps_its_meaning(mask, dynamic: bool) -> None:
    _, hull, residue, expected = raised(mask, dynamic)
    assert torch.equal(hull & residue, expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(bounds(), min_size=1, max_size=3))
def test_a_conjunction_of_bounds_is_all_hull(parts) -> None:
    def mask(p: Point) -> Tensor:
        result = torch.ones(1, dtype=torch.bool)
        for part in parts:
            result = result & part(p)
        return result
    found, hull, residue, expected = raised(mask)
    if not found.residue.atoms(sympy.Ne):
        assert found.residue == sympy.true, E.to_text(found.residue)
    assert torch.equal(hull & residue, expected)


# ------------------------------------------------------------------------------------------ additive masks, scores

LEAST = torch.finfo(torch.float32).min
SCORES = {
    "additive": lambda p, x: x + torch.where(p.j <= p.i, 0.0, LEAST),
    "two additive": lambda p, x: x * 0.5 + torch.where(p.j <= p.i, 0.0, -torch.inf) + torch.where(p.at_keys("pad"), 0.0, LEAST),
    "one minus mask": lambda p, x: x + (1.0 - p.at_keys("pad").float()) * LEAST,
    "masked fill": lambda p, x: (x * 0.25).masked_fill(~p.at_keys("pad"), -torch.inf).masked_fill(p.j > p.i, LEAST),
    "bias": lambda p, x: x + torch.where(p.j <= p.i, (p.j - p.i) * 0.5, -torch.inf),
    "scaled after": lambda p, x: torch.where(p.j <= p.i, x, -torch.inf) * 0.125,
    "softcap": lambda p, x: 2.0 * torch.tanh(x / 2.0) + torch.where(p.at_keys("pad"), 0.0, LEAST),
    "triu of infinities": lambda p, x: x + torch.full((ROWS, KEYS), -torch.inf).triu(1),
    "made by masked_fill": lambda p, x: x + torch.zeros(ROWS, KEYS).masked_fill(p.j > p.i, LEAST),
    "visible everywhere": lambda p, x: x - 1.0e4 * (p.j > p.i),
}


@pytest.mark.parametrize("name", SCORES)
def test_hidden_values_are_split_off(name: str) -> None:
    x = torch.randn(BATCH, 2, ROWS, KEYS, generator=torch.Generator().manual_seed(0))

    def run(x: Tensor, *inputs: Tensor) -> Tensor:
        return SCORES[name](Point(ROWS, KEYS, dict(zip(INPUTS, inputs, strict=True))), x)
    traced, inputs = trace(run, x, *INPUTS.values()), (x, *INPUTS.values())
    value, evaluator = denote(traced, INDEX)
    predicate, score = split_mask(value, torch.float32)
    expected, loaded, names = run(*inputs), tables(evaluator, traced.run(*inputs)), grid(INDEX, tuple(x.shape))
    seen = evaluate(predicate, names, loaded).expand(x.shape)
    assert torch.equal(seen, expected > LEAST / 16)
    assert not score.has(-sympy.oo)
    torch.testing.assert_close(evaluate(score, names, loaded).expand(x.shape)[seen].float(), expected[seen])
