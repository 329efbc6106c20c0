"""Prefill and decode that leave tiles out, under Triton's interpreter: what is kept is what the reference keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import reference
from mla_compiler.lowering.sparse import reference as sparse
from mla_compiler.lowering.sparse.config import unserved
from mla_compiler.lowering.sparse.listing import BOX, CHUNK
from mla_compiler.sparsity import Sparsity

from .attentions import CASES
from .cases import DECODE, PREFILL, Case, Operands, errors, operands, run

KEEP_ALL = "error_budget=1e-30"


def under(case: Case, policy: str, **changes) -> Case:
    return case.but(spec=f"{case.spec}; sparsity: {policy}", **changes)


@pytest.mark.parametrize("name", CASES)
def test_keep_all_is_dense(interpreted, name):
    for changes in ({}, {"queries": 1, "choice": DECODE}):
        error, formula = interpreted(errors, under(CASES[name], KEEP_ALL, **changes))
        assert error <= 2 * formula, f"{error} from the truth, the formula is {formula}"


def local(case: Case, device: str = "cpu") -> Operands:
    """Operands whose weights fall with the distance: q and k turn with the position."""
    given = operands(case, device)
    angle = torch.arange(max(case.keys, case.queries), device=device) * 0.05
    turn = torch.stack([angle.cos(), angle.sin()], -1).repeat(1, case.head_dim // 2) * 1.7
    given.k.copy_(turn[:case.keys] + 0.05 * given.k)
    given.q.copy_((turn[:case.queries] if case.queries > 1 else turn[-1:]) + 0.05 * given.q)
    return given


def on_cpu(given: Operands) -> Operands:
    return Operands(given.q.cpu(), given.k.cpu(), given.v.cpu(), [table.cpu() for table in given.tables])


def found_and_wanted(case: Case, device: str = "cpu") -> tuple[float, float, float]:
    """(error of the kernel, of the formula, share of tiles left out): from the float64 softmax over what the policy keeps."""
    given, spec = local(case, device), AttentionSpec.parse(case.spec)
    found, given = run(case, device, given).cpu(), on_cpu(given)
    assert case.choice is not None
    rows, width = case.choice.block_m, case.choice.block_n
    wanted, working = torch.empty_like(found, dtype=torch.float64), torch.empty_like(found)
    gone = total = 0
    for dtype, out in ((torch.float64, wanted), (case.dtype, working)):
        a, _ = reference.logits(given.q.double(), given.k.double(), given.tables, case.sizes, case.scalars, spec)
        for b, h, first, heads in tiles_of(case, spec, rows):
            hull = 0 if spec.tile is None and spec.lo == 0 else None
            kept = decided(spec.sparsity, a[b, h, first:first + rows].flatten(0, 1), width, hull)
            gone, total = gone + (~kept).sum().item(), total + len(kept)
            for head in heads:
                part = sparse.attend(a[b, head, first:first + rows].to(dtype), kept, given.v[b, head // spec.group].to(dtype),
                                     width)
                out[b, head, first:first + rows] = part
    error, formula = ((x.double() - wanted).abs().max().item() for x in (found, working))
    return error, max(formula, wanted.abs().max().item() * torch.finfo(case.dtype).eps), gone / total


def tiles_of(case: Case, spec: AttentionSpec, rows: int):
    """(b, heads of the tile's rows, first row, the same heads): a head at a time in prefill, a group in decode."""
    together = spec.group if case.choice.family == "decode" else 1
    for b in range(case.batch):
        for head in range(0, case.heads, together):
            heads = list(range(head, head + together))
            for first in range(0, case.queries, case.queries if case.choice.family == "decode" else rows):
                yield b, heads, first, heads


def decided(policy: Sparsity, a: torch.Tensor, width: int, hull: int | None) -> torch.Tensor:
    """What is kept, by a margin: rounding decides nothing in these cases."""
    kept = sparse.kept_by(policy, a, width, hull)
    for nearly in (0.97, 1.03):
        changed = Sparsity(policy.policy, policy.measure, min(1.0, policy.value * nearly))
        assert torch.equal(kept, sparse.kept_by(changed, a, width, hull))
    return kept


LOCAL = {
    "causal": Case("score: 0.5*s; hi: i + 1; group: 2", queries=150, keys=150),
    "full": Case("score: 0.5*s", queries=150, keys=150),
    "window": Case("score: 0.5*s; lo: max(0, i - 90); hi: i + 1", queries=150, keys=150),
    "padding": Case("score: 0.5*s; hi: i + 1; residue: M0[b, j]", ("padding",), batch=2, queries=150, keys=150),
    "documents, bounded": CASES["documents, bounded"].but(spec=CASES["documents, bounded"].spec.replace("0.25", "0.5")),
}


@pytest.mark.parametrize("policy", ["threshold=0.02", "error_budget=0.03"])
@pytest.mark.parametrize("name", LOCAL)
def test_prefill_keeps_what_the_reference_keeps(interpreted, name, policy):
    error, formula, gone = interpreted(found_and_wanted, under(LOCAL[name], policy))
    assert gone > 0.05
    assert error <= 2 * formula, f"{error} from the softmax over what is kept, the formula is {formula}"


@pytest.mark.parametrize("policy", ["threshold=0.02", "error_budget=0.03"])
@pytest.mark.parametrize("name", ["full", "causal"])
def test_decode_keeps_what_the_reference_keeps(interpreted, name, policy):
    case = LOCAL[name].but(queries=1, spec=LOCAL[name].spec.replace("; hi: i + 1", ""), choice=DECODE)
    error, formula, gone = interpreted(found_and_wanted, under(case, policy))
    assert gone > 0.2
    assert error <= 2 * formula, f"{error} from the softmax over what is kept, the formula is {formula}"


def test_parts_have_a_budget_each(interpreted):
    """However the keys are divided, no row loses more than the budget."""
    case = LOCAL["full"].but(queries=1, heads=2)
    budget = 0.05
    shares = [{"kv_splits": parts} for parts in (1, 2, 5)] + [{"programs": 3}]
    for share in shares:
        error, bound = interpreted(lost, under(case, f"error_budget={budget}", choice=replace(DECODE, **share)))
        assert error <= bound


def lost(case: Case) -> tuple[float, float]:
    """(the difference from the dense truth, what the budget allows it plus the rounding of the result)."""
    given = local(case)
    found = run(case, given=given)
    dense = reference.attend(given.q, given.k, given.v, given.tables, case.sizes, case.scalars, case.spec)
    most = given.v.abs().max().item()
    budget = AttentionSpec.parse(case.spec).sparsity.value
    return (found.double() - dense).abs().max().item(), 2 * budget * most + 4 * torch.finfo(case.dtype).eps * most


def test_the_limit_is_an_argument():
    """One kernel serves every threshold: a calibration compiles nothing anew."""
    from mla_compiler.lowering import codegen

    one, other = (codegen.source(AttentionSpec.parse(f"score: 0.5*s; sparsity: threshold={x}"), "prefill") for x in (0.1, 0.2))
    assert one == other and "least" in one


def lists_found_and_wanted(case: Case, device: str = "cpu") -> tuple[float, float, float]:
    """(error, of the formula, share of tiles left out) as above, of tiles chosen by the boxes of their keys."""
    given, spec = local(case, device), AttentionSpec.parse(case.spec)
    found, given = run(case, device, given).cpu(), on_cpu(given)
    assert case.choice is not None
    rows, width = case.choice.block_m, case.choice.block_n
    a, _ = reference.logits(given.q.double(), given.k.double(), given.tables, case.sizes, case.scalars, spec)
    wanted, working = torch.empty_like(found, dtype=torch.float64), torch.empty_like(found)
    gone = total = 0
    for b, h, first, (head,) in tiles_of(case, spec, rows):
        own = a[b, h[0], first:first + rows]
        kept = listed(given.q[b, head, first:first + rows], given.k[b, head // spec.group], own, spec, width)
        gone, total = gone + (~kept).sum().item(), total + len(kept)
        for dtype, out in ((torch.float64, wanted), (case.dtype, working)):
            v = given.v[b, head // spec.group].to(dtype)
            out[b, head, first:first + rows] = sparse.attend(own.to(dtype), kept, v, width)
    error, formula = ((x.double() - wanted).abs().max().item() for x in (found, working))
    return error, max(formula, wanted.abs().max().item() * torch.finfo(case.dtype).eps), gone / total


def listed(q: torch.Tensor, k: torch.Tensor, a: torch.Tensor, spec: AttentionSpec, width: int) -> torch.Tensor:
    """bool [tiles]: what the reference keeps of the tiles that anything is seen of; rounding decides nothing."""
    assert spec.score == AttentionSpec.parse("score: 0.5*s").score
    tiles = sparse.in_tiles(a, width).isfinite()
    some, whole = tiles.any(-1).any(0), tiles.all(-1).all(0)
    w = 0.5 * sparse.promises(q.double(), k.double(), BOX, 0.5)
    w = F.pad(w, (0, tiles.shape[1] * width // BOX - w.shape[1]), value=-torch.inf)
    w = w.masked_fill(~tiles.unflatten(2, (-1, BOX)).any(-1).flatten(1), -torch.inf)
    w = w.unflatten(1, (-1, width // BOX)).logsumexp(-1)
    live = some.nonzero()[:, 0]
    part = slice(int(live[0]), int(live[-1]) + 1)
    kept, share = torch.zeros_like(some), spec.sparsity.value
    kept[part], less, more = (sparse.pages_share(w[:, part], share * x, CHUNK) for x in (1, 0.97, 1.03))
    assert torch.equal(less, more)
    return (kept | ~whole) & some


@pytest.mark.parametrize("name", [name for name in LOCAL if name != "padding"])
def test_pages_are_those_of_the_reference(interpreted, name):
    case = LOCAL[name].but(choice=replace(PREFILL, block_n=32))
    error, formula, gone = interpreted(lists_found_and_wanted, under(case, "pages.share=0.03"))
    assert gone > 0.05
    assert error <= 2 * formula, f"{error} from the softmax over what is kept, the formula is {formula}"


@pytest.mark.parametrize("name", CASES)
def test_pages_of_the_smallest_share_are_all(interpreted, name):
    case = under(CASES[name], "pages.share=1e-30")
    if not unserved(AttentionSpec.parse(case.spec)):
        error, formula = interpreted(errors, case)
        assert error <= 2 * formula, f"{error} from the truth, the formula is {formula}"


def test_pages_of_few_queries_are_all(interpreted):
    error, formula = interpreted(errors, under(CASES["full"], "pages.share=0.1").but(queries=1, choice=DECODE))
    assert error <= 2 * formula
