"""generate with a PooledCache in compiled code: DynamicCache's tokens, two graphs for all lengths and for the next cache."""

import copy
import gc

import pytest
import torch
import transformers as hf
from torch._dynamo.utils import counters
from transformers import CompileConfig

from mla_compiler import KVPool, PooledCache, PoolError, PoolExhausted
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.select import choose_paged
from tests.harness import FAST, watching

from .test_cache import MODELS, WAYS, generated, prompt

HEADS = {"llama": (2, 8, 8), "gemma": (2, 8, 8), "latent": (1, 16, 4)}


def pool_for(name, tokens=4096, **options):
    """Of one layer a page, so that it serves layers of every window. Latents are read in pages of 64 only."""
    return KVPool(1, *HEADS[name], tokens=tokens, page=64 if name == "latent" else 4, **options)


def opened(model, pool, rows=2, **options):
    cache = PooledCache(model.config, pool=pool, **options)
    cache.early_initialization(rows, 1, 1, torch.float32, "cpu")
    return cache


def compile_forward(model, backend="flashmla"):
    model.forward = torch.compile(model.forward, fullgraph=True, backend=backend, options=FAST)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_two_graphs_serve_all_lengths_and_caches(name):
    """The prompt's and the step's; one page after the other, and in the second round another cache over the same pool."""
    model, inputs = MODELS[name](), prompt(MODELS[name]())
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    pool = pool_for(name)
    compile_forward(model)
    with watching() as seen:
        for _ in range(2):
            assert torch.equal(generated(model, opened(model, pool), inputs, do_sample=False), expected)
            assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert [len(graph) for graph in seen.graphs] == [model.config.num_hidden_layers] * 2
    assert {site.pages for site in seen.graphs[0]} == {""}
    assert {site.pages for site in seen.graphs[1]} == {f"pages of {pool.geometry.page}"}
    gc.collect()  # what was traced stands in cycles of Dynamo's
    assert pool.stats().held == 0


def test_inductor_alone():
    model, inputs = MODELS["gemma"](), prompt(MODELS["gemma"]())
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    compile_forward(model, "inductor")
    with watching():
        assert torch.equal(generated(model, opened(model, pool_for("gemma")), inputs, do_sample=False), expected)
        assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize(("name", "way", "padded"), [
    ("llama", "sampling", True), ("gemma", "greedy", False), ("gemma", "several", True),
])
def test_generate_compiles_its_steps(name, way, padded):
    """As it does for a static cache: the prompt runs eagerly, and one graph takes every later token."""
    model, inputs = MODELS[name](), prompt(MODELS[name](), padded=padded)
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, **WAYS[way])
    config = CompileConfig(backend="flashmla", fullgraph=True, mode=None, options=FAST)
    config._compile_all_devices = True
    with watching() as seen:
        cache = PooledCache(model.config, pool=pool_for(name), longest=64)
        assert torch.equal(generated(model, cache, inputs, compile_config=config, **WAYS[way]), expected)
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    seen.assert_each_graph(model.config.num_hidden_layers, {})
    assert {site.pages for site in seen.sites} == {"pages of 4"}
    assert {on_hopper(site.spec, format) for site in seen.sites for format in ("plain", "int8", "fp8")} == {"decode_hopper"}


def on_hopper(spec, format):
    """The kernel of a step by that spec in a model of common sizes."""
    spec = AttentionSpec.parse(spec)
    sizes = 16, 8 * spec.group, 1, 8192, 128, 128
    return choose_paged(spec, *sizes, torch.bfloat16, MACHINES["sm_90"], format, 64).family


@pytest.mark.parametrize(("name", "way", "padded"), [("gemma", "beams", True), ("llama", "sampled beams", False)])
def test_beams(name, way, padded):
    """generate never compiles them itself: its user compiled the forward of the model."""
    model, inputs = MODELS[name](), prompt(MODELS[name](), padded=padded)
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, **WAYS[way])
    compile_forward(model)
    with watching():
        cache = opened(model, pool_for(name), rows=2 * WAYS[way]["num_beams"])
        assert torch.equal(generated(model, cache, inputs, **WAYS[way]), expected)
        assert counters["stats"]["unique_graphs"] == 2


def test_the_prompt_compiles_too_without_an_open_cache_but_in_pieces():
    """Opening is host work: the first prompt breaks there, and the tokens are right."""
    model, inputs = MODELS["llama"](), prompt(MODELS["llama"]())
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    model.forward = torch.compile(model.forward, backend="flashmla", options=FAST)
    with watching():
        cache = PooledCache(model.config, tokens=1024, page=4)
        assert torch.equal(generated(model, cache, inputs, do_sample=False), expected)


