"""The policies as their reference has them: what they keep, and what they promise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import reference
from mla_compiler.lowering.sparse import cpu_choice, listing
from mla_compiler.lowering.sparse import reference as R
from mla_compiler.lowering.sparse import thresholds as cpu
from mla_compiler.sparsity import Sparsity

from .cases import CASES, SHAPES, Case, assert_close, problem

attend = torch.ops.flashmla.attend.default
POLICIES = {"threshold": R.threshold, "error_budget": R.error_budget}


@st.composite
def logits(draw, rows=6, keys=48) -> Tensor:
    """a [R, S] in float64: noise of any spread, steps, spikes and rows or keys that are not visible."""
    r, s = draw(st.integers(1, rows)), draw(st.integers(1, keys))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    a = torch.randn(r, s, generator=rng, dtype=torch.float64) * draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0]))
    a += torch.linspace(0, 1, s, dtype=torch.float64) * draw(st.sampled_from([0.0, -20.0, 3.0, 40.0]))
    spikes = torch.rand(r, s, generator=rng) < draw(st.sampled_from([0.0, 0.02, 0.2]))
    a = torch.where(spikes, a + draw(st.sampled_from([3.0, 15.0])), a)
    hidden = torch.rand(r, s, generator=rng) < draw(st.sampled_from([0.0, 0.3, 0.95]))
    return a.masked_fill(hidden, -math.inf)


@st.composite
def cases(draw) -> tuple[Tensor, int, list[int]]:
    """Logits, keys of a tile, an order of the tiles: inward, outward or any."""
    a, width = draw(logits()), draw(st.sampled_from([1, 2, 4, 8]))
    count = -(-a.shape[1] // width)
    order = draw(st.one_of(st.just(R.inward(count)), st.just(list(range(count))), st.permutations(range(count))))
    return a, width, list(order)


@pytest.mark.parametrize("policy", POLICIES)
@given(cases(), st.integers(0, 2**32))
@settings(deadline=None)
def test_keep_all_is_dense(policy, case, seed):
    a, width, order = case
    v = torch.randn(a.shape[1], 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = POLICIES[policy](a, width, 1e-300, order)
    dense = R.attend(a, R.everything(a, width), v, width)
    torch.testing.assert_close(R.attend(a, kept, v, width), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
@given(cases(), st.floats(1e-9, 1), st.floats(1e-9, 1))
@settings(deadline=None)
def test_a_larger_number_never_keeps_a_tile_more(policy, case, one, other):
    a, width, order = case
    more, less = (POLICIES[policy](a, width, value, order) for value in sorted((one, other)))
    assert not (less & ~more).any()


@given(cases(), st.floats(1e-6, 1), st.integers(0, 2**32))
@settings(max_examples=1000, deadline=None)
def test_the_budget_is_never_exceeded(case, budget, seed):
    """Ten cases an example: its keys in as many orders."""
    a, width, order = case
    rng = torch.Generator().manual_seed(seed)
    v = torch.randn(a.shape[1], 3, generator=rng, dtype=torch.float64)
    for keys in (torch.arange(len(v)), *(torch.randperm(len(v), generator=rng) for _ in range(9))):
        own = a[:, keys]
        kept = R.error_budget(own, width, budget, order)
        assert (R.dropped(own, kept, width) <= budget).all()
        error = (R.attend(own, kept, v, width) - R.attend(own, R.everything(own, width), v, width)).abs().max()
        assert error <= 2 * budget * v.abs().max() + 1e-12


@given(cases(), st.floats(1e-6, 1), st.integers(1, 5))
@settings(max_examples=1000, deadline=None)
def test_the_budget_holds_for_any_parts(case, budget, parts):
    """Each part of the keys has the whole budget of its own softmax: what they lose together is within it."""
    a, width, _ = case
    kept = []
    for part in torch.arange(-(-a.shape[1] // width)).tensor_split(parts):
        if len(part):
            own = a[:, part[0] * width:(part[-1] + 1) * width]
            kept.append(R.error_budget(own, width, budget, R.inward(len(part))))
    assert (R.dropped(a, torch.cat(kept), width) <= budget).all()


def test_the_order_decides_what_is_skipped():
    """Weights that grow to the right: read that way every tile is the best so far; read backwards all but two go."""
    a = torch.arange(64, dtype=torch.float64)[None]
    assert R.threshold(a, 8, 0.01, range(8)).all()
    assert R.threshold(a, 8, 0.01, R.inward(8)).tolist() == [True, *[False] * 6, True]


def test_one_row_that_needs_a_tile_keeps_it_for_all():
    a = torch.zeros(4, 16, dtype=torch.float64)
    a[:, 4:] = -50.0
    a[2, 9] = 0.0
    assert R.threshold(a, 4, 0.1, R.inward(4)).tolist() == [True, False, True, False]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_on_the_cpu_keep_all_is_dense(case, shape):
    for dtype in (torch.float32, torch.bfloat16):
        arguments = problem(case, shape, dtype, sparsity=Sparsity.parse("error_budget=1e-30"))
        assert_close(attend(*arguments), arguments)


def turning(shape: tuple[int, ...], case: Case, policy: str) -> tuple:
    """A problem whose weights fall with the distance of query and key."""
    q, k, v, *rest = problem(case, shape, sparsity=Sparsity.parse(policy))
    for x in (q, k):
        angle = torch.arange(x.shape[2]) * 0.02
        turn = torch.stack([angle.cos(), angle.sin()], -1).repeat(1, x.shape[3] // 2) * 2.2
        x.copy_(turn + 0.05 * x)
    return q, k, v, *rest


@pytest.mark.parametrize("policy", ["threshold=0.02", "error_budget=0.05"])
@pytest.mark.parametrize("name", ["full", "causal", "pad", "summarized", "sinks"])
def test_on_the_cpu_is_kept_what_the_reference_keeps(name, policy):
    arguments = turning((2, 4, 2, 300, 600, 16, 16), CASES[name], policy)
    q, k, v, *rest, text = arguments
    spec = AttentionSpec.parse(text)
    exact, working = (reference.logits(q.to(t), k.to(t), *rest, spec) for t in (torch.float64, torch.float32))
    out, gone, errors = attend(*arguments), 0, []
    for b, h, first in ((b, h, first) for b in range(2) for h in range(4) for first in range(0, 300, cpu.ROWS)):
        rows = slice(first, first + cpu.ROWS)
        kept = R.kept_by(spec.sparsity, exact[0][b, h, rows], cpu.KEYS, 0 if name == "pad" else None)
        gone += (~kept).sum()
        hidden = ~kept.repeat_interleave(cpu.KEYS)[:600]
        own = v[b, h // spec.group]
        wanted, formula = (
            reference.weighted(a[b, h, rows].masked_fill(hidden, -math.inf), sink[b, h, rows], own.to(a.dtype))
            for a, sink in (exact, working))
        errors.append([(x - wanted).square().mean().sqrt() for x in (out[b, h, rows], formula)])
    ours, theirs = torch.tensor(errors).square().mean(0).sqrt()
    assert gone > 10 and ours <= 2 * theirs


@given(logits(), st.floats(1e-9, 1), st.floats(1e-9, 1), st.sampled_from([1, 3, 16]))
@settings(deadline=None)
def test_a_larger_share_never_keeps_a_tile_more(w, one, other, chunk):
    more, less = (R.pages_share(w, share, chunk) for share in sorted((one, other)))
    assert not (less & ~more).any()


@given(st.integers(0, 2**32), st.integers(1, 50), st.sampled_from([1, 4, 16]), st.sampled_from([0.1, 1.0, 20.0]))
def test_a_box_promises_no_less_than_its_keys(seed, keys, box, spread):
    rng = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, 6, generator=rng, dtype=torch.float64) * spread for n in (3, keys))
    bound = R.promises(q, k, box, 1.0).repeat_interleave(box, 1)[:, :keys]
    assert (q @ k.T <= bound + 1e-12 * spread**2).all()


@given(logits(), st.floats(1e-9, 1), st.floats(1e-9, 1), st.booleans(), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_larger_rank_never_keeps_a_tile_less(w, one, other, mass, seed):
    candidates = torch.rand(w.shape[1], generator=torch.Generator().manual_seed(seed)) < 0.8
    less, more = (R.ranked(w, candidates, value, mass) for value in sorted((one, other)))
    assert not (less & ~more).any() and not (more & ~candidates).any()
    assert torch.equal(R.ranked(w, candidates, 1.0, mass), candidates)


@given(logits(), st.floats(1e-3, 1), st.booleans(), st.integers(0, 2**32))
@settings(deadline=None)
def test_ranks_on_the_cpu_are_those_of_the_reference(w, value, mass, seed):
    candidates = torch.rand(w.shape[1], generator=torch.Generator().manual_seed(seed)) < 0.8
    wanted = [R.ranked(w, candidates, value * x, mass) for x in (1, 0.999999, 1.000001) if value * x <= 1]
    found = cpu_choice.ranked(w[None, None], candidates[None, None], value, mass)[0, 0]
    assert any(torch.equal(found, one) for one in wanted)


CHOICES = ["pages.share=0.02", "pages.share=0.02+threshold=0.05", "pages=0.5", "pages=0.5+threshold=0.05", "pages.mass=0.8",
           "lsh=0.5", "lsh.mass=0.8"]


@pytest.mark.parametrize(("name", "policy"), [
    *(("causal", policy) for policy in CHOICES), ("full", "lsh.mass=0.8"), ("window of many", "pages.mass=0.8"),
    ("window of many", "lsh=0.5"), ("sinks", "pages=0.5"), ("softcap", "pages.share=0.02"), ("softcap", "lsh=0.5")])
def test_on_the_cpu_pages_are_those_of_the_reference(name, policy):
    case = CASES.get(name) or Case(lo="max(0, i - 400)", hi="i + 1")
    arguments = turning((1, 4, 2, 300, 600, 16, 16), case, policy)
    q, k, v, *rest, text = arguments
    spec = AttentionSpec.parse(text)
    exact, working = (reference.logits(q.to(t), k.to(t), *rest, spec) for t in (torch.float64, torch.float32))
    seen = reference.visible(spec, 1, 4, 300, 600, *rest)
    out, gone, errors = attend(*arguments), 0, []
    for h, first in ((h, first) for h in range(4) for first in range(0, 300, cpu.ROWS)):
        rows = slice(first, first + cpu.ROWS)
        kept = chosen_by_pages(q[0, h, rows], k[0, h // 2], seen[0, h, rows], spec, first)
        gone += (~kept).sum()
        hidden = ~kept.repeat_interleave(cpu.KEYS)[:600]
        some = [a[0, h, rows].masked_fill(hidden, -math.inf) for a, _ in (exact, working)]
        if spec.sparsity.then:
            again = R.threshold(R.in_tiles(some[0], cpu.KEYS)[:, kept].flatten(1), cpu.KEYS, 0.05, R.inward(int(kept.sum())))
            more = ~kept.clone().index_put((kept.nonzero()[:, 0],), again).repeat_interleave(cpu.KEYS)[:600]
            some = [a.masked_fill(more, -math.inf) for a in some]
        wanted, formula = (reference.weighted(a, sink[0, h, rows], v[0, h // 2].to(a.dtype))
                           for a, (_, sink) in zip(some, (exact, working), strict=True))
        errors.append([(x - wanted).square().mean().sqrt() for x in (out[0, h, rows], formula)])
    ours, theirs = torch.tensor(errors).square().mean(0).sqrt()
    assert gone > 10 and ours <= 2 * theirs


def chosen_by_pages(q: Tensor, k: Tensor, seen: Tensor, spec: AttentionSpec, first: int) -> Tensor:
    """bool [tiles]: what the reference keeps of the tiles that anything is seen of."""
    q, k, policy = q.double(), k.double(), spec.sparsity
    tiles = F.pad(seen, (0, -seen.shape[1] % cpu.KEYS)).unflatten(1, (-1, cpu.KEYS))
    boxes, i = tiles.unflatten(2, (4, 16)).any(-1).flatten(1), torch.arange(first, first + len(q))
    if policy.policy == "lsh":
        promise = R.matches(q, k, k.mean(0), 16, listing.planes(k.shape[1], k.device).double())
        boxes = F.pad(boxes, (0, 0, 0, -len(boxes) % 16)).unflatten(0, (-1, 16)).any(1)
        i = (i[::16] + 8).clamp(max=first + len(q) - 1)
    else:
        promise = R.promises(q, k, 16, 0.5)
    j = (torch.arange(promise.shape[1]) * 16 + 8).view(1, 1, 1, -1)
    w = reference.compile(spec.score, torch.float64)(0, 0, i.view(1, 1, -1, 1), j, [], [], [], promise[None, None])[0, 0]
    w = F.pad(w, (0, tiles.shape[1] * 4 - w.shape[1]), value=-math.inf)
    w = w.masked_fill(~boxes, -math.inf).unflatten(1, (-1, 4)).logsumexp(-1)
    some, whole = tiles.any(-1).any(0), tiles.all(-1).all(0)
    kept, live = torch.zeros_like(some), some.nonzero()[:, 0]
    if policy.measure == "share":
        kept[live[0]:live[-1] + 1] = R.pages_share(w[:, live[0]:live[-1] + 1], policy.value, 16)
        return (kept | ~whole) & some
    candidates = whole.index_fill(0, live[:1], False)
    return (R.ranked(w, candidates, policy.value, policy.measure == "mass") | ~candidates) & some


@pytest.mark.parametrize("policy", ["threshold=0.02", "pages=0.5", "lsh.mass=0.8"])
def test_the_same_input_gives_the_same_bits(policy):
    arguments = turning((1, 2, 1, 300, 300, 16, 16), CASES["causal"], policy)
    assert torch.equal(attend(*arguments), attend(*arguments))


def test_on_the_cpu_keys_outside_the_hull_are_not_read():
    case = Case(lo="max(0, i - 90)", hi="i + 1")
    q, k, v, *rest = turning((1, 2, 1, 300, 400, 16, 16), case, "threshold=0.02")
    poisoned = [x.index_fill(2, torch.arange(300, 400), math.nan) for x in (k, v)]
    assert torch.equal(attend(q, *poisoned, *rest), attend(q, k, v, *rest))
