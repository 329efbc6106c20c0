"""Leaving tiles out on a real GPU: all kept is dense, what is kept is what the reference keeps, the same bits every time."""

from __future__ import annotations

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.sparse.config import unserved

from .attentions import CASES
from .cases import errors, run
from .test_sparse import KEEP_ALL, LOCAL, found_and_wanted, lists_found_and_wanted, local, under

pytestmark = pytest.mark.gpu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_keep_all_is_dense(name, dtype):
    for policy in (KEEP_ALL, "pages.share=1e-30+threshold=1e-30"):
        for queries in (1, 200):
            case = under(CASES[name], policy, dtype=dtype, queries=queries, keys=333, head_dim=64, value_dim=64, choice=None)
            if not unserved(AttentionSpec.parse(case.spec)):
                error, formula = errors(case, "cuda")
                assert error <= 2 * formula, (error, formula, case)


@pytest.mark.parametrize("policy", ["threshold=0.02", "error_budget=0.03", "pages.share=0.03"])
@pytest.mark.parametrize("name", [name for name in LOCAL if name != "padding"])
def test_what_is_kept(name, policy):
    case = under(LOCAL[name], policy)
    case = case.but(choice=case.choice.__class__("prefill", 32, 32, 4, 2))
    check = lists_found_and_wanted if policy.startswith("pages") else found_and_wanted
    error, formula, gone = check(case, "cuda")
    assert gone > 0 and error <= 2 * formula, (error, formula, gone)


def test_the_same_bits():
    case = under(LOCAL["causal"], "pages.share=0.03+threshold=0.05", queries=2000, keys=2000, head_dim=64, choice=None)
    given = local(case, "cuda")
    assert torch.equal(run(case, "cuda", given), run(case, "cuda", given))
