"""costs.estimate against counting: every visible pair once, every byte by hand."""

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from mla_compiler import costs
from mla_compiler import expr as E
from mla_compiler.ir import AttentionSpec

SIZES = {"B": 2, "H": 6, "Hkv": 2, "T": 24, "S": 40, "D": 16, "Dv": 8, "itemsize": 2}


def spec(**bounds):
    return AttentionSpec(score=E.s, **{name: E.from_text(text) for name, text in bounds.items()})


def count(predicate, T, S):
    return sum(bool(predicate(i, j)) for i in range(T) for j in range(S))


def test_nothing_is_masked():
    found = costs.estimate(spec(), **SIZES)
    assert found.flops_before == found.flops_after == 2 * 2 * 6 * 24 * 40 * (16 + 8)
    assert found.bytes_before == found.bytes_after == 2 * (2 * 6 * 24 * 24 + 2 * 2 * 40 * 24)


@pytest.mark.parametrize(
    ("bounds", "predicate"),
    [
        ({"hi": "i + 1"}, lambda i, j: j <= i),
        ({"hi": "i + 17"}, lambda i, j: j <= i + 16),
        ({"lo": "max(0, i - 7)", "hi": "i + 1"}, lambda i, j: i - 8 < j <= i),
        ({"lo": "8*(i // 8)", "hi": "8*(i // 8) + 8"}, lambda i, j: i // 8 == j // 8),
        ({"hi": "min(i + 1, 5)"}, lambda i, j: j <= i and j < 5),
        ({"lo": "i + 100"}, lambda i, j: False),
        ({"hi": "where(i < 4, 3, i % 5)"}, lambda i, j: j < (3 if i < 4 else i % 5)),
    ],
)
def test_flops_count_the_visible_pairs(bounds, predicate):
    found = costs.estimate(spec(**bounds), **SIZES)
    assert found.flops_after == 2 * 2 * 6 * count(predicate, 24, 40) * 24


@given(st.integers(0, 40), st.integers(0, 40), st.integers(-50, 50), st.integers(-50, 50))
def test_hull_is_clipped_to_what_is_there(T, S, low, high):
    total, reach = costs.visible_keys(E.i + low, E.i + high, T, S, ())
    seen = [j for i in range(T) for j in range(S) if i + low <= j < i + high]
    assert total == len(seen)
    assert reach == (max(seen) - min(seen) + 1 if seen else 0)


def test_what_a_table_decides_is_counted_in_full():
    unknown = costs.estimate(spec(hi="T0[b, i] + 1"), **SIZES)
    assert unknown.flops_after == unknown.flops_before
    partly = costs.estimate(spec(hi="min(i + 1, T0[b])", lo="max(T1[b], 0)"), **SIZES)
    assert partly == costs.estimate(spec(hi="i + 1"), **SIZES)


def test_sizes_come_as_hints():
    known = costs.estimate(spec(hi="i + n0 - n1"), **SIZES, sizes={"n0": 20, "n1": 3})
    assert known == costs.estimate(spec(hi="i + 17"), **SIZES)


def test_bytes_of_what_fusing_avoids():
    plain = costs.estimate(spec(hi="i + 1"), **SIZES)
    wasteful = costs.estimate(spec(hi="i + 1"), **SIZES, mask_bytes=1000, repeated=True, score_passes=3, table_bytes=77)
    assert wasteful.bytes_before - plain.bytes_before == 1000 + 2 * 2 * 6 * 40 * 24 * 2 + 3 * 2 * 6 * 24 * 40 * 2
    assert wasteful.bytes_after - plain.bytes_after == 77
    assert (wasteful.flops_before, wasteful.flops_after) == (plain.flops_before, plain.flops_after)


def test_decode_with_a_window_reads_the_window():
    sizes = {**SIZES, "T": 1, "S": 4096}
    found = costs.estimate(spec(lo="i + 3000", hi="i + 3512"), **sizes)
    assert found.bytes_after == 2 * (2 * 6 * 24 + 2 * 2 * 512 * 24)


def test_shape_text():
    shapes = [(1, 9, 5, 64), (1, 3, 5, 64), (1, 3, 5, 32)]
    assert costs.shape_text("qkv", shapes) == "q [1, 9, 5, 64], k [1, 3, 5, 64], v [1, 3, 5, 32]"
    assert costs.shape_text("qkv", [(sympy.Symbol("s0"), 1), (2,), (3,)]) == "q [s0, 1], k [2], v [3]"
