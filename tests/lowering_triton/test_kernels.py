"""Prefill and decode under Triton's interpreter: error <= 2 x that of the formula in the working dtype, from float64."""

import pytest

from .attentions import CASES
from .cases import DECODE, Case, errors


def check(interpreted, case: Case) -> None:
    error, formula = interpreted(errors, case)
    assert error <= 2 * formula, f"{error} from the truth, the formula in {case.dtype} is {formula}: {case}"


@pytest.mark.parametrize("name", CASES)
def test_prefill(interpreted, name):
    check(interpreted, CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_decode_with_one_query(interpreted, name):
    check(interpreted, CASES[name].but(queries=1, choice=DECODE))
