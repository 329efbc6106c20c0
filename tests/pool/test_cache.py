"""generate with a PooledCache gives DynamicCache's tokens, and gives its pages back."""

import copy

import pytest
import torch
import transformers as hf

from mla_compiler import KVPool, PooledCache, PoolError, PoolExhausted

COMMON = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
          "max_position_embeddings": 256, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


def llama():
    torch.manual_seed(1)
    return hf.LlamaForCausalLM(hf.LlamaConfig(num_hidden_layers=3, **COMMON)).eval()


def gemma():
    """Five layers, of which the fourth sees everything and the others 8 tokens."""
    torch.manual_seed(2)
    kinds = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(num_hidden_layers=5, layer_types=kinds, sliding_window=8, **COMMON)).eval()


def latent():
    """DeepSeek-V3: what it caches is one head of latents, keys and values of different widths."""
    torch.manual_seed(3)
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "eos_token_id", "pad_token_id")
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(
        num_hidden_layers=2, first_k_dense_replace=2, kv_lora_rank=16, q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, num_key_value_heads=4,
        **{name: COMMON[name] for name in same})).eval()


MODELS = {"llama": llama, "gemma": gemma, "latent": latent}
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 3.0},
    "beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 3},
}


def prompt(model, rows=2, tokens=11, padded=False):
    torch.manual_seed(7)
    ids = torch.randint(2, model.config.vocab_size, (rows, tokens))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
        ids[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model, cache, inputs, **way):
    torch.manual_seed(11)
    return model.generate(**inputs, past_key_values=cache, max_new_tokens=20, **way)


@pytest.mark.parametrize("way, padded", [("greedy", False), *((way, True) for way in WAYS)])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_dynamic_cache(name, way, padded):
    model = MODELS[name]()
    inputs = prompt(model, padded=padded)
    cache = PooledCache(model.config, tokens=1024, page=4)
    found = generated(model, cache, inputs, **WAYS[way])
    assert torch.equal(found, generated(model, hf.DynamicCache(config=model.config), inputs, **WAYS[way]))
    assert cache.get_seq_length() == 11 + 20 - 1
    cache.release()
    assert cache.pool.stats().held == 0


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_assisted_generation(name, sample):
    model, inputs = MODELS[name](), prompt(MODELS[name](), rows=1)
    assistant = MODELS[name]()
    with torch.no_grad():
        for weight in assistant.parameters():  # right now and then, so that some candidates stay and some are cropped
            weight.add_(0.1 * weight.std() * torch.randn_like(weight)) if weight.numel() > 1 else None
    way = {"assistant_model": assistant, "do_sample": sample}
    cache = PooledCache(model.config, tokens=512, page=4)
    found = generated(model, cache, inputs, **way)
    assert torch.equal(found, generated(model, hf.DynamicCache(config=model.config), inputs, **way))


def test_prompt_lookup_crops():
    model, inputs = gemma(), prompt(gemma(), rows=1)
    inputs = {name: x.repeat(1, 3) for name, x in inputs.items()}
    found = generated(model, PooledCache(model.config, tokens=512, page=4), inputs, prompt_lookup_num_tokens=3, do_sample=False)
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, prompt_lookup_num_tokens=3, do_sample=False)
    assert torch.equal(found, expected)


def test_pages_behind_the_window_are_freed():
    model = gemma()
    cache = PooledCache(model.config, tokens=512, page=4)
    generated(model, cache, prompt(model), do_sample=False)
    held = {group.window: [len(sequence.pages) for sequence in group.sequences] for group in cache.groups}
    assert held == {8: [3, 3], None: [8, 8]}  # of 30 tokens: those from 23 on, and all


def test_one_pool_serves_many_caches_and_takes_back_what_is_forgotten():
    model = llama()
    pool = KVPool(layers=3, kv_heads=2, k_dim=8, tokens=256, page=4)
    for _ in range(6):  # 6 batches of 2 x 30 tokens in a pool of 256
        generated(model, PooledCache(model.config, pool=pool), prompt(model), do_sample=False)
    assert pool.stats().held == 0


def test_a_copy_is_a_fork():
    model, pool = gemma(), KVPool(layers=1, kv_heads=2, k_dim=8, tokens=2048, page=4)
    inputs, first = prompt(model), PooledCache(model.config, pool=pool)
    ids = inputs["input_ids"]
    with torch.no_grad():
        model(ids[:, :-1], past_key_values=first)
    held, copies = pool.stats().held, [copy.deepcopy(first) for _ in range(3)]
    assert pool.stats().held == held == pool.stats().shared
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    for one in [*copies, first]:
        assert torch.equal(generated(model, one, inputs, do_sample=False), expected)


def test_batches_repeat_and_select_as_in_dynamic_cache():
    model, inputs = gemma(), prompt(gemma())
    caches = PooledCache(model.config, tokens=512, page=4), hf.DynamicCache(config=model.config)
    logits = []
    for cache in caches:
        with torch.no_grad():
            model(inputs["input_ids"], past_key_values=cache)
            cache.batch_repeat_interleave(3)
            model(torch.arange(10, 16)[:, None], past_key_values=cache)
            cache.batch_select_indices(torch.tensor([4, 1, 1]))
            model(torch.arange(20, 23)[:, None], past_key_values=cache)
            cache.batch_select_indices(torch.tensor([True, False, True]))
            logits.append(model(torch.arange(30, 32)[:, None], past_key_values=cache).logits)
    assert torch.equal(logits[0].argmax(-1), logits[1].argmax(-1))
    torch.testing.assert_close(*logits)


def test_exhaustion_changes_nothing():
    model, inputs = gemma(), prompt(gemma())["input_ids"]
    pool = KVPool(layers=1, kv_heads=2, k_dim=8, tokens=4 * 2 * 5 * 3, page=4)  # three pages for each row and layer
    cache = PooledCache(model.config, pool=pool)
    with torch.no_grad():
        model(inputs, past_key_values=cache)
        before = pool.stats()
        with pytest.raises(PoolExhausted, match=r"\d+ pages needed"):
            model(inputs.repeat(1, 3), past_key_values=cache)
        assert pool.stats() == before and cache.get_seq_length() == 11
        after = model(inputs[:, :1], past_key_values=cache).logits
        expected = model(torch.cat([inputs, inputs[:, :1]], 1)).logits[:, -1:]
    torch.testing.assert_close(after, expected)


def test_what_is_refused():
    model = gemma()
    with pytest.raises(PoolError, match="a pool, or the size"):
        PooledCache(model.config)
    with pytest.raises(PoolError, match="caches as LinearAttentionLayer"):
        PooledCache(hf.Qwen3NextConfig(num_hidden_layers=2), tokens=64)
    with pytest.raises(PoolError, match="the pool takes k"):
        generated(model, PooledCache(model.config, pool=KVPool(1, 2, 16, tokens=64)), prompt(model))
    cache = PooledCache(model.config, tokens=512)
    generated(model, cache, prompt(model))
    with pytest.raises(PoolError, match="has moved on"):
        cache.crop(-1)
    with pytest.raises(PoolError, match="crop takes minus"):
        cache.crop(3)
