"""The Hopper kernel on the CPU: its roles as threads, its barriers real, its numbers torch's. See gluon/run.py."""

import dataclasses
import re

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen, gpu, reference
from mla_compiler.lowering.bounds import bounds
from mla_compiler.lowering.hopper.config import configure, serves
from mla_compiler.lowering.machine import MACHINES

from .attentions import CASES
from .cases import operands
from .gluon import barriers
from .gluon.hopper import launcher

H100 = MACHINES["sm_90"]
SERVED = [name for name, case in CASES.items() if serves(AttentionSpec.parse(case.spec), 64, 64, torch.bfloat16, H100)]
VARIANTS = [{"block_m": 128, "overlap": True}, {"block_m": 192}, {"block_n": 64, "stages": 3, "ping_pong": False}]


@pytest.fixture
def launch(monkeypatch):
    return launcher(monkeypatch)


def check(launch, case, blocks=3, late=True, **changes):
    """The error is at most twice that of the formula in the working dtype."""
    spec, given = AttentionSpec.parse(case.spec), operands(case)
    choice = dataclasses.replace(configure(spec, case.head_dim, case.value_dim, H100), **changes)
    out = torch.full((case.batch, case.queries, case.heads, case.value_dim), torch.nan, dtype=case.dtype).transpose(1, 2)
    arguments = gpu.operands(spec, given.tables, list(case.sizes), list(case.scalars))
    launch(spec, choice, given.q, given.k, given.v, arguments, out, blocks, late)
    rest = (given.tables, case.sizes, case.scalars, case.spec)
    truth = reference.attend(given.q, given.k, given.v, *rest)
    formula = reference.attend(given.q, given.k, given.v, *rest, dtype=case.dtype)
    rounding = truth.abs().max() * torch.finfo(case.dtype).eps
    assert (out - truth).abs().max() <= 2 * torch.maximum((formula - truth).abs().max(), rounding)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_attentions(name, variant, launch):
    case = CASES[name].but(head_dim=32, value_dim=32, dtype=torch.bfloat16)
    check(launch, case, **variant)
    check(launch, case.but(queries=300, keys=430), **variant)
    check(launch, case.but(queries=300, keys=430), late=False, **variant)


@pytest.mark.parametrize("dims", [(64, 64), (96, 96), (192, 128), (256, 256), (72, 72), (16, 16)], ids=str)
@pytest.mark.parametrize("schedule", [(1, True), (5, False)], ids=str)
@pytest.mark.parametrize("overlap", [False, True])
def test_head_dims(dims, schedule, overlap, launch):
    case = CASES["causal, aligned to the end"].but(sizes=(130,), queries=270, keys=400, heads=4)
    check(launch, case.but(head_dim=dims[0], value_dim=dims[1]), *schedule, overlap=overlap)


def test_maxima_that_move(launch):
    check(launch, CASES["causal"].but(spec="score: 3.0*s; hi: i + 1", queries=300, keys=300, dtype=torch.bfloat16))


@pytest.mark.parametrize("lengths", [[256] * 4, [300, 20, 1, 700, 64, 63], [64] * 9], ids=str)
@pytest.mark.parametrize("block_m", [128, 192])
def test_documents_of_any_length(lengths, block_m, launch):
    spec = AttentionSpec.parse(CASES["documents, bounded"].spec + "; group: 2")
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    q, k, v = (torch.randn(1, heads, sum(lengths), 32, dtype=torch.bfloat16) for heads in (2, 1, 1))
    out = torch.full_like(q, torch.nan)
    choice = dataclasses.replace(configure(spec, 32, 32, H100), block_m=block_m)
    tables = [document, bounds(document)]
    launch(spec, choice, q, k, v, gpu.operands(spec, tables, [], []), out, blocks=5)
    truth = reference.attend(q, k, v, tables, [], [], str(spec))
    formula = reference.attend(q, k, v, tables, [], [], str(spec), dtype=q.dtype)
    assert (out - truth).abs().max() <= 2 * (formula - truth).abs().max()


@pytest.mark.parametrize("block_m", [128, 192])
def test_what_no_row_sees_may_be_nan(block_m, launch):
    q, k, v = (torch.randn(1, 2, length, 32, dtype=torch.bfloat16) for length in (200, 900, 900))
    for x in (k, v):
        x[:, :, :331], x[:, :, 777:] = torch.nan, torch.nan
    spec = AttentionSpec.parse("score: 0.1*s; lo: n0; hi: n1")
    out = torch.full_like(q, torch.nan)
    choice = dataclasses.replace(configure(spec, 32, 32, H100), block_m=block_m)
    launch(spec, choice, q, k, v, gpu.operands(spec, [], [331, 777], []), out)
    inside = [q, *(x[:, :, 331:777] for x in (k, v)), [], [], [], "score: 0.1*s"]
    truth = reference.attend(*inside)
    assert (out - truth).abs().max() <= 2 * (reference.attend(*inside, dtype=q.dtype) - truth).abs().max()


@pytest.mark.parametrize("wrong, right, found", [
    (r"mbarrier.arrive\(k_bars\[1\].index\(k_at\)\)\n", "pass\n", barriers.Stuck),                  # a slot is never freed
    (r"mbarrier.wait\(v_bars\[0\].index\(v_at\), v_phase, pred=some\)", "pass", AssertionError), # values are not awaited
    (r"leave_turn\(wg, WARPGROUPS\)\n    return", "pass\n    return", barriers.Stuck),            # a turn is lost
    (r"mbarrier.arrive\(v_bars\[1\].index\(v_at\), pred=some\)", "pass", barriers.Stuck),
    (r"tma.store_wait\(0\) ", "pass ", AssertionError),                                        # results overwrite each other
    (r"gl.store\(counter, 0\)", "pass", AssertionError),                                        # the next launch would count on
], ids=["slot of k", "values", "turn", "slot of v", "results", "counter"])
def test_a_broken_protocol_is_found(wrong, right, found, launch, monkeypatch):
    monkeypatch.setattr(barriers, "SECONDS", 0.5)
    case = CASES["causal, aligned to the end"].but(sizes=(0,), queries=700, keys=700, head_dim=32, value_dim=32)
    spec, given = AttentionSpec.parse(case.spec), operands(case)
    text, changes = re.subn(wrong, right, codegen.source(spec, "hopper"))
    assert changes
    out = torch.zeros_like(given.q)
    choice = dataclasses.replace(configure(spec, 32, 32, H100), block_m=128)
    truth = reference.attend(given.q, given.k, given.v, [], [0], [], case.spec)
    with pytest.raises(found):
        for late in (True, False):
            launch(spec, choice, given.q, given.k, given.v, [0], out, late=late, text=text)
            assert torch.allclose(out.double(), truth, atol=1e-2)
