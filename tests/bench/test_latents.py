"""The attentions over latents that are measured: bars, work, operands, the truth, and FlashMLA by a stand-in of its layout."""

import sys

import pytest
import torch

from mla_compiler.bench.bars import Limit
from mla_compiler.bench.compare import Settings
from mla_compiler.bench.kernel_rows import KernelRow, Reading
from mla_compiler.bench.kernels import run_kernels
from mla_compiler.bench.latents import LATENTS, Latent
from mla_compiler.bench.operands_latent import LatentOperands
from mla_compiler.bench.peers import PEERS
from mla_compiler.bench.sampling import Sample, rotation
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.mla.reference import attend_latent
from mla_compiler.lowering.reference import visible

from . import peer_modules

BY_NAME = {case.name: case for case in LATENTS}
TOYS = [case.shrunk() for case in LATENTS if "paged" in case.name or "quer" in case.name or "tokens" in case.name or case.live]
TOYS += [LATENTS[0].shrunk(), LATENTS[7].shrunk()]


def names(case: Latent) -> str:
    return case.name


@pytest.fixture(params=TOYS, ids=names, scope="module")
def measured(request):
    given = LatentOperands.random(request.param, "cpu", torch.float32)
    return given, Sample.of(given)


def exact(given: LatentOperands, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rank = given.case.rank
    return attend_latent(given.q[..., :rank], given.q[..., rank:], given.latent, given.rope, given.tokens, given.pages,
                         given.tables, [], [], given.case.spec, dtype)


def test_the_bars_of_the_latents():
    bars = {case.name: [str(bar) for bar in case.bars] for case in LATENTS}
    faster, goal, near = ">= 1x deepseek", "goal: >= 1x deepseek", ">= 0.85x deepseek"
    assert len(bars) == len(LATENTS) and len([name for name in bars if name.count(",") == 1 and "tokens" not in name]) == 14
    for heads in (128, 16):
        assert bars[f"latent {heads} heads, B=1 8k"] == [faster, "<= 20 us"]
        assert all(bars[f"latent {heads} heads, B={at}"] == [faster] for at in ("4 8k", "1 32k", "16 8k"))
        assert all(bars[f"latent {heads} heads, B={at}"][0] == goal for at in ("64 4k", "128 4k", "128 8k"))
    assert all(bars[f"latent 128 heads, B={at}"][1] == near for at in ("64 4k", "128 4k", "128 8k"))
    assert bars["latent 16 heads, B=128 8k"] == [goal, ">= 2.8 TB/s"]
    assert bars["latent tokens, B=16, 2048 of 32k"] == [">= 5 x ours, dense"]
    assert bars["latent tokens, 4096 queries, 2048 of 32k"] == [">= 400 TFLOP/s"]


def test_work_is_counted_as_flashmla_counts_it():
    """547 TFLOP/s in 534 us, and 2.78 TB/s in 434 us, as it was measured at B=128 8k."""
    many, few = BY_NAME["latent 128 heads, B=128 8k"], BY_NAME["latent 16 heads, B=128 8k"]
    assert (many.unit, few.unit) == ("TFLOP/s", "TB/s")
    assert many.flops / 534e-6 == pytest.approx(547e12, rel=0.01)
    assert few.live_bytes(torch.bfloat16) / 434e-6 == pytest.approx(2.78e12, rel=0.01)
    assert BY_NAME["latent 128 heads, B=16 8k, 2 queries"].pairs == 16 * (8191 + 8192)
    chosen = BY_NAME["latent tokens, 4096 queries, 2048 of 32k"]
    assert chosen.flops == 2 * 1088 * 4096 * 2048 * 128 and chosen.live_bytes(torch.bfloat16) == 4096 * 2048 * 1152
    assert rotation(BY_NAME["latent 128 heads, B=1 8k"], torch.bfloat16) == 17 and rotation(many, torch.bfloat16) == 1


def test_the_spec_and_the_sample_mean_what_the_case_says(measured):
    given, sample = measured
    case, out = given.case, exact(given)
    assert sample.error(out) < 1e-6
    assert sample.error(exact(given, torch.float32)) <= 2
    assert not sample.error(torch.full_like(out, torch.nan)) <= 2
    spec = AttentionSpec.parse(case.spec)
    seen = visible(spec, case.batch, 1, case.queries, case.keys, given.tables, [], [])[:, 0]
    if given.tokens is None:
        assert seen.sum() == case.pairs
    else:
        assert seen.expand(case.batch, case.queries, -1).gather(2, given.tokens).all()
        assert all(len(set(row)) == case.tokens for row in given.tokens.flatten(0, 1).tolist())


def test_more_keys_than_are_seen_are_told_from_rounding(measured):
    given, sample = measured
    if given.tokens is None and not given.case.live:
        shorter = LatentOperands(given.case, given.q, given.latent, given.rope, given.first - 9, None, given.pages)
        assert sample.error(exact(shorter)) > 2


def test_flashmla(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_mla", peer_modules.flash_mla())
    given, sample = measured
    ((call,),) = PEERS["deepseek"].bind([given])
    assert sample.error(call()) <= 2 and sample.error(call()) <= 2


def test_a_case_is_checked_timed_and_set_beside_ours_dense(measured):
    case = measured[0].case
    row = run_kernels(case, ["deepseek"], Settings("cpu", torch.float32, repeats=1), lambda text: None)
    assert row.ours.us > 0 and 0 < row.ours.error <= 2 and row.readings["deepseek"].note == "absent"
    assert (row.dense_us is not None) == case.dense == (case.name == "latent tokens, B=16, 2048 of 32k")


def test_tokens_are_compared_with_ours_dense():
    case = BY_NAME["latent tokens, B=16, 2048 of 32k"]
    row = KernelRow(case, torch.bfloat16, {"flashmla": Reading(100)}, dense_us=490)
    assert row.bars()[0] == (Limit("x ours, dense", 5, least=True), 4.9, False)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case.shrunk() for case in LATENTS], ids=names)
def test_every_kernel_is_right_on_the_gpu(case):
    row = run_kernels(case, [], Settings("cuda", torch.bfloat16, repeats=2), lambda text: None)
    assert row.ours.note == "" and row.ours.how == "graph"
