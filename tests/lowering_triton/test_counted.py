"""What the kernels say that they left out is what they left out, under Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.ledger import COMPUTED, LEFT_OUT, WEIGHED, Call
from mla_compiler.lowering import codegen, counted_gpu, modules, reference
from mla_compiler.lowering.build import build
from mla_compiler.lowering.compile import compile_kernel
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.select import choose
from mla_compiler.lowering.sparse import reference as sparse
from mla_compiler.sparsity import EXACTLY

from .attentions import CASES
from .cases import DECODE, PREFILL, Case, run
from .test_sparse import KEEP_ALL, LOCAL, local, on_cpu, tiles_of, under

HARDWARE = 2**-22
"""What ex2.approx may be off by (PTX ISA)."""


def counted(case: Case, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, Call]:
    """(out that was counted, out that was not, the account)."""
    given, spec = local(case, device), replace(AttentionSpec.parse(case.spec), site="here")
    assert case.choice is not None
    call = counted_gpu.new_call(case.choice, spec, given.q, given.k, given.v)
    out = torch.full((case.batch, case.queries, case.heads, case.value_dim), torch.nan, dtype=case.dtype,
                     device=device).transpose(1, 2)
    env = (given.tables, list(case.sizes), list(case.scalars))
    counted_gpu.run(case.choice, spec, given.q, given.k, given.v, env, out, call)
    return out, run(case, device, given), call


def check(case: Case, device: str = "cpu") -> tuple[bool, bool, set[int]]:
    """(whether counting changes nothing; whether no share is further from the truth than twice the formula in float32; the
    steps that were found)."""
    out, plain, call = counted(case, device)
    given, spec = on_cpu(local(case, device)), AttentionSpec.parse(case.spec)
    a, sink = reference.logits(given.q.double(), given.k.double(), given.tables, case.sizes, case.scalars, spec)
    assert case.choice is not None
    rows, width, near = case.choice.block_m, case.choice.block_n, True
    steps, dropped = call.steps.cpu(), call.dropped.cpu()
    packed = case.choice.family == "decode"
    for b, _, first, heads in tiles_of(case, spec, rows):
        seen = a[b, heads, first:first + rows].flatten(0, 1).isfinite().any(0).nonzero()
        start = int(seen[0]) if packed and len(seen) else 0          # where the tiles of a decode step begin
        for head in heads:
            own = a[b, head, first:first + rows, start:]
            found = steps[b, head // (spec.group if packed else 1), first // rows, start // width:][:-(-own.shape[1] // width)]
            together = a[b, heads, first:first + rows, start:].flatten(0, 1)
            assert torch.equal(found.bool(), sparse.in_tiles(together, width).isfinite().any(-1).any(0))
            truth, formula = (share(x, sink[b, head, first:first + rows].to(x.dtype), found, width) for x in (own, own.float()))
            error = (dropped[b, head, first:first + rows] - truth).abs().max()
            near &= bool(error <= 2 * max((formula - truth).abs().max(), HARDWARE))
    return torch.equal(out, plain), near, set(steps.unique().tolist())


def share(a: torch.Tensor, sink: torch.Tensor, found: torch.Tensor, width: int) -> torch.Tensor:
    """Of each row's softmax, what lies in tiles that were not computed."""
    gone = a.masked_fill((found == COMPUTED).repeat_interleave(width)[:a.shape[1]], -torch.inf).logsumexp(-1)
    return torch.where(gone == -torch.inf, 0, (gone - torch.cat([a, sink], -1).logsumexp(-1)).exp())


POLICIES = ["threshold=0.02", "error_budget=0.03", "pages.share=0.03", "pages.share=0.005+threshold=0.3"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", [name for name in LOCAL if name != "padding"])
def test_prefill(interpreted, name, policy):
    case = under(LOCAL[name], policy, choice=replace(PREFILL, block_n=32))
    same, near, steps = interpreted(check, case)
    assert same and near
    assert (WEIGHED in steps) == (policy != "pages.share=0.03") and (LEFT_OUT in steps) == policy.startswith("pages")


@pytest.mark.parametrize("share", [{}, {"kv_splits": 3}, {"programs": 3}], ids=str)
def test_decode(interpreted, share):
    case = under(LOCAL["full"].but(queries=1, choice=replace(DECODE, **share)), "threshold=0.02")
    same, near, steps = interpreted(check, case)
    assert same and near and {WEIGHED, COMPUTED} <= steps


@pytest.mark.parametrize("policy", ["exact", KEEP_ALL])
@pytest.mark.parametrize("name", CASES)
def test_what_is_exact_leaves_nothing_out(interpreted, name, policy):
    for changes in ({}, {"queries": 1, "choice": DECODE}):
        same, near, steps = interpreted(check, under(CASES[name], policy, **changes))
        assert same and near and steps <= {0, COMPUTED}


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize("queries", [1, 4096])
def test_what_counts_compiles(arch, queries):
    spec = AttentionSpec.parse("score: 0.125*s; hi: i + 1; group: 4; sparsity: threshold=0.1; site: here")
    choice = choose(spec, 1, 32, queries, 4096, 128, 128, torch.bfloat16, MACHINES[arch])
    assert "kept" in compile_kernel(spec, choice, 128, 128, torch.bfloat16, arch).ttir
    plain = replace(spec, sparsity=EXACTLY, site="")
    function = modules.load(codegen.source(plain, "mass"), "mass").mass
    types = {"q": "*bf16", "k": "*bf16", "kept": "*u8", "dropped": "*fp32"}
    constants = counted_gpu.constants(spec, choice, 128, 4 if queries == 1 else 1, upcast=False)
    assert build(function, types, constants, arch, choice.warps, 1).asm["llir"]


def test_an_account_is_in_no_kernel_that_keeps_none():
    for family in ("prefill", "decode"):
        plain, counting = (codegen.source(AttentionSpec.parse(f"score: s; sparsity: threshold=0.1{site}"), family)
                           for site in ("", "; site: here"))
        assert "kept_rows" not in plain and "kept_rows" in counting
        assert counting == codegen.source(AttentionSpec.parse("score: s; sparsity: threshold=0.2; site: there"), family)
