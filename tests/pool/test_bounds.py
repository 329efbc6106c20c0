"""Bounds of pages hold for every key that is there, whatever becomes of the sequences; pages chosen by them, op and model."""

import math

import pytest
import torch
import transformers as hf

from mla_compiler import KVPool, PooledCache
from mla_compiler.lowering import gpu, register
from mla_compiler.lowering.sparse.paging import kept
from mla_compiler.pool.ops import POOL
from mla_compiler.sparsity import Sparsity
from tests.harness import FAST, watching
from tests.ops.pages import encoded

from .test_cache import MODELS, generated, prompt


def check(pool, sequences):
    for sequence in sequences:
        keys = pool.gather(sequence)[0]
        for layer, store in enumerate(pool.arena.stores):
            for n, page in enumerate(sequence.pages):
                k = keys[layer][:, n * 4:(n + 1) * 4]
                assert (store.bounds[page, :, 0] >= k.amax(1)).all() and (store.bounds[page, :, 1] >= (-k).amax(1)).all()


@pytest.mark.parametrize("format", ["plain", "fp8", "int8", "k6v4", "int4"])
def test_bounds_hold_through_forks_truncation_growth_and_the_host(format):
    torch.manual_seed(0)
    pool = KVPool(2, 3, 32, page=4, tokens=16, grow=True, host_tokens=256, bounds=True, format=format)
    for store in pool.arena.stores:
        store.bounds.fill_(-math.inf)
    a = pool.allocate()
    for count in (5, 1, 1, 9):
        pool.append(a, *torch.randn(2, 2, 3, count, 32))
    b = pool.fork(a)
    pool.append(b, *torch.randn(2, 2, 3, 2, 32))
    pool.truncate(a, 6)
    pool.append(a, *torch.randn(2, 2, 3, 7, 32))
    check(pool, [a, b])
    pool.evict([b])
    pool.append(a, *torch.randn(2, 2, 3, 90, 32))
    check(pool, [a, b])


def test_a_page_that_is_begun_anew_forgets_what_it_held():
    pool = KVPool(1, 1, 2, page=4, tokens=4, bounds=True)
    for value in (9.0, 1.0):
        sequence = pool.allocate()
        pool.append(sequence, *torch.full((2, 1, 1, 3, 2), value))
        assert pool.arena.stores[0].bounds[sequence.pages[0], 0].tolist() == [[value] * 2, [-value] * 2]
        pool.release(sequence)


