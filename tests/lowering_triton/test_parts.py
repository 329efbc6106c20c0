"""Any division of the keys gives the same answer; the merge and the summary against the truth."""

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler.lowering import gpu
from mla_compiler.lowering.choice import Choice, padded
from mla_compiler.lowering.decode.merge import merge
from mla_compiler.lowering.summary import reference as summary_reference

from .attentions import CASES
from .cases import Case
from .test_kernels import check


@pytest.mark.parametrize(
    "name", ["causal, aligned to the end", "sinks", "mask, summarised", "live length", "documents", "bias"])
def test_three_parts(interpreted, name):
    check(interpreted, CASES[name].but(queries=5, choice=Choice("decode", 16, 16, 4, 1, 3)))


def test_any_number_of_parts(interpreted):
    @settings(max_examples=10, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 100), st.sampled_from([16, 32]))
    def same(parts, keys, live, block_n):
        case = Case("score: 0.25*s; hi: i + n0; sink: F0[h]", ("sinks",), sizes=(live,), queries=4, keys=keys,
                    choice=Choice("decode", 16, block_n, 4, 1, parts))
        check(interpreted, case)

    same()


@triton.jit
def _merged(workspace, out, parts, R: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr):
    o = merge(workspace, 0, parts, 0, R, DV, BLOCK_DV, R, R, 1)
    o_d = tl.arange(0, BLOCK_DV)[None, :]
    tl.store(out + tl.arange(0, R)[:, None] * DV + o_d, o, mask=o_d < DV)


def merged(parts, lse):
    splits, rows, dim = parts.shape
    out = torch.full((rows, dim), torch.nan)
    _merged[(splits,)](torch.cat([parts.flatten(), lse.flatten()]), out, splits, R=rows, DV=dim, BLOCK_DV=padded(dim))
    return out


@pytest.mark.parametrize("splits", [2, 8, 19, 70])
def test_merge(interpreted, splits):
    torch.manual_seed(splits)
    parts, lse = torch.randn(splits, 16, 20), 20 * torch.randn(splits, 16)
    lse[0] = -torch.inf
    lse[:, 0] = -torch.inf
    found = interpreted(merged, parts, lse)
    weight = torch.softmax(lse.double() * math.log(2), 0).nan_to_num(0)
    truth = (weight[..., None] * parts).sum(0)
    formula = (torch.softmax(lse * math.log(2), 0).nan_to_num(0)[..., None] * parts).sum(0)
    assert (found - truth).abs().max() <= 2 * (formula - truth).abs().max()
    assert not found[0].any()


def masks():
    torch.manual_seed(0)
    yield torch.rand(2, 1, 70, 150) < 0.02
    yield torch.rand(1, 3, 1, 300) < 0.9
    yield torch.ones(2, 1, 65, 64, dtype=torch.bool)
    yield torch.zeros(1, 1, 3, 5, dtype=torch.bool)
    yield torch.ones(130, 130, dtype=torch.bool).tril()[None, None]
    yield (torch.rand(1, 2, 40, 80) < 0.3).transpose(2, 3)
    yield (torch.rand(1, 1, 1, 90) < 0.3).expand(2, 1, 9, 90)


@pytest.mark.parametrize("at", range(7))
def test_summarize(interpreted, at):
    mask = list(masks())[at]
    for found, truth in zip(interpreted(gpu.summarize, mask), summary_reference.summarize(mask), strict=True):
        assert found.dtype == truth.dtype and torch.equal(found, truth)