def test_assisted_generation():
    """Steps of several tokens that are cropped again: one more graph for each count, until the count is a symbol."""
    model, inputs = MODELS["gemma"](), prompt(MODELS["gemma"](), rows=1)
    inputs = {name: x.repeat(1, 3) for name, x in inputs.items()}
    way = {"prompt_lookup_num_tokens": 3, "do_sample": False}
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, **way)
    compile_forward(model)
    with watching():
        found = generated(model, opened(model, pool_for("gemma"), rows=1), inputs, **way)
    assert torch.equal(found, expected)


def steps(model, cache, ids):
    return torch.cat([model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(ids.shape[1])], 1)


def test_eager_and_compiled_steps_take_turns():
    model, ids = MODELS["gemma"](), prompt(MODELS["gemma"](), tokens=24)["input_ids"]
    expected = model(ids).logits
    eager, compiled = model.forward, torch.compile(model.forward, backend="flashmla", fullgraph=True, options=FAST)
    with watching():
        cache = opened(model, pool_for("gemma"))
        found = []
        for at in range(0, 24, 3):
            model.forward = compiled if at % 2 else eager
            found.append(steps(model, cache, ids[:, at : at + 3]))
    torch.testing.assert_close(torch.cat(found, 1), expected)


def test_forks_write_into_pages_of_their_own():
    model, ids = MODELS["llama"](), prompt(MODELS["llama"](), tokens=12)["input_ids"]
    with watching():
        cache = opened(model, pool_for("llama"))
        model(ids[:, :6], past_key_values=cache)
        compile_forward(model)
        other = copy.deepcopy(cache)
        found = [steps(model, one, rest) for one, rest in ((cache, ids[:, 6:9]), (other, ids[:, 9:]), (cache, ids[:, 9:]))]
        expected = model(ids).logits
    torch.testing.assert_close(torch.cat([found[0], found[2]], 1), expected[:, 6:])
    assert not torch.allclose(found[1], expected[:, 9:])


def test_a_step_that_finds_no_room_has_not_run():
    """What lay behind the windows is gone, and nothing else; after some pages are released the same graph runs the step."""
    model, ids = MODELS["gemma"](), prompt(MODELS["gemma"](), tokens=24)["input_ids"]
    pool = pool_for("gemma", tokens=4 * 5 * 2 * 4)
    compile_forward(model)
    with watching():
        cache = opened(model, pool)
        steps(model, cache, ids[:, :12])
        hoard = [pool.allocate() for _ in range(len(pool.ledger.pages.free))]
        pool.extend(hoard, 1)
        with pytest.raises(PoolExhausted):
            steps(model, cache, ids[:, 12:13])
        assert cache.get_seq_length() == 12 and cache.batch.slate.lengths.tolist() == [12, 12]
        for sequence in hoard:
            pool.release(sequence)
        found = steps(model, cache, ids[:, 12:13])
        expected = model(ids[:, :13]).logits[:, -1:]
    torch.testing.assert_close(found, expected)


def test_longer_than_it_was_told():
    model, ids = MODELS["llama"](), prompt(MODELS["llama"](), tokens=9)["input_ids"]
    cache = PooledCache(model.config, tokens=64, page=4, longest=8)
    with torch.no_grad(), pytest.raises(PoolError, match="9 tokens; the tables of this cache tell of 8"):
        steps(model, cache, ids)
    with pytest.raises(PoolError, match="at least 1"):
        PooledCache(model.config, tokens=64, longest=0)


@pytest.mark.parametrize("format", ["k8v4", "k6v4"])
def test_keys_and_values_of_two_formats_are_read_where_they_lie(format):
    model, ids = MODELS["llama"](), prompt(MODELS["llama"]())["input_ids"]
    pool = pool_for("llama", format=format)
    with watching() as seen:
        caches = [opened(model, pool) for _ in range(2)]
        for cache in caches:
            model(ids, past_key_values=cache)
        expected = model(ids[:, :1], past_key_values=caches[0]).logits
        found = compile_forward(model)(ids[:, :1], past_key_values=caches[1]).logits
    torch.testing.assert_close(found, expected)
    assert {site.pages for site in seen.sites} == {f"{format} pages of {pool.geometry.page}"}
