"""Any division of the keys gives the same answer; the merge and the summary against their references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler.lowering import gpu
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.decode import reference as decode_reference
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


def merged(parts, lse):
    from mla_compiler.lowering.choice import padded
    from mla_compiler.lowering.decode.merge import merge

    splits, batch, heads, rows, dim = parts.shape
    out = torch.full((batch, heads, rows, dim), torch.nan)
    merge[(batch * heads * rows,)](parts, lse, out, out.stride(), batch * heads * rows, heads, rows, splits, DV=dim,
                                   BLOCK_DV=padded(dim))
    return out


@pytest.mark.parametrize("splits", [2, 8, 19])
def test_merge(interpreted, splits):
    torch.manual_seed(splits)
    parts, lse = torch.randn(splits, 2, 3, 2, 20), 20 * torch.randn(splits, 2, 3, 2)
    lse[0] = -torch.inf
    lse[:, 0, 0, 0] = -torch.inf
    found, truth = interpreted(merged, parts, lse), decode_reference.merge(parts, lse)
    weight = torch.softmax(lse * 0.6931471805599453, 0).nan_to_num(0)
    formula = (weight[..., None] * parts).sum(0)
    assert (found - truth).abs().max() <= 2 * (formula - truth).abs().max()
    assert not found[0, 0, 0].any()


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
