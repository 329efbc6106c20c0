"""The attentions that are measured: bars, work, and that the spec means what the case says."""

import dataclasses
import math

import pytest
import torch

from mla_compiler.bench.attentions import ATTENTIONS, DECODE, PREFILL, WIDTH, Attention
from mla_compiler.bench.operands import Operands
from mla_compiler.bench.sampling import Sample, copies, rotation
from mla_compiler.bench.sparse import SPARSE
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.reference import attend, visible
from mla_compiler.lowering.select import DECODE_QUERIES, supports
from mla_compiler.lowering.sparse.reference import inward, threshold

TOYS = [case.shrunk() for case in ATTENTIONS]
BY_NAME = {case.name: case for case in ATTENTIONS}


def names(case: Attention) -> str:
    return case.name


def test_the_bars_of_the_kernels():
    bars = {case.name: [str(bar) for bar in case.bars] for case in ATTENTIONS if case.bars}
    goal = "goal: >= 1x fa3"
    never_slower = ">= 1x the best peer"
    assert bars == {
        "prefill causal 8k": [">= 600 TFLOP/s", goal], "prefill causal 32k": [">= 650 TFLOP/s", goal],
        "prefill head dim 64, 8k": [">= 480 TFLOP/s"], "prefill window 1024, 32k": ["<= 1.175 ms"],
        "prefill documents 16 x 2k": [">= 6 x ours, dense"],
        "decode B=1 2k": [never_slower, "<= 12 us"], "decode B=1 8k": [never_slower], "decode B=1 32k": [never_slower],
        "decode B=1 128k": [never_slower], "decode B=16 2k": [never_slower], "decode B=16 8k": [never_slower],
        "decode B=16 32k": [never_slower, ">= 3 TB/s"], "decode B=64 8k": [never_slower],
        "decode B=16, 1 of 32k, 15 of 1k": [">= 1.5x the best SDPA"],
    }
    assert len(BY_NAME) == len(ATTENTIONS)


def test_work_is_counted_as_the_field_counts_it():
    causal, documents = BY_NAME["prefill causal 32k"], BY_NAME["prefill documents 16 x 2k"]
    assert causal.flops == pytest.approx(2 * 32768**2 * 32 * 128, rel=1e-4)
    assert documents.flops == pytest.approx(causal.flops / 16, rel=1e-3)
    assert BY_NAME["decode B=16 32k"].live_bytes(torch.bfloat16) == 16 * 32768 * 8 * 128 * 2 * 2
    unequal = BY_NAME["decode B=16, 1 of 32k, 15 of 1k"]
    assert unequal.live_bytes(torch.bfloat16) == (32768 + 15 * 1024) * 8 * 128 * 2 * 2


@pytest.mark.parametrize("case", TOYS, ids=names)
def test_the_spec_means_what_the_case_says(case):
    given = Operands.random(case, "cpu", torch.float32)
    i, j = torch.arange(case.queries)[:, None], torch.arange(case.keys)[None]
    said = torch.stack([case.visible(b, i, j) for b in range(case.batch)])
    spec = AttentionSpec.parse(case.spec)
    found = visible(spec, case.batch, 1, case.queries, case.keys, given.tables, [], [])[:, 0]
    assert torch.equal(found, said)
    assert case.pairs == said.sum()
    assert spec.group == case.sharing and len(spec.tables) == len(given.tables)


@pytest.mark.parametrize("case", [c for c in TOYS if c.keys <= 64], ids=names)
def test_the_sample_is_the_reference(case):
    given = Operands.random(case, "cpu", torch.float32)
    exact = attend(given.q, given.k, given.v, given.tables, [], [], case.spec)
    assert Sample.of(given).error(exact) < 1e-6
    rows = given.formula((case.batch - 1, 1, torch.arange(case.queries)), torch.float64)
    torch.testing.assert_close(rows, exact[-1, case.sharing:2 * case.sharing], rtol=1e-12, atol=1e-12)


def test_a_wrong_answer_is_told_from_rounding():
    case = next(case for case in TOYS if case.name == "prefill window 1024, 8k")
    given = Operands.random(case, "cpu", torch.float32)
    out = attend(given.q, given.k, given.v, given.tables, [], [], case.spec)
    sample = Sample.of(given)
    longer = attend(given.q, given.k, given.v, given.tables, [], [], case.spec.replace("i - 7", "i - 8"))
    poisoned = out.clone()
    poisoned[..., 0] = math.nan
    assert sample.error(attend(given.q, given.k, given.v, [], [], [], case.spec, torch.float32)) <= 2
    assert sample.error(longer) > 2
    assert not sample.error(poisoned) <= 2


def test_operands_are_copied_until_no_cache_holds_them():
    numbers = {case.name: rotation(case, torch.bfloat16) for case in ATTENTIONS}
    assert numbers["decode B=1 2k"] == 19  # of 8.4 MB, for 157 MB
    assert numbers["decode B=16 32k"] == numbers["prefill causal 32k"] == 1
    assert len(copies(TOYS[0], "cpu", torch.float32)) == 1


def test_memory_is_as_models_have_it():
    prefill = Operands.random(Attention("a", PREFILL, 1, 16, 16), "cpu", torch.float32)
    decode = Operands.random(Attention("b", DECODE, 1, 1, 16), "cpu", torch.float32)
    assert prefill.k.transpose(1, 2).is_contiguous() and decode.k.is_contiguous()
    assert prefill.q.shape == (1, 32, 16, 128) and decode.q.shape == (1, 32, 1, 128)


@pytest.mark.parametrize("case", ATTENTIONS, ids=names)
def test_a_gpu_has_a_kernel_for_each(case):
    spec = AttentionSpec.parse(case.spec)
    assert supports(spec, case.head_dim, case.value_dim, torch.bfloat16, "cuda") is None
    few = case.queries <= DECODE_QUERIES
    assert (case.group == DECODE) == few


def test_one_tile_in_so_many_matters():
    case = Attention("toy", PREFILL, 1, 64, 1024, heads=2, kv_heads=1, every=4, sparsity="threshold=0.05")
    given = Operands.random(case, "cpu", torch.float32)
    weights = (given.q[0] @ given.k[0, 0].T * case.scale).softmax(-1).unflatten(-1, (-1, 128)).sum(-1)
    assert weights[..., ::4].sum(-1).min() > 1 - 1e-6
    dense = case.spec.replace("; sparsity: threshold=0.05", "")
    assert AttentionSpec.parse(given.ours(dense=True).args[-1]) == AttentionSpec.parse(dense)


@pytest.mark.parametrize("case", [case for case in SPARSE if "threshold" in case.sparsity], ids=names)
def test_a_threshold_keeps_the_tiles_that_matter_and_no_other(case):
    """By the reference, of four rows that see all keys at the length that is measured."""
    torch.manual_seed(0)
    given = Operands.random(dataclasses.replace(case, batch=1, queries=4, heads=1, kv_heads=1), "cpu", torch.float32)
    a = (given.q[0, 0] @ given.k[0, 0].T).double() * case.scale
    policy = AttentionSpec.parse(case.spec).sparsity
    kept = threshold(a, WIDTH, policy.ratio, inward(case.keys // WIDTH))
    assert kept.nonzero().flatten().tolist() == list(range(0, case.keys // WIDTH, case.every))
