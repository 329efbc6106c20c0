"""SmolLM2 with its trained weights over a PooledCache, eager and compiled: DynamicCache's tokens, greedy, by beams, padded."""

import copy

import pytest
import torch
from transformers import DynamicCache

from mla_compiler import KVPool, PooledCache
from tests.harness import FAST, watching

TEXTS = ["The capital of France is", "A page of a cache holds the keys and values of sixty-four tokens, so that"]
WAYS = {"greedy": ([0], {}), "beams": ([1], {"num_beams": 4}), "padded batch": ([0, 1], {})}
NEW = 64


@pytest.fixture(scope="module", params=[False, True], ids=["eager", "compiled"])
def subject(request, smollm2):
    """The model that meets the pool, whether it is compiled, and the one that does not."""
    plain, tokenizer = smollm2
    model, tokenizer = copy.copy(plain), copy.deepcopy(tokenizer)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    if request.param:
        model.forward = torch.compile(model.forward, fullgraph=True, backend="flashmla", options=FAST)
    return model, request.param, plain, tokenizer


def over_pages(model, compiled, rows):
    """Pages of 16 tokens: a row takes several, and beams share and copy them."""
    config = model.config
    if not compiled:
        return PooledCache(config, tokens=4096, page=16)
    pool = KVPool(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, tokens=4096, page=16)
    cache = PooledCache(config, pool=pool)
    cache.early_initialization(rows, config.num_key_value_heads, config.head_dim, torch.float32, "cpu")
    return cache


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_dynamic_cache(subject, way):
    (model, compiled, plain, tokenizer), (rows, options) = subject, WAYS[way]
    inputs = tokenizer([TEXTS[row] for row in rows], return_tensors="pt", padding=True)
    cache = over_pages(model, compiled, len(rows) * options.get("num_beams", 1))
    with watching() as seen:
        found = model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=NEW, **options)
    expected = plain.generate(
        **inputs, past_key_values=DynamicCache(config=plain.config), do_sample=False, max_new_tokens=NEW, **options
    )
    assert torch.equal(found, expected) and found.shape[1] > inputs["input_ids"].shape[1]
    assert {site.pages for site in seen.graphs[1]} == {"pages of 16"} if compiled else not seen.graphs
