"""Tiles listed before the attention, under Triton's interpreter: scores, ranks, signatures, and what is attended."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu, reference
from mla_compiler.lowering.build import build
from mla_compiler.lowering.compile_beside import compile_listing
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.select import choose
from mla_compiler.lowering.sparse import listing
from mla_compiler.lowering.sparse import reference as sparse
from mla_compiler.lowering.sparse.config import unserved
from mla_compiler.sparsity import EXACTLY

from .attentions import CASES
from .cases import PREFILL, Case, errors, operands, run
from .test_sparse import LOCAL, local, on_cpu, tiles_of, under

POLICIES = ["pages=0.3", "pages.mass=0.6", "lsh=0.3", "lsh.mass=0.6"]
WIDE = replace(PREFILL, block_n=32)


def found_and_wanted(case: Case, device: str = "cpu") -> tuple[float, float, float]:
    """(error of the kernel, of the formula, share of tiles left out): from the float64 softmax over what is kept."""
    given, spec = local(case, device), AttentionSpec.parse(case.spec)
    found, given = run(case, device, given).cpu(), on_cpu(given)
    a, _ = reference.logits(given.q.double(), given.k.double(), given.tables, case.sizes, case.scalars, spec)
    wanted, working = torch.empty_like(found, dtype=torch.float64), torch.empty_like(found)
    assert case.choice is not None
    width, gone, total = case.choice.block_n, 0, 0
    for b, _, first, (head,) in tiles_of(case, spec, case.choice.block_m):
        own = a[b, head, first:first + case.choice.block_m]
        kept = kept_of(given.q[b, head, first:first + case.choice.block_m], given.k[b, head // spec.group], own, spec, width)
        gone, total = gone + (~kept).sum().item(), total + len(kept)
        for dtype, out in ((torch.float64, wanted), (case.dtype, working)):
            v = given.v[b, head // spec.group].to(dtype)
            out[b, head, first:first + case.choice.block_m] = sparse.attend(own.to(dtype), kept, v, width)
    error, formula = ((x.double() - wanted).abs().max().item() for x in (found, working))
    return error, max(formula, wanted.abs().max().item() * torch.finfo(case.dtype).eps), gone / total


def kept_of(q: torch.Tensor, k: torch.Tensor, a: torch.Tensor, spec: AttentionSpec, width: int) -> torch.Tensor:
    """bool [tiles]: what the reference keeps of the tiles that anything is seen of."""
    q, k = q.double(), k.double()
    tiles = sparse.in_tiles(a, width).isfinite()
    some, whole = tiles.any(-1).any(0), tiles.all(-1).all(0)
    if spec.sparsity.policy == "lsh":
        w = sparse.matches(q, k, k.mean(0), listing.BOX, listing.planes(k.shape[1], k.device).double())
        tiles = F.pad(tiles, (0, 0, 0, 0, 0, -len(tiles) % listing.BOX)).unflatten(0, (-1, listing.BOX)).any(1)
    else:
        w = sparse.promises(q, k, listing.BOX, 0.5)
    w = F.pad(0.5 * w, (0, tiles.shape[1] * width // listing.BOX - w.shape[1]), value=-torch.inf)
    w = w.masked_fill(~tiles.unflatten(2, (-1, listing.BOX)).any(-1).flatten(1), -torch.inf)
    w = w.unflatten(1, (-1, width // listing.BOX)).logsumexp(-1)
    candidates = whole.clone()
    candidates[some.nonzero()[0]] = False
    repeated = w if spec.sparsity.policy == "lsh" else torch.cat([w, w[-1:].expand(PREFILL.block_m - len(w), -1)])
    mass = spec.sparsity.measure == "mass"
    kept = sparse.ranked(repeated, candidates, spec.sparsity.value, mass)
    assert all(torch.equal(kept, sparse.ranked(repeated, candidates, spec.sparsity.value * x, mass)) for x in (0.999, 1.001))
    return (kept | ~whole | ~candidates) & some


@pytest.mark.parametrize(("name", "policy"), [
    *(("causal", policy) for policy in POLICIES), ("full", "pages=0.3"), ("window", "lsh.mass=0.6"),
    ("documents, bounded", "pages.mass=0.6")])
def test_what_is_kept_is_what_the_reference_keeps(interpreted, name, policy):
    error, formula, gone = interpreted(found_and_wanted, under(LOCAL[name], policy, choice=WIDE, batch=1))
    assert gone > 0.05
    assert error <= 2 * formula, f"{error} from the softmax over what is kept, the formula is {formula}"


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_more_tiles_than_are_looked_at_together(interpreted, policy):
    case = LOCAL["full"].but(queries=40, keys=listing.CHUNK_SIGNED * WIDE.block_n + 200, heads=1)
    error, formula, gone = interpreted(found_and_wanted, under(case, policy, choice=WIDE))
    assert gone > 0.05
    assert error <= 2 * formula, f"{error} from the softmax over what is kept, the formula is {formula}"


def scores_and_truth(policy: str, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The kernel's scores, those of the formulas in float64, in float32: of 40 rows that see some of 2500 keys."""
    spec = AttentionSpec.parse(f"score: 0.5*s; hi: i + n0; group: 2; sparsity: {policy}")
    rng = torch.Generator().manual_seed(width)
    q, k = (torch.randn(1, heads, length, 24, generator=rng) for heads, length in ((2, 40), (1, 2500)))
    choice = replace(PREFILL, block_n=width)
    found = listing.scored(partial(gpu.kernel, replace(spec, sparsity=EXACTLY)), spec, choice, q, k, [2100], False)
    wanted, working = (torch.full(found.shape, -1.0, dtype=dtype) for dtype in (torch.float64, torch.float32))
    rows = choice.block_m
    for out in (wanted, working):
        for item in range(len(found)):
            tiles = -(-40 // rows)
            first = (tiles - 1 - item % tiles) * rows
            i = torch.arange(first, first + rows).clamp(max=39)
            j = torch.arange(found.shape[1] * width).view(1, -1, listing.BOX)
            seen = (j < i[:, None, None] + 2100) & (j < 2500)
            w = 0.5 * sparse.promises(q[0, item // tiles, i].to(out.dtype), k[0, 0].to(out.dtype), listing.BOX, 0.5)
            w = F.pad(w, (0, seen.shape[1] - w.shape[1])).masked_fill(~seen.any(-1), -torch.inf)
            w = w.unflatten(1, (-1, width // listing.BOX)).logsumexp(-1)
            whole = seen.flatten(1).unflatten(1, (-1, width)).all(-1).all(0)
            whole[0] = False
            out[item, whole] = shares(w, spec.sparsity.measure, width)[whole]
    return found, wanted, working


def shares(w: torch.Tensor, measure: str, width: int) -> torch.Tensor:
    """w [R, tiles] -> the scores of the tiles."""
    if measure != "share":
        share = w.softmax(-1)
        return share.mean(0) if measure == "mass" else share.amax(0)
    seen = w.isfinite().any(0).sum()
    share, y, chunk = torch.zeros_like(w), w[:, 0], min(listing.CHUNK, listing.CHUNK_KEYS // width)
    for stop in range(seen, 1, -chunk):
        some = slice(max(stop - chunk, 1), stop)
        y = torch.logaddexp(y, w[:, some].logsumexp(-1))
        share[:, some] = (w[:, some] - y[:, None]).exp()
    return share.amax(0)


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("policy", ["pages=0.3", "pages.mass=0.6", "pages.share=0.1"])
def test_scores_are_those_of_the_formula(interpreted, policy, width):
    found, wanted, working = interpreted(scores_and_truth, policy, width)
    assert torch.equal(found < 0, wanted < 0) and (wanted >= 0).sum() > 1000 // width
    least = wanted.clamp(min=1e-30)
    error, formula = ((x.double() - wanted).abs().div(least).max() for x in (found, working))
    assert error <= 2 * max(formula, torch.finfo(torch.float32).eps), f"{error}, the formula is {formula}"


ALL = ["pages=1", "pages.mass=1", "lsh=1", "lsh.mass=1"]
SERVED = [name for name in CASES if not unserved(AttentionSpec.parse(under(CASES[name], ALL[0]).spec))]


@pytest.mark.parametrize(("name", "policy"), [
    *((name, ALL[n % 4]) for n, name in enumerate(SERVED)), *(("window", policy) for policy in ALL)])
def test_keep_all_is_dense(interpreted, name, policy):
    error, formula = interpreted(errors, under(CASES[name], policy, batch=1))
    assert error <= 2 * formula, f"{error} from the truth, the formula is {formula}"


@pytest.mark.parametrize("name", sorted({*CASES} - {*SERVED}))
def test_what_no_kernel_serves_says_why(name):
    assert "under a mask" in (why := unserved(AttentionSpec.parse(under(CASES[name], "lsh=1").spec))) or "grow" in why


def ranks(seed: int, mass: bool, value: float) -> tuple[list[list[int]], list[list[int]]]:
    """(the kernel's lists, the reference's) of random scores, some of them equal, some tiles no candidates."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(5, 40, generator=rng).pow(9)
    if seed % 2:
        scores = scores.mul(16).round() / 16
    scores[torch.rand(5, 40, generator=rng) < 0.2] = -1
    tiles, counts = torch.full((5, 40), -9, dtype=torch.int16), torch.full((5,), -9, dtype=torch.int32)
    listing.ranked(scores, tiles, counts, value, "mass" if mass else "")
    wanted = []
    for row in scores:
        weight = row.clamp(min=0).double() if mass else (row >= 0).double()
        kept = torch.zeros_like(row, dtype=torch.bool)
        for cut in row[row >= 0].unique().flip(0):
            if value < 1 and weight[kept].sum() >= value * weight.sum():
                break
            kept = row >= cut
        wanted.append(kept.nonzero()[:, 0].flip(0).tolist())
    return [row[:count].tolist() for row, count in zip(tiles, counts, strict=True)], wanted


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("value", [1e-9, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_ranks(interpreted, seed, value, mass):
    found, wanted = interpreted(ranks, seed, mass, value)
    assert found == wanted


def both_signatures(case: Case) -> tuple[torch.Tensor, ...]:
    """Words and norms, the kernel's; signs and norms, the reference's."""
    given = operands(case)
    words, norms, *_ = listing.signatures_of(given.q, given.k)
    bits = (words[..., None] >> torch.arange(64)) & 1
    mean = given.q.double()
    mean = torch.cat([mean, mean[:, :, -1:].expand(-1, -1, -mean.shape[2] % listing.BOX, -1)], 2)
    mean = mean.unflatten(2, (-1, listing.BOX)).mean(3)
    return bits, norms, mean @ listing.planes(case.head_dim, mean.device).double().T, mean.norm(dim=-1)


@pytest.mark.parametrize("layout", ["contiguous", "tokens first", "strided"])
def test_signatures(interpreted, layout):
    bits, norms, wanted, lengths = interpreted(both_signatures, CASES["full"].but(layout=layout, queries=70, head_dim=24))
    clear = wanted.abs() > 1e-5
    assert clear.float().mean() > 0.99 and torch.equal(bits.bool()[clear], (wanted > 0)[clear])
    torch.testing.assert_close(norms.double(), lengths, rtol=1e-6, atol=0)


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize("policy", ["pages.mass=0.9", "lsh=0.25"])
def test_what_scores_tiles_compiles_for_every_architecture(arch, policy):
    spec = AttentionSpec.parse(f"score: 0.125*s; hi: i + 1; group: 4; sparsity: {policy}")
    choice = choose(spec, 1, 32, 4096, 4096, 128, 128, torch.bfloat16, MACHINES[arch])
    kernel = compile_listing(spec, choice, 128, torch.bfloat16, arch)
    assert kernel.registers > 0 and kernel.shared <= MACHINES[arch].shared_memory
    assert kernel.spills <= 8 or arch != "sm_90" or policy != "lsh=0.25"


@pytest.mark.parametrize("policy", ["pages=0.25", "pages.share=0.01"])
def test_a_promise_takes_few_instructions(policy):
    """Two programs share a processor; where all is seen no promise is masked, and their sums ask no other thread."""
    spec = AttentionSpec.parse(f"score: 0.125*s; hi: i + 1; group: 4; sparsity: {policy}")
    kernel = compile_listing(spec, choose(spec, 1, 32, 4096, 4096, 128, 128, torch.bfloat16, MACHINES["sm_90"]), 128,
                             torch.bfloat16)
    if not kernel.sass:
        pytest.skip("no disassembler")
    pieces = sorted((piece for piece in re.split(r"\n\.L_\w+:", kernel.sass) if "HGMMA" in piece), key=len)
    assert [piece.count("HGMMA") for piece in pieces] == [16, 16, 16]
    promises = 128 * listing.CHUNK_KEYS // listing.BOX // (8 * 32)                             # of a thread
    inside = [line for line in pieces[0].splitlines() if ";" in line]
    assert len(inside) <= 14 * promises and "LDL" not in pieces[0] and "STL" not in pieces[0]
    assert pieces[0].count("MUFU.EX2") <= promises + 2 and pieces[0].count("SHFL") <= 24
    assert kernel.registers <= 128 and 2 * kernel.shared <= MACHINES["sm_90"].shared_memory


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_what_does_not_depend_on_the_spec_compiles(arch):
    from mla_compiler.lowering.sparse import rank, signatures

    types = {"scores": "*fp32", "listed": "*i16", "counts": "*i32", "value": "fp32"}
    assert build(rank.rank, types, {"BLOCK_C": 2048, "MEASURE": "mass"}, arch, 4, 1).asm["llir"]
    types = {"x": "*bf16", "centre": "*fp32", "planes": "*fp32", "words": "*i64", "norms": "*fp32"}
    fixed = {"D": 128, "BLOCK_D": 128, "BOX": listing.BOX, "BLOCK_X": 16}
    assert build(signatures.signatures, types, fixed, arch, 4, 1).asm["llir"]
