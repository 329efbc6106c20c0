"""The Hopper kernel that leaves tiles out, on the CPU: what is attended is what was listed, and what the reference keeps."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen, gpu, reference
from mla_compiler.lowering.compile import compile_kernel
from mla_compiler.lowering.hopper.config import configure, serves
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.sparse import reference as sparse

from .cases import Case, operands
from .gluon import barriers
from .gluon.hopper import launcher

H100 = MACHINES["sm_90"]
ROWS = 128
HULLS = {
    "causal": Case("score: 0.25*s; hi: i + 1; group: 2", queries=500, keys=500),
    "aligned to the end": Case("score: 0.25*s; hi: i + n0 + 1", sizes=(300,), queries=200, keys=500),
    "more queries than keys": Case("score: 0.25*s; hi: i + 1", queries=400, keys=260),
    "full": Case("score: 0.25*s", queries=130, keys=700, batch=2),
    "window": Case("score: 0.25*s; lo: max(0, i - 300); hi: i + 1; group: 2", queries=700, keys=700),
    "sinks, softcap": Case("score: 2.0*tanh(0.25*s); hi: i + 1; sink: F0[h]", ("sinks",), queries=300, keys=300),
}


@pytest.fixture
def launch(monkeypatch):
    return launcher(monkeypatch)


def choice_of(spec, case, **changes):
    return dataclasses.replace(configure(spec, case.head_dim, case.value_dim, H100), **changes)


def logits(case, spec, given, dtype=torch.float64):
    """a [B, H, T, S], -inf where not visible, and the sink; products in dtype."""
    return reference.logits(given.q.to(dtype), given.k.to(dtype), given.tables, case.sizes, case.scalars, spec)


def row_tiles(case, rows=ROWS):
    """(b, h, first row) of every tile of rows."""
    return [(b, h, first) for b in range(case.batch) for h in range(case.heads) for first in range(0, case.queries, rows)]


def some_listed(a, case, width, share):
    """A list of tiles for every program, at random, and what is kept with them."""
    tiles, capacity = -(-case.queries // ROWS), -(-case.keys // width)
    listed = torch.full((case.batch * case.heads * tiles, capacity), -9999, dtype=torch.int16)
    counts = torch.zeros(len(listed), dtype=torch.int32)
    kept = {}
    for b, h, first in row_tiles(case):
        seen = sparse.in_tiles(a[b, h, first:first + ROWS], width).isfinite()
        some = seen.any(-1).any(0)
        whole = seen.all(-1).all(0)
        whole[some.int().argmax()] = False
        chosen = whole & (torch.rand(len(whole)) < share)
        program = (b * case.heads + h) * tiles + tiles - 1 - first // ROWS
        numbers = chosen.nonzero()[:, 0].flip(0)
        listed[program, :len(numbers)], counts[program] = numbers.short(), len(numbers)
        kept[b, h, first] = chosen | (some & ~whole)
    return listed, counts, kept


def attended(listed, counts, a, case, width):
    """What the lists of the programs come to, with the first tile and those at an edge."""
    kept, tiles = {}, -(-case.queries // ROWS)
    for b, h, first in row_tiles(case):
        seen = sparse.in_tiles(a[b, h, first:first + ROWS], width).isfinite()
        kept[b, h, first] = seen.any(-1).any(0) & ~seen.all(-1).all(0)
        kept[b, h, first][seen.any(-1).any(0).int().argmax()] = True
        program = (b * case.heads + h) * tiles + tiles - 1 - first // ROWS
        kept[b, h, first][listed[program, :counts[program]].long()] = True
    return kept


def compare(out, kept, case, spec, given, width, rows=ROWS):
    """The error is at most twice that of the same softmax in the working dtype, both from float64."""
    hidden = torch.ones(case.batch, case.heads, case.queries, case.keys, dtype=torch.bool)
    for b, h, first in row_tiles(case, rows):
        hidden[b, h, first:first + rows] = ~kept[b, h, first].repeat_interleave(width)[:case.keys]
    truth, formula = (softmax(hidden, case, spec, given, dtype) for dtype in (torch.float64, case.dtype))
    rounding = truth.abs().max() * torch.finfo(case.dtype).eps
    error, allowed = (out - truth).abs().max(), torch.maximum((formula - truth).abs().max(), rounding)
    assert error <= 2 * allowed, (error, allowed)
    return hidden


def softmax(hidden, case, spec, given, dtype):
    a, sink = logits(case, spec, given, dtype)
    return reference.weighted(a.masked_fill(hidden, -torch.inf), sink, given.v.to(dtype).repeat_interleave(spec.group, 1))


@pytest.mark.parametrize("schedule", [(3, True), (1, False)], ids=str)
@pytest.mark.parametrize("block_n", [128, 64])
@pytest.mark.parametrize("name", HULLS)
def test_listed_tiles_are_what_is_attended(name, block_n, schedule, launch):
    torch.manual_seed(1)
    case = HULLS[name].but(head_dim=32, value_dim=32, dtype=torch.bfloat16)
    spec, given = AttentionSpec.parse(case.spec + "; sparsity: lsh=0.3"), operands(case)
    a, _ = logits(case, spec, given)
    for share in (0.0, 0.4, 1.0):
        tiles, counts, kept = some_listed(a, case, block_n, share)
        out = torch.full_like(given.q, torch.nan)
        arguments = [*gpu.operands(spec, given.tables, list(case.sizes), []), tiles, counts, tiles.shape[1]]
        launch(spec, choice_of(spec, case, block_n=block_n), given.q, given.k, given.v, arguments, out, *schedule, listed=tiles)
        hidden = compare(out, kept, case, spec, given, block_n)
        assert share == 1 or (hidden & a.isfinite()).any()


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
    (r"mbarrier.wait\(v_bars\[0\].index\(v_at\), v_phase\)", "pass", AssertionError),         # values are not awaited
    (r"mbarrier.arrive\(v_bars\[1\].index\(v_at\), pred=use > 0\)", "pass", barriers.Stuck),
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


def steps(sass):
    """The straight pieces of code that multiply and take exponentials, the shortest first: of tiles that are seen whole."""
    pieces = [piece for piece in re.split(r"\n\.L_\w+:", sass) if "HGMMA" in piece and "MUFU.EX2" in piece]
    return sorted(pieces, key=lambda piece: piece.count("\n"))


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_a_step_that_may_leave_its_tile_out_spills_nothing(dims):
    kernel, choice = compiled("threshold=0.05", dims)
    assert kernel.shared <= H100.shared_memory and kernel.registers * 3 * 128 <= 65536
    assert "wgmma.wait_group.sync.aligned 1;" in kernel.ptx and "cp.async.bulk.tensor.4d" in kernel.ptx
    pieces = steps(kernel.sass)
    assert len(pieces) == 12                            # two warpgroups, three kinds of tiles, with values and without
    for piece in pieces:
        assert piece.count("WARPGROUP.DEPBAR") == 1 and "STL" not in piece and piece.count("LDL") <= (sum(dims) > 256)
        lines = piece.splitlines()
        last = max(at for at, line in enumerate(lines) if re.search(r"@!?U?P\d+ BRA", line))
        before, after = ("\n".join(part).count("MUFU.EX2") for part in (lines[:last], lines[last:]))
        assert before <= 6 and after >= choice.block_n // 2         # a branch goes round the exponentials


@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (256, 256)], ids=str)
def test_the_loader_knows_where_each_tile_lies(dims):
    """All but the column of a tile that TMA is asked for depend on the item, wherever the loader asks."""
    ptx = compiled("threshold=0.05", dims)[0].ptx
    given = re.findall(r"^\t(?:@\S+ )?[a-z]\S+ \t(%r\d+), (.*);", ptx, re.M)                   # a number, or an expression
    constants = {name for name, value in given if value.isdigit()} - {name for name, value in given if not value.isdigit()}
    places = re.findall(r"cp.async.bulk.tensor.4d.shared\S+ \[%r\d+\], \[%rd\d+, \{(.*?)\}\]", ptx)
    assert len(places) >= 6 and not [place for place in places if constants & set(place.split(", ")[1:])]


@pytest.mark.parametrize("hull", ["hi: i + 1", "lo: max(0, i - 1000); hi: i + 1"])
@pytest.mark.parametrize("policy", ["lsh=0.25", "pages.share=0.02+threshold=0.1", "error_budget=0.01"])
def test_whole_tiles_of_every_policy_spill_nothing(policy, hull):
    kernel, _ = compiled(policy, hull=hull)
    whole = 2 if policy.startswith("lsh") else 4
    assert all("STL" not in piece and "LDL" not in piece for piece in steps(kernel.sass)[:whole])


@pytest.mark.parametrize("policy, hull", [
    ("threshold=0.1", "hi: i + 1; residue: M0[b, j]"), ("threshold=0.1; site: here", "hi: i")])
def test_what_is_left_to_the_plain_kernel(policy, hull):
    """A mask that is asked for each element, and an account."""
    spec = AttentionSpec.parse(f"score: 0.125*s; {hull}; group: 4; sparsity: {policy}")
    assert not serves(spec, 128, 128, torch.bfloat16, H100)
    served = AttentionSpec.parse("score: 0.125*s; hi: i; group: 4; sparsity: threshold=0.1")
    assert serves(served, 128, 128, torch.bfloat16, H100)
