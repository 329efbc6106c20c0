"""Leaving tiles out on a real GPU: all kept is dense, what is kept is what the reference keeps, the same bits every time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu
from mla_compiler.lowering.hopper.config import configure
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.sparse import listing
from mla_compiler.lowering.sparse import reference as sparse
from mla_compiler.lowering.sparse.config import unserved
from mla_compiler.sparsity import EXACTLY

from .attentions import CASES
from .cases import Case, Operands, errors, operands, run
from .test_hopper_sparse import ROWS, attended, compare, logits, row_tiles
from .test_hopper_threshold import decided
from .test_sparse import KEEP_ALL, LOCAL, found_and_wanted, lists_found_and_wanted, local, on_cpu, under

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


HOPPER = [
    ("score: 0.09*s; hi: i + 1; group: 4", 1500, 1500), ("score: 0.09*s", 300, 1000),
    ("score: 0.09*s; lo: max(0, i - 700); hi: i + 1; group: 2", 1500, 1500),
]


@pytest.fixture
def hopper_gpu():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")


def levelled(spec: str, queries: int, keys: int, head_dim: int, policy: str) -> tuple[Case, Operands]:
    """Every other tile of 128 keys lies 2.5 lower in logits: what is left out has weight in every row."""
    case = Case(f"{spec}; sparsity: {policy}", heads=4, queries=queries, keys=keys, head_dim=head_dim, value_dim=head_dim,
                dtype=torch.bfloat16, choice=None)
    given = operands(case, "cuda")
    given.q.mul_(0.1), given.k.mul_(0.1)
    given.q[..., 0], given.k[..., 0] = 8.0, -2.5 / 8 / 0.09 * (torch.arange(keys, device="cuda") // 128 % 2)
    return case, given


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("attention", HOPPER, ids=str)
def test_the_hopper_kernel_keeps_what_the_reference_keeps(attention, head_dim, hopper_gpu):
    case, given = levelled(*attention, head_dim, "threshold=0.215")
    spec = AttentionSpec.parse(case.spec)
    choice = configure(spec, head_dim, head_dim, MACHINES["sm_90"])
    found, given = run(case.but(choice=choice), "cuda", given).cpu(), on_cpu(given)
    a, _ = logits(case, spec, given)
    every = {place: sparse.in_tiles(a[place[0], place[1], place[2]:place[2] + ROWS], choice.block_n).isfinite().any(-1).any(0)
             for place in row_tiles(case)}
    kept = decided(spec.sparsity, a, case, choice.block_n, every)
    assert (compare(found, kept, case, spec, given, choice.block_n, 64) & a.isfinite()).any()


@pytest.mark.parametrize("policy", ["lsh=0.3", "pages.mass=0.6", "pages.share=0.02", "pages.share=0.02+threshold=0.215"])
@pytest.mark.parametrize("attention", HOPPER, ids=str)
def test_the_hopper_kernel_attends_what_was_listed(attention, policy, hopper_gpu):
    case, given = levelled(*attention, 128, policy)
    spec = AttentionSpec.parse(case.spec)
    choice = configure(spec, 128, 128, MACHINES["sm_90"])
    plain = replace(spec, sparsity=EXACTLY)
    tiles, counts, _ = listing.listed(partial(gpu.kernel, plain), spec, choice, given.q, given.k, [], False)
    found, given = run(case.but(choice=choice), "cuda", given).cpu(), on_cpu(given)
    a, _ = logits(case, spec, given)
    among = attended(tiles.cpu(), counts.cpu(), a, case, choice.block_n)
    kept, rows = (decided(spec.sparsity, a, case, choice.block_n, among), 64) if spec.sparsity.then else (among, ROWS)
    compare(found, kept, case, spec, given, choice.block_n, rows)


@pytest.mark.parametrize("policy", ["threshold=0.05", "lsh=0.25", "error_budget=0.1"])
def test_a_graph_of_launches_repeats_bit_by_bit(policy, hopper_gpu):
    case, given = levelled("score: 0.09*s; hi: i + 1; group: 4", 3000, 3000, 128, policy)
    choice = configure(AttentionSpec.parse(case.spec), 128, 128, MACHINES["sm_90"])
    first = run(case.but(choice=choice), "cuda", given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [run(case.but(choice=choice), "cuda", given) for _ in range(4)]
    for _ in range(5):
        graph.replay()
        assert all(torch.equal(out, first) for out in outs)
