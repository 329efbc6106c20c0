"""The Hopper kernel under a threshold or a budget: what each warpgroup keeps, who waits for whom, and its machine code."""

from __future__ import annotations

import re

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen, gpu, reference
from mla_compiler.lowering.compile import compile_kernel
from mla_compiler.lowering.hopper import launch as hopper
from mla_compiler.lowering.hopper.config import configure, serves
from mla_compiler.lowering.sparse import reference as sparse

from .cases import operands
from .gluon import barriers
from .gluon.hopper import launcher
from .test_hopper_sparse import H100, HULLS, ROWS, choice_of, compare, logits, row_tiles, some_listed


@pytest.fixture
def launch(monkeypatch):
    return launcher(monkeypatch)


def levelled(case):
    """Operands whose every other tile of keys lies 2.5 lower in logits of 0.5 q.k: what is left out has weight in every row."""
    given = operands(case)
    for x in (given.q, given.k):
        x.mul_(0.1)
    given.q[..., 0] = 2.0
    given.k[..., 0] = -2.5 * (torch.arange(case.keys) // ROWS % 2)
    return given


def decided(policy, a, case, width, among):
    """What the reference keeps of the tiles `among` of each item, met inward, for the rows of each warpgroup; by a margin."""
    kept = {}
    rule = sparse.error_budget if policy.policy == "error_budget" else sparse.threshold
    ratio = policy.value if policy.policy == "error_budget" else policy.ratio
    for b, h, first in row_tiles(case, 64):
        tiles = among[b, h, first // ROWS * ROWS].nonzero()[:, 0].tolist()
        order = [tiles[at] for at in sparse.inward(len(tiles))] if tiles else []
        own = sparse.in_tiles(a[b, h, first:first + 64], width)[:, order].flatten(1)
        kept[b, h, first] = torch.zeros(-(-case.keys // width), dtype=torch.bool)
        if tiles:
            found = [rule(own, width, min(1.0, ratio * nearly), range(len(order))) for nearly in (1, 0.998, 1.002)]
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
            kept[b, h, first][torch.tensor(order)[found[0]]] = True
    return kept


def threshold_case(name, policy):
    case = HULLS[name].but(head_dim=32, value_dim=32, dtype=torch.bfloat16)
    case = case.but(spec=case.spec.replace("0.25", "0.5") + f"; sparsity: {policy}")
    return case, AttentionSpec.parse(case.spec), levelled(case)


SCHEDULES = [(3, True, 1), (2, False, 0)]


def share_of(gone, a):
    """Of a row's softmax, the most that is left out."""
    return float(torch.nan_to_num(a.softmax(-1)).masked_fill(~gone, 0).sum(-1).max())


@pytest.mark.parametrize("blocks, late, ahead", SCHEDULES)
@pytest.mark.parametrize("policy", ["threshold=0.25", "error_budget=1.0", "lsh=0.5+threshold=0.25"])
@pytest.mark.parametrize("name", HULLS)
def test_a_threshold_keeps_what_the_reference_keeps(name, policy, blocks, late, ahead, launch):
    torch.manual_seed(1)
    case, spec, given = threshold_case(name, policy)
    a, _ = logits(case, spec, given)
    choice = choice_of(spec, case, ahead=ahead)
    tiles, counts, among = some_listed(a, case, choice.block_n, 0.6 if spec.sparsity.selects else 1.0)
    lists = [tiles, counts, tiles.shape[1]] if spec.sparsity.selects else []
    kept = decided(spec.sparsity, a, case, choice.block_n, among)
    out = torch.full_like(given.q, torch.nan)
    arguments = [*gpu.operands(spec, given.tables, list(case.sizes), []), *lists]
    launch(spec, choice, given.q, given.k, given.v, arguments, out, blocks, late, listed=tiles if lists else None)
    hidden = compare(out, kept, case, spec, given, choice.block_n, 64)
    gone = hidden & a.isfinite()
    assert spec.sparsity.policy == "error_budget" or share_of(gone, a) > 0.05


@pytest.mark.parametrize("name", HULLS)
def test_the_least_threshold_is_dense(name, launch):
    case = HULLS[name].but(head_dim=32, value_dim=32, dtype=torch.bfloat16)
    spec, given = AttentionSpec.parse(case.spec + "; sparsity: threshold=1e-30"), operands(case)
    out = torch.full_like(given.q, torch.nan)
    launch(spec, choice_of(spec, case), given.q, given.k, given.v, gpu.operands(spec, given.tables, list(case.sizes), []), out)
    every = torch.ones(-(-case.keys // ROWS), dtype=torch.bool)
    compare(out, dict.fromkeys(row_tiles(case), every), case, spec, given, ROWS)


def test_what_no_row_sees_and_what_is_left_out_may_be_nan(launch):
    """Of values that are left out none is read: the second tile's are NaN, and no row needs it."""
    q, k, v = (torch.randn(1, 2, length, 32, dtype=torch.bfloat16) for length in (200, 900, 900))
    k[:, :, 384:] *= 0.0
    k[:, :, 331:384] = 0.0
    q[..., 0], k[..., 0] = 8.0, torch.where(torch.arange(900) // 128 == 4, -8.0, 1.0).bfloat16()
    spec = AttentionSpec.parse("score: 1.0*s; lo: n0; hi: n1; sparsity: threshold=0.01")
    seen = torch.arange(900)[331:777]
    used = seen[seen // 128 != 4]
    inside = [q, k[:, :, used].clone(), v[:, :, used].clone(), [], [], [], "score: 1.0*s"]
    for x in (k, v):
        x[:, :, :331], x[:, :, 777:] = torch.nan, torch.nan
    v[:, :, 512:640] = torch.nan
    out = torch.full_like(q, torch.nan)
    choice = configure(spec, 32, 32, H100)
    launch(spec, choice, q, k, v, gpu.operands(spec, [], [331, 777], []), out)
    truth = reference.attend(*inside)
    assert (out - truth).abs().max() <= 2 * (reference.attend(*inside, dtype=q.dtype) - truth).abs().max()


@pytest.mark.parametrize("wrong, right, found", [
    (r"flags.index\(at\).store\(.*\)\n", "pass\n", AssertionError),                              # nobody is told
    (r"mbarrier.arrive\(told.index\(at\)\)", "pass", barriers.Stuck),
    (r"(wait\(empty.index\(at\), phase \^ 1\)\n +)mbarrier.arrive\(full.index\(at\)\)", r"\1pass", barriers.Stuck),
    (r"mbarrier.wait\(bars\[2\]\[0\].index\(v_at\), v_phase\)", "pass", AssertionError),      # values are not awaited
    (r"mbarrier.arrive\(bars\[2\]\[1\].index\(v_at\)\)", "pass", barriers.Stuck),
], ids=["flags", "told", "slot of values left out", "values", "slot of v"])
def test_a_broken_protocol_is_found(wrong, right, found, launch, monkeypatch):
    monkeypatch.setattr(barriers, "SECONDS", 0.5)
    case, spec, given = threshold_case("full", "threshold=0.25")
    text, changes = re.subn(wrong, right, codegen.source(spec, "hopper"))
    assert changes
    a, _ = logits(case, spec, given)
    _, _, among = some_listed(a, case, 128, 1.0)
    kept = decided(spec.sparsity, a, case, 128, among)
    with pytest.raises(found):
        for late in (True, False):
            out = torch.full_like(given.q, torch.nan)
            arguments = gpu.operands(spec, [], [], [])
            launch(spec, choice_of(spec, case), given.q, given.k, given.v, arguments, out, late=late, text=text)
            compare(out, kept, case, spec, given, 128, 64)


@pytest.mark.parametrize("late", [True, False])
def test_items_of_one_tile_that_is_made_clean(launch, late, monkeypatch):
    """One tile of queries has room, and the values of an item's only tile are awaited before the next item's queries."""
    monkeypatch.setattr(hopper, "query_stages", lambda *_: 1)
    monkeypatch.setattr(hopper, "_fixed", hopper._fixed.__wrapped__)
    monkeypatch.setattr(barriers, "SECONDS", 5)
    q, k, v = (torch.randn(1, 6, length, 32, dtype=torch.bfloat16) for length in (100, 300, 300))
    for x in (k, v):
        x[:, :, 100:] = torch.nan
    spec = AttentionSpec.parse("score: 0.2*s; hi: i + 1; sparsity: threshold=1e-30")
    out = torch.full_like(q, torch.nan)
    launch(spec, configure(spec, 32, 32, H100), q, k, v, gpu.operands(spec, [], [], []), out, 1, late)
    seen = [q, k[:, :, :100].clone(), v[:, :, :100].clone(), [], [], [], "score: 0.2*s; hi: i + 1"]
    truth = reference.attend(*seen)
    assert (out - truth).abs().max() <= 2 * (reference.attend(*seen, dtype=q.dtype) - truth).abs().max()


def test_tiles_are_met_inward(launch):
    """All but the first tile weigh 0.3 of it: the last is met next and kept, and then none of the others is 0.25 of both."""
    case = HULLS["full"].but(spec="score: 0.5*s; sparsity: threshold=0.25", head_dim=32, value_dim=32, dtype=torch.bfloat16)
    spec, given = AttentionSpec.parse(case.spec), operands(case)
    for x in (given.q, given.k):
        x.mul_(0.03)
    given.q[..., 0], given.k[..., 0] = 2.0, torch.where(torch.arange(case.keys) < ROWS, 0.0, -1.2).bfloat16()
    a, _ = logits(case, spec, given)
    kept = decided(spec.sparsity, a, case, ROWS, some_listed(a, case, ROWS, 1.0)[2])
    assert all(tiles.tolist() == [True, False, False, False, False, True] for tiles in kept.values())
    out = torch.full_like(given.q, torch.nan)
    launch(spec, choice_of(spec, case), given.q, given.k, given.v, gpu.operands(spec, [], [], []), out)
    compare(out, kept, case, spec, given, ROWS, 64)


# ---------------------------------------------------------------------------------------------------------- machine code


DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (72, 72), (16, 16)]


def compiled(policy, dims=(128, 128), hull="hi: i + 1"):
    spec = AttentionSpec.parse(f"score: 0.125*s; {hull}; group: 4; sparsity: {policy}")
    kernel = compile_kernel(spec, configure(spec, *dims, H100), *dims, torch.bfloat16, "sm_90")
    if not kernel.sass:
        pytest.skip("no disassembler")
    return kernel, configure(spec, *dims, H100)


def pieces(sass):
    """The straight pieces of code that multiply, and those that take the exponentials of a tile."""
    every = re.split(r"\n\.L_\w+:", sass)
    return [piece for piece in every if "HGMMA" in piece], [piece for piece in every if piece.count("MUFU.EX2") > 8]


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_a_step_that_may_leave_its_tile_out_spills_nothing(dims):
    kernel, choice = compiled("threshold=0.05", dims)
    assert kernel.shared <= H100.shared_memory and kernel.registers * 3 * 128 <= 65536
    assert "wgmma.wait_group.sync.aligned 1;" in kernel.ptx and "cp.async.bulk.tensor.4d" in kernel.ptx
    multiply, weigh = pieces(kernel.sass)
    # Of two warpgroups: the first tile; at an edge and inside scores, values, scores alone; the last values.
    assert len(multiply) == 16 and len(weigh) == 6
    for piece in multiply:                              # products are begun together, exponentials are not among them
        assert piece.count("WARPGROUP.DEPBAR") <= 2 and piece.count("MUFU.EX2") <= 6
    for piece in weigh:                                 # they have a piece of their own, which a tile left out does not enter
        assert piece.count("MUFU.EX2") >= choice.block_n // 2
    crowded = 3 * (sum(dims) > 256)                     # beside 128 sums a thread a few numbers go to memory and back
    for piece in multiply + weigh:                      # what an item's first tile needs may be put away before the roles part
        at_an_edge = piece.count("SHF.R.S32.HI") > choice.block_n // 4
        assert len(re.findall(r"\bSTL\b", piece)) <= crowded and len(re.findall(r"\bLDL\b", piece)) <= crowded + 3 * at_an_edge


@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (256, 256)], ids=str)
def test_the_loader_knows_where_each_tile_lies(dims):
    """All but the column of a tile that TMA is asked for depend on the item, wherever the loader asks."""
    ptx = compiled("threshold=0.05", dims)[0].ptx
    given = re.findall(r"^\t(?:@\S+ )?[a-z]\S+ \t(%r\d+), (.*);", ptx, re.M)                   # a number, or an expression
    constants = {name for name, value in given if value.isdigit()} - {name for name, value in given if not value.isdigit()}
    places = re.findall(r"cp.async.bulk.tensor.4d.shared\S+ \[%r\d+\], \[%rd\d+, \{(.*?)\}\]", ptx)
    assert len(places) >= 3 and not [place for place in places if constants & set(place.split(", ")[1:])]


@pytest.mark.parametrize("hull", ["hi: i + 1", "lo: max(0, i - 1000); hi: i + 1"])
@pytest.mark.parametrize("policy", ["lsh=0.25", "pages.share=0.02+threshold=0.1", "error_budget=0.01"])
def test_whole_tiles_of_every_policy_spill_nothing(policy, hull):
    kernel, _ = compiled(policy, hull=hull)
    multiply, _ = pieces(kernel.sass)
    whole = sorted(multiply, key=len)[:4]
    assert all("STL" not in piece and "LDL" not in piece for piece in whole)


@pytest.mark.parametrize("policy, hull", [
    ("threshold=0.1", "hi: i + 1; residue: M0[b, j]"), ("threshold=0.1; site: here", "hi: i")])
def test_what_is_left_to_the_plain_kernel(policy, hull):
    """A mask that is asked for each element, and an account."""
    spec = AttentionSpec.parse(f"score: 0.125*s; {hull}; group: 4; sparsity: {policy}")
    assert not serves(spec, 128, 128, torch.bfloat16, H100)
    served = AttentionSpec.parse("score: 0.125*s; hi: i; group: 4; sparsity: threshold=0.1")
    assert serves(served, 128, 128, torch.bfloat16, H100)
