"""SmolLM2 with its trained weights over a PooledCache: DynamicCache's tokens, greedy, by beams and for a padded batch."""

import copy

import pytest
import torch
from transformers import DynamicCache

from mla_compiler import PooledCache

TEXTS = ["The capital of France is", "A page of a cache holds the keys and values of sixty-four tokens, so that"]
WAYS = {"greedy": ([0], {}), "beams": ([1], {"num_beams": 4}), "padded batch": ([0, 1], {})}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_dynamic_cache(smollm2, way):
    """Pages of 16 tokens: a row takes several, and beams share and copy them."""
    (model, tokenizer), (rows, options) = smollm2, WAYS[way]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    inputs = tokenizer([TEXTS[row] for row in rows], return_tensors="pt", padding=True)
    found = [
        model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=12, **options)
        for cache in (PooledCache(model.config, tokens=4096, page=16), DynamicCache(config=model.config))
    ]
    assert torch.equal(*found) and found[0].shape[1] > inputs["input_ids"].shape[1]
