"""PooledCache on a GPU: DynamicCache's tokens from compiled steps, in one CUDA graph for every length; no pages are copied."""

import math
import re

import pytest
import torch
import transformers as hf
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.autograd import DeviceType
from torch.profiler import profile
from transformers import CompileConfig

from mla_compiler import KVPool, PooledCache
from tests.harness import watching

from .test_cache import MODELS, WAYS, generated, prompt
from .test_compiled import HEADS

pytestmark = pytest.mark.gpu


def on_gpu(name, padded=False):
    model = MODELS[name]().cuda()
    return model, {key: x.cuda() for key, x in prompt(model, padded=padded).items()}


def pool_for(name, **options):
    return KVPool(1, *HEADS[name], tokens=16384, page=64, device="cuda", **options)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_generate_compiles_its_steps(name, mode, padded):
    model, inputs = on_gpu(name, padded)
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    pool = pool_for(name)
    with watching() as seen:
        for _ in range(2):  # and another cache over the same pages
            cache = PooledCache(model.config, pool=pool, longest=256)
            config = CompileConfig(backend="flashmla", fullgraph=True, mode=mode)
            assert torch.equal(generated(model, cache, inputs, compile_config=config, do_sample=False), expected)
            assert counters["stats"]["unique_graphs"] == 1 and not counters["inductor"]["cudagraph_skips"]
    assert {site.pages for site in seen.sites} == {"pages of 64"}


@pytest.mark.parametrize("way", WAYS)
def test_the_forward_compiled_by_its_user(way):
    model, inputs = on_gpu("gemma")
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, **WAYS[way])
    rows = 2 * max(WAYS[way].get("num_beams", 1), WAYS[way].get("num_return_sequences", 1))
    model.forward = torch.compile(model.forward, backend="flashmla", fullgraph=True)
    with watching():
        cache = PooledCache(model.config, pool=pool_for("gemma"))
        cache.early_initialization(rows, 1, 1, torch.float32, "cuda")
        assert torch.equal(generated(model, cache, inputs, **WAYS[way]), expected)
        assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("format", ["plain", "int8", "int4", "fp8", "k6v4"])
def test_generated_code_copies_no_pages(format):
    model, inputs = on_gpu("llama")
    pool = pool_for("llama", format=format)
    with watching():
        cache = PooledCache(model.config, pool=pool, longest=256)
        model(**inputs, past_key_values=cache)
        step = torch.compile(lambda ids: model(ids, past_key_values=cache).logits, backend="flashmla")
        logits, code = run_and_get_code(step, inputs["input_ids"][:, :1])
    shapes = re.findall(r"empty_strided_cuda\(\(([\d, ]+)\)", "\n".join(code))
    smallest = min(x.numel() for store in pool.arena.stores for x in store.tensors())
    assert shapes and all(math.prod(int(d) for d in shape.split(",") if d.strip()) < smallest for shape in shapes)
    assert logits.isfinite().all()


def test_evicted_pages_come_back():
    """Copies on a stream of their own, while this one goes on writing pages that were taken from them."""
    pool = KVPool(2, 4, 64, dtype=torch.bfloat16, device="cuda", tokens=4096, host_tokens=8192)
    x = torch.randn(3, 2, 4, 2000, 64, dtype=torch.bfloat16, device="cuda")
    sequences = [pool.allocate() for _ in range(3)]
    for turn in range(4):
        for sequence, new in zip(sequences, x, strict=True):
            part = new[:, :, 500 * turn : 500 * turn + 500]
            pool.append(sequence, part, part)
            pool.idle([sequence])
    assert pool.stats().evicted
    for _ in range(3):
        for at, sequence in enumerate(sequences):
            pool.idle(sequences)
            k, v = pool.gather(sequence)
            assert torch.equal(k, x[at]) and torch.equal(v, x[at])
    for sequence in sequences:
        pool.release(sequence)
    torch.cuda.synchronize()
    assert pool.stats().held == pool.stats().evicted == pool.stats().pending == 0


def test_pages_come_back_beside_the_kernels():
    """By a trace: a product runs while they do. What reads them waits."""
    pool = KVPool(1, 8, 128, dtype=torch.bfloat16, device="cuda", tokens=16384, host_tokens=16384)
    x, a = torch.randn(1, 8, 16384, 128, dtype=torch.bfloat16, device="cuda"), torch.randn(2048, 2048, device="cuda")
    sequence = pool.allocate()
    pool.append(sequence, x, x)
    pool.evict([sequence])
    a @ a
    torch.cuda.synchronize()
    with profile() as seen:
        pool.prefetch([sequence])
        for _ in range(20):
            a @ a
        k, v = pool.gather(sequence)
        torch.cuda.synchronize()
    assert torch.equal(k, x) and torch.equal(v, x)
    spans = [(x.name, x.time_range.start, x.time_range.end) for x in seen.events() if x.device_type == DeviceType.CUDA]
    _, began, ended = max((span for span in spans if span[0].startswith("Memcpy HtoD")), key=lambda span: span[2] - span[1])
    assert any("gemm" in name and start < ended and began < end for name, start, end in spans)


@pytest.mark.parametrize("offload", [1, 5])
def test_layers_on_the_host(offload):
    model, inputs = on_gpu("gemma", padded=True)
    cache = PooledCache(model.config, pool=pool_for("gemma", host_tokens=16384), offload=offload)
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    assert torch.equal(generated(model, cache, inputs, do_sample=False), expected)
    assert cache.pool.ledger.shelf.nbytes