def problem(share, queries=1, ends=(317, 100), dtype=torch.float32, page=16, columns=20, dim=32, format="plain"):
    """Arguments of attend_paged, poisoned but for what is there; the answer by the policy's words, in float64 and `dtype`."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, s, dim).to(dtype) for h, s in ((8, queries), (2, columns * page), (2, columns * page)))
    (k_stored, k_scales, k), (v_stored, v_scales, v) = (encoded(x, format, keys) for x, keys in ((k, True), (v, False)))
    table = torch.randperm(2 * columns + 3)[:2 * columns].view(2, columns).int()
    parts = [k_stored, v_stored] if k_scales is None else [k_stored, v_stored, k_scales, v_scales]
    stores = [poisoned(2 * columns + 3, page, x) for x in parts]
    bounds = torch.full((2 * columns + 3, 2, 2, dim), torch.nan, dtype=dtype)
    zero = torch.zeros(1, dtype=torch.int32)
    answers = [torch.zeros(2, 8, queries, dim, dtype=kind) for kind in (torch.float64, dtype)]
    for b, end in enumerate(ends):
        for store, x in zip(stores, parts, strict=True):
            POOL.pool_append(store, table[b:b + 1], zero, x[b:b + 1, :, :end])
        POOL.pool_bound(bounds, table[b:b + 1], zero, k[b:b + 1, :, :end], page)
        for g in range(2 if end else 0):
            for out in answers:
                out[b, 4 * g:4 * g + 4] = by_words(q[b, 4 * g:4 * g + 4], k[b, g, :end], v[b, g, :end], share, page, out.dtype)
    spec = f"score: 0.2*s; hi: min(T0[b], T0[b] + i - {queries - 1}); group: 4; sparsity: pages={share}"
    held = stores if len(stores) == 4 else [*stores, None, None]
    given = q, *held, table, format, [torch.tensor(ends)], [], [], spec, bounds
    return given, *(x.double() for x in answers)


def poisoned(count, page, x):
    """Pages [count, H, page, D] for x [B, H, S, D], of NaN if it has any."""
    fill = torch.nan if x.dtype.is_floating_point else 0
    return torch.full((count, x.shape[1], page, x.shape[3]), fill, dtype=x.dtype)


def by_words(q, k, v, share, page, dtype):
    """The pages are chosen in float64; products are in `dtype`, the softmax in float32 at least, as models write it."""
    (q, k, v), (queries, end), given = (x.double() for x in (q, k, v)), (q.shape[1], len(k)), (q, k, v)
    count, always = -(-end // page), 1 + -(-queries // page)
    parts = [k[n * page:(n + 1) * page] for n in range(count)]
    promise = torch.stack([torch.maximum(q * x.amax(0), q * x.amin(0)).sum(-1).max() for x in parts])
    promise[0], promise[max(count - always, 0):] = math.inf, math.inf
    numbers = promise.topk(kept(count, queries, page, Sparsity("pages", "", share))).indices
    j = (numbers[:, None] * page + torch.arange(page)).flatten()
    j = j[j < end]
    q, k, v = (x.to(dtype) for x in given)
    a = 0.2 * (q @ k[j].T).to(torch.promote_types(dtype, torch.float32))
    a = a.masked_fill(j >= end - (queries - 1) + torch.arange(queries)[:, None], -math.inf)
    return a.softmax(-1).to(dtype) @ v[j]


CASES = {"a quarter": {"share": 0.25}, "all": {"share": 1.0}, "three queries": {"share": 0.3, "queries": 3},
         "nothing and a few": {"share": 0.25, "ends": (0, 5)}, "two chunks": {"share": 0.1, "ends": (1111, 640), "columns": 70},
         "half": {"share": 0.25, "dtype": torch.bfloat16}, "wide pages": {"share": 0.25, "page": 48, "ends": (500, 7)},
         "half, whole boxes": {"share": 0.25, "dtype": torch.bfloat16, "ends": (5000, 700), "page": 64, "columns": 80,
                               "dim": 128},
         "half, int8": {"share": 0.25, "dtype": torch.bfloat16, "ends": (5000, 700), "page": 64, "columns": 80, "dim": 128,
                        "format": "int8"}}


def errors(case, kernels):
    """Of attend_paged, its CPU form or, in Triton's interpreter, its kernels; of the formula, two roundings of it at least."""
    register()
    arguments, truth, formula = problem(**case)
    found = (gpu.attend_paged if kernels else torch.ops.flashmla.attend_paged)(*arguments).double()
    rounding = truth.abs().max() * torch.finfo(arguments[0].dtype).eps
    return (found - truth).abs().max().item(), max((formula - truth).abs().max(), rounding).item()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_chosen_pages_and_no_other_are_attended(case):
    ours, formula = errors(case, kernels=False)
    assert ours <= 2 * formula


@pytest.mark.parametrize("name", [name for name in CASES if "half" not in name])
def test_the_kernels_choose_the_same(interpreted, name):
    """float32: the interpreter does not round to bfloat16 as a GPU does."""
    ours, formula = interpreted(errors, CASES[name], True)
    assert ours <= 2 * formula


def test_more_pages_never_leave_out_what_fewer_keep():
    sizes = [kept(100, 1, 64, Sparsity("pages", "", share)) for share in (0.01, 0.1, 0.125, 0.5, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] == 3 and sizes[2] == 13 and sizes[-1] == 100


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_generate_under_the_policy(share):
    """All pages kept: DynamicCache's tokens. Fewer: the report says so, and nothing is compiled anew as the sequence grows."""
    model, inputs = MODELS["llama"](), prompt(MODELS["llama"]())
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    pool = KVPool(1, 2, 8, 8, tokens=4096, page=16, bounds=True)
    model.forward = torch.compile(model.forward, fullgraph=True, backend="flashmla",
                                  options=FAST | {"flashmla.sparsity": f"pages={share}"})
    with watching() as seen:
        cache = PooledCache(model.config, pool=pool)
        cache.early_initialization(2, 1, 1, torch.float32, "cpu")
        found = generated(model, cache, inputs, do_sample=False)
    assert {site.sparsity for site in seen.graphs[1]} == {f"pages={share}, in steps of few queries"}
    assert len(seen.graphs) == 2 and (share < 1 or torch.equal(found, expected))
