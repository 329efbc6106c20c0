"""The Hopper kernel that leaves tiles out, on the CPU: what is attended is what was listed, and what the reference keeps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu, reference
from mla_compiler.lowering.hopper.config import configure
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.sparse import reference as sparse

from .cases import Case, operands
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
