"""The Hopper kernel of few rows as threads on the CPU: equal to the formula, however the keys are divided."""

from functools import partial

import pytest
import torch

from mla_compiler.lowering.mla.exchange_launch import NARROW, family_of, whole

from . import test_exchange
from .test_exchange import HULLS, SMALL

check = partial(test_exchange.check, narrow=True)


@pytest.mark.parametrize("name", HULLS)
@pytest.mark.parametrize("programs, splits", [(0, 1), (0, 3), (1, 1), (5, 1)])
def test_dense(interpreted, name, programs, splits):
    check(interpreted, HULLS[name].but(**SMALL, keys=500), programs, splits)


@pytest.mark.parametrize("name", ["live length", "window"])
@pytest.mark.parametrize("programs, splits", [(0, 1), (0, 3), (5, 1)])
def test_what_no_row_sees_may_be_nan(interpreted, name, programs, splits):
    check(interpreted, HULLS[name].but(**SMALL, keys=500), programs, splits, poisoned=True)


@pytest.mark.parametrize("exponent", [-30, 100])
def test_of_any_magnitude(interpreted, exponent):
    check(interpreted, HULLS["live length"].but(**SMALL, keys=500, dtype=torch.bfloat16), 5, 1, exponent)


@pytest.mark.parametrize("programs", [2, 3, 8])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_sequences_of_all_lengths(interpreted, programs, batch):
    """A block has several short ones, or a piece of a long one, or nothing."""
    check(interpreted, HULLS["live length"].but(**SMALL, keys=900, batch=batch, queries=1), programs)


@pytest.mark.parametrize("heads, queries", [(16, 1), (1, 1), (8, 1), (5, 4), (16, 2), (32, 1), (9, 1), (3, 5)])
def test_boxes_of_rows(interpreted, heads, queries):
    """Of 16 rows and of 32; full or not, of heads or of queries."""
    case = HULLS["live length"].but(**SMALL, keys=500, batch=2, queries=queries, heads=heads)
    check(interpreted, case, 3)
    check(interpreted, case, 0, 2)


@pytest.mark.parametrize("name", ["live length", "window"])
def test_pages(interpreted, name):
    check(interpreted, HULLS[name].but(**SMALL, keys=300, batch=2, paged=True), 4)


def test_who_is_few():
    assert [family_of("mla", *rows) for rows in ((16, 1), (16, 2), (9, 2), (8, 4), (3, 8))] == ["mla_narrow"] * 5
    assert [family_of("mla", *rows) for rows in ((33, 1), (16, 3), (17, 2))] == ["mla_exchange"] * 3
    assert family_of("packed", 16, 1) == "packed_exchange" and family_of("tokens", 16, 1) == "tokens_exchange"
    assert [whole("mla_narrow", *rows).block_m for rows in ((16, 1), (8, 2), (9, 2), (8, 3))] == [16, 16, 32, 32]
    assert max(NARROW) == 32
