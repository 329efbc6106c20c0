"""Every kernel at least once, on a real GPU, at sizes that a sanitizer can bear: `make sanitize` runs this file under one.

What is checked beside is that each is right: a sanitizer that watches wrong kernels says little.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_map_only

from mla_compiler import KVPool, lowering
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu
from mla_compiler.lowering.machine import machine_of
from mla_compiler.lowering.select import candidates
from mla_compiler.lowering.summary import reference as summary
from tests.pool.test_bounds import problem

from .attentions import CASES
from .cases import Case, errors
from .latents import errors as latent_errors
from .test_counted import counted
from .test_gpu_sparse import levelled
from .test_latent import CASES as LATENTS
from .test_pages import FORMATS, paged
from .test_sparse import LOCAL, under

pytestmark = pytest.mark.gpu
HALF = torch.bfloat16
ALIGNED = CASES["causal, aligned to the end"].but(sizes=(100,), queries=300, keys=400, heads=4, dtype=HALF, choice=None)
LIVE = Case("score: 0.125*s; hi: T0[b] + i + 1; group: 4; sink: F1[h]", ("uneven", "sinks"), batch=5, heads=8, queries=1,
            keys=700, head_dim=128, value_dim=128, dtype=HALF, choice=None)
LATENT = LATENTS["live length"].but(rank=512, width=64, heads=20, keys=700, dtype=HALF, choice=None)

ATTENTIONS = {
    **{f"prefill, {d} and {dv}": ALIGNED.but(head_dim=d, value_dim=dv)
       for d, dv in ((64, 64), (128, 128), (192, 128), (256, 256))},
    **{f"prefill, {name}": CASES[name].but(head_dim=64, value_dim=64, dtype=HALF, choice=None, **sizes) for name, sizes in (
        ("window", {"queries": 300, "keys": 300}), ("documents, bounded", {}), ("sinks", {"queries": 300, "keys": 300}),
        ("padding", {}), ("bias", {}), ("mask, summarised", {}))},
    "prefill, float32": ALIGNED.but(dtype=torch.float32, head_dim=64, value_dim=64),
    "decode": LIVE, "decode, 4 queries": LIVE.but(queries=4), "decode, 16 queries": LIVE.but(queries=16),
    "decode, head dim 64": LIVE.but(head_dim=64, value_dim=64), "decode, head dim 256": LIVE.but(head_dim=256, value_dim=256),
    "decode, float32": LIVE.but(dtype=torch.float32), "decode in parts": LIVE.but(spec=f"{LIVE.spec}; kv_splits: 3"),
    **{f"decode of pages, {format}": paged(LIVE.but(format=format, keys=704), 64) for format in FORMATS},
    **{f"prefill of pages, {format}": paged(ALIGNED.but(format=format, head_dim=64, value_dim=64, sizes=(148,), keys=448), 64)
       for format in FORMATS},
    **{f"{policy}, plain": under(LOCAL["causal"], policy, choice=None) for policy in ("threshold=0.02", "error_budget=0.03",
                                                                                    "pages.share=0.03")},
}
LATENT_ATTENTIONS = {
    "one query": LATENT.but(queries=1), "3 queries": LATENT.but(queries=3), "70 queries": LATENT.but(queries=70),
    "16 heads": LATENT.but(heads=16, queries=1), "8 heads of 4 queries": LATENT.but(heads=8, queries=4),
    "16 heads in parts": LATENT.but(heads=16, queries=1, spec=f"{LATENT.spec}; kv_splits: 3"),
    "16 heads, pages": LATENT.but(heads=16, queries=2, paged=True, batch=2),
    "128 heads": LATENT.but(heads=128), "in parts": LATENT.but(spec=f"{LATENT.spec}; kv_splits: 3"),
    "pages": LATENT.but(paged=True, batch=2), "chosen": LATENT.but(chosen=200),
    "chosen, in parts": LATENT.but(chosen=200, spec=f"{LATENT.spec}; kv_splits: 3"),
    "plain": LATENT.but(layout="strided", keys=130), "plain, chosen": LATENT.but(layout="strided", keys=130, chosen=100),
    "packed": LATENT.but(packed=True, spec=LATENT.spec.replace("0.25", "0.07")), "float32": LATENT.but(dtype=torch.float32),
}


@pytest.fixture(autouse=True, scope="module")
def kernels():
    lowering.register()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attentions(name):
    error, formula = errors(ATTENTIONS[name], "cuda")
    assert error <= 2 * formula


@pytest.mark.parametrize("name", LATENT_ATTENTIONS)
def test_latents(name):
    error, formula = latent_errors(LATENT_ATTENTIONS[name], "cuda")
    assert error <= 2 * formula


def test_programs_that_end_one_item_and_begin_another():
    spec, machine = AttentionSpec.parse(LIVE.spec), machine_of(torch.device("cuda", 0))
    sizes = LIVE.batch, LIVE.heads, LIVE.queries, LIVE.keys, LIVE.head_dim, LIVE.value_dim
    error, formula = errors(LIVE.but(choice=replace(candidates(spec, *sizes, LIVE.dtype, machine)[0], programs=3)), "cuda")
    assert error <= 2 * formula


@pytest.mark.parametrize("policy", ["lsh=0.3", "pages.mass=0.6", "pages.share=0.02"])
def test_chosen_tiles(policy):
    """All is written, as a mean of values; which tiles are listed and attended is `test_gpu_sparse.py`'s."""
    case, given = levelled("score: 0.09*s; hi: i + 1; group: 4", 300, 300, 128, policy)
    out = torch.ops.flashmla.attend(given.q, given.k, given.v, [], [], [], case.spec)
    assert out.isfinite().all() and out.abs().max() <= given.v.abs().max() * (1 + 2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_chosen_pages(dtype):
    arguments, truth, formula = problem(0.25, dtype=dtype)
    there = tree_map_only(torch.Tensor, torch.Tensor.cuda, arguments)
    rounding = truth.abs().max() * torch.finfo(dtype).eps
    assert (gpu.attend_paged(*there).cpu() - truth).abs().max() <= 2 * max((formula - truth).abs().max(), rounding)


def test_an_account():
    out, plain, call = counted(under(LOCAL["causal"], "threshold=0.02"), "cuda")
    assert torch.equal(out, plain) and call.steps.any()


def test_masks_are_summarised():
    mask = torch.rand(1, 2, 200, 300) < 0.1
    for found, truth in zip(gpu.summarize(mask.cuda()), summary.summarize(mask), strict=True):
        assert torch.equal(found.cpu(), truth)


def appended(format: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(what comes back from a fork that has a second page, what went in), on the CPU."""
    torch.manual_seed(0)
    keys, values = torch.randn(2, 2, 3, 21, 64)
    pool = KVPool(2, 3, 64, page=16, tokens=256, bounds=True, format=format, device=device)
    first = pool.allocate()
    pool.append(first, keys.to(device), values.to(device))
    second = pool.fork(first)
    pool.append(second, keys[:, :, :1].to(device), values[:, :, :1].to(device))
    return pool.gather(second)[0].cpu(), torch.cat([keys, keys[:, :, :1]], 2)


@pytest.mark.parametrize("format", FORMATS)
def test_a_pool(format):
    found, wanted = appended(format, "cuda")
    on_cpu, _ = appended(format, "cpu")
    assert (found - wanted).abs().max() <= 2 * (on_cpu - wanted).abs().max()
