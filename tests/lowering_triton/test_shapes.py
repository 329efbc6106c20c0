"""Head dims, dtypes, groups, lengths and memory layouts; rows that see nothing; NaN and inf; under the interpreter."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from .attentions import CASES
from .cases import DECODE, LAYOUTS, PREFILL, Case, operands, run
from .test_kernels import check

CAUSAL = Case("score: 0.25*s; hi: i + 1", queries=21, keys=21)
STEP = CAUSAL.but(spec="score: 0.25*s; hi: T0[b] + 1; group: 2", tables=("lengths",), batch=2, queries=1, choice=DECODE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dims", [(16, 16), (80, 80), (96, 40), (192, 128), (256, 256), (8, 1)], ids=str)
def test_head_dims_and_dtypes(interpreted, dims, dtype):
    head_dim, value_dim = dims
    case = CAUSAL.but(head_dim=head_dim, value_dim=value_dim, dtype=dtype, heads=1)
    check(interpreted, case)
    check(interpreted, case.but(queries=1, choice=DECODE))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(interpreted, layout):
    check(interpreted, CAUSAL.but(layout=layout, batch=2))
    check(interpreted, STEP.but(layout=layout))


@pytest.mark.parametrize("group", [1, 3, 20])
@pytest.mark.parametrize("queries", [1, 3, 7])
def test_query_heads_share_their_keys(interpreted, group, queries):
    """20 heads of 7 positions are 140 rows: several row tiles."""
    spec = f"score: 0.25*s + F0[h]*(i - j); hi: i + 1 + n0; group: {group}"
    case = Case(spec, ("slopes",), sizes=(30 - queries,), heads=group * 2, queries=queries, keys=30, choice=DECODE)
    check(interpreted, case)


@pytest.mark.parametrize("choice", [PREFILL, DECODE, DECODE.__class__("decode", 16, 16, 4, 1, 3)], ids=str)
def test_rows_without_keys_are_zero(interpreted, choice):
    out = interpreted(run, CASES["mask"].but(queries=10, choice=choice))
    assert torch.equal(out[:, :, 1], torch.zeros_like(out[:, :, 1]))
    out = interpreted(run, CASES["full"].but(spec="score: 0.25*s; lo: i + n0", sizes=(5,), keys=12, queries=9, choice=choice))
    assert out.isfinite().all() and not out[:, :, 7:].any() and out[:, :, :7].any(-1).all()


def poisoned(case: Case, tensor: str, value: float):
    """Key 5 (or query 5) holds `value`; what the kernel makes of it, and what SDPA does."""
    given = operands(case)
    getattr(given, tensor)[:, :, 5, 3] = value
    truth = scaled_dot_product_attention(given.q.double(), given.k.double(), given.v.double(), scale=0.25)
    return run(case, given=given), truth


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", ["q", "k", "v"])
@pytest.mark.parametrize("choice", [PREFILL, DECODE, DECODE.__class__("decode", 16, 16, 4, 1, 3)], ids=str)
def test_nan_and_inf_go_where_sdpa_takes_them(interpreted, tensor, value, choice):
    out, truth = interpreted(poisoned, CASES["full"].but(queries=9, keys=21, choice=choice, dtype=torch.float32), tensor, value)
    assert torch.equal(out.isnan(), truth.isnan())
    assert torch.equal(out.isposinf(), truth.isposinf()) and torch.equal(out.isneginf(), truth.isneginf())


def beyond_the_hull(case: Case):
    """NaN in every key that no row sees: it may not be read."""
    given = operands(case)
    given.k[:, :, 7:] = torch.nan
    given.v[:, :, 7:] = torch.nan
    return run(case, given=given)


@pytest.mark.parametrize("choice", [PREFILL, DECODE, DECODE.__class__("decode", 16, 16, 4, 1, 3)], ids=str)
def test_keys_outside_the_hull_are_not_read(interpreted, choice):
    case = CASES["full"].but(spec="score: 0.25*s; hi: min(i + 1, 7)", queries=12, choice=choice)
    assert interpreted(beyond_the_hull, case).isfinite().all()
