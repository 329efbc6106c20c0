"""Decode in equal shares of the live keys: right for any lengths and any number of programs, and its counters end at zero."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import counters
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.decode.config import Shape, batch_block, configure, power
from mla_compiler.lowering.machine import MACHINES

from .attentions import CASES
from .cases import Case, errors, operands, run

SINKS = Case("score: 0.25*s; hi: T0[b] + 1; group: 2; sink: F1[h]", ("uneven", "sinks"), batch=5, heads=4, queries=1, keys=700)


def shared(case: Case, programs: int, block_n: int = 16) -> Case:
    """The case, decoded by so many programs."""
    group = AttentionSpec.parse(case.spec).group
    block_m = max(16, power(group * case.queries))
    return case.but(choice=Choice("decode", block_m, block_n, 4, 1, 1, programs, batch_block(case.batch), power(case.queries),
                                  min(block_m, power(group * case.queries))))


def decoded(case: Case) -> tuple[float, float, bool]:
    """(the kernel's error, the formula's, whether every counter is zero again)."""
    measured = errors(case)
    left = counters.counters(torch.device("cpu"), 1024)
    return *measured, not left.any()


def check(interpreted, case: Case) -> None:
    error, formula, clean = interpreted(decoded, case)
    assert clean
    assert error <= 2 * formula, f"{error} from the truth, the formula in {case.dtype} is {formula}: {case}"


def division(case: Case, programs: int, block_n: int) -> tuple[int, int]:
    """(programs that have parts of several items, items of several parts), where shares are not rounded to items."""
    group = AttentionSpec.parse(case.spec).group
    tiles = [max(1, -(-(length + 1) // block_n)) for length in operands(case).tables[0].tolist()
             for _ in range(case.heads // group)]
    each = max(-(-sum(tiles) // programs), 128 // block_n)
    starts = [sum(tiles[:at]) for at in range(len(tiles) + 1)]
    spans = [(a // each, (z - 1) // each) for a, z in pairwise(starts)]
    several = sum(sum(a <= w <= z for a, z in spans) > 1 for w in range(programs))
    return several, sum(a < z for a, z in spans)


@pytest.mark.parametrize("programs", [1, 2, 5, 7])
def test_shares_cross_items(interpreted, programs):
    several, cut = division(SINKS, programs, 16)
    assert several and (cut or programs == 1)
    check(interpreted, shared(SINKS, programs))


@pytest.mark.parametrize("programs", [11, 16, 40, 132])
def test_more_programs_than_items(interpreted, programs):
    check(interpreted, shared(SINKS, programs))
    check(interpreted, shared(SINKS.but(batch=1, tables=("lengths", "sinks"), keys=2000), programs))


@pytest.mark.parametrize("name", [
    "full", "causal, aligned to the end", "window", "live length", "a length for all", "mask, summarised", "padding", "sinks",
])
@pytest.mark.parametrize("queries", [1, 5, 16])
def test_every_hull(interpreted, name, queries):
    keys = 330 if "n0" not in CASES[name].spec else CASES[name].keys
    check(interpreted, shared(CASES[name].but(queries=queries, keys=keys), 6))


@pytest.mark.parametrize("head_dim, group", [(16, 1), (80, 3), (64, 20)])
def test_rows_of_many_heads(interpreted, head_dim, group):
    """20 heads of 7 positions are 140 rows: several row tiles of 64."""
    spec = f"score: 0.1*s; hi: T0[b] + i - 6; group: {group}"
    case = Case(spec, ("uneven",), batch=3, heads=2 * group, queries=7, keys=400, head_dim=head_dim, value_dim=head_dim)
    for programs in (5, 33):
        wide = shared(case, programs)
        choice = wide.choice
        check(interpreted, wide.but(choice=Choice("decode", min(64, choice.block_m), 16, 4, 1, 1, programs, 16, 8, 16)))


def test_any_lengths(interpreted):
    @settings(max_examples=15, deadline=None)
    @given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 900), st.sampled_from([16, 32]))
    def right(programs, batch, keys, block_n):
        check(interpreted, shared(SINKS.but(batch=batch, keys=keys), programs, block_n))

    right()


def twice(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    given = operands(case)
    return run(case, given=given), run(case, given=given)


def test_the_same_bits_again(interpreted):
    first, second = interpreted(twice, shared(SINKS, 7))
    assert torch.equal(first, second)


def test_rows_without_keys_are_zero(interpreted):
    out = interpreted(run, shared(SINKS, 7))
    assert not out[0].any() and out[1:].any(-1).all()


def test_a_hull_of_each_head_is_cut_in_equal_parts(interpreted):
    text = "score: 0.25*s; lo: max(0, i + n0 - 40*h); hi: i + n0 + 1; group: 2"
    shape = Shape(1, 2, 1, 900, 16, 16, 2)
    choice = configure(AttentionSpec.parse(text), shape, False, MACHINES["sm_90"])
    assert choice.programs == 0 and choice.kv_splits > 1
    check(interpreted, Case(text, sizes=(899,), heads=4, queries=1, keys=900, choice=choice))
    assert configure(AttentionSpec.parse("score: s; kv_splits: 5"), shape, False, MACHINES["sm_90"]).kv_splits == 5
    assert configure(AttentionSpec.parse("score: s"), shape, False, MACHINES["sm_90"]).programs == 2 * 15
    assert configure(AttentionSpec.parse("score: s"), Shape(5000, 2, 4, 900, 16, 16, 2), False, MACHINES["sm_90"]).programs == 0


def test_an_arena_gives_nothing_twice():
    arenas = counters.Arenas(torch.device("cpu"))
    assert arenas.of_capture(8).tolist() == [0] * 8
    first = arenas.of_stream(1, 5)
    taken = [first, arenas.of_stream(2, 2000), arenas.of_capture(40), arenas.of_capture(1)]
    assert arenas.of_stream(1, 5) is first
    for at, slice_ in enumerate(taken):
        slice_ += at + 1
    assert all((slice_ == at + 1).all() for at, slice_ in enumerate(taken))
    assert arenas.of_capture(counters.ARENA).numel() == counters.ARENA
    assert not arenas.of_stream(1, 5000).any()
