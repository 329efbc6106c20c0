"""SmolLM2 (grouped queries: 9 heads, 3 KV heads of 64) as transformers' DeepseekV2ForCausalLM, exactly, trained weights and all

    rope key  = the keys of the 3 KV heads, rotated: 192 channels, by DeepSeek's pairs (2p, 2p + 1); a head's query is 0 where
                the key is another's, and longrope factors give each pair the frequency it had
    latent    = [SCALE * values of the 3 KV heads; 0; BIAS], rank 194; BIAS makes kv_a_layernorm a constant but for 1e-6
    kv_b_proj = 0 for the key without rope, the head's own values for v
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, PreTrainedModel

HEADS, KV_HEADS, DIM, HIDDEN, LAYERS = 9, 3, 64, 576, 30
GROUP, PAIRS = HEADS // KV_HEADS, KV_HEADS * DIM // 2
THETA, RANK, ROPE = 100000.0, 194, 2 * KV_HEADS * DIM // 2
SCALE, BIAS = 2.0**-4, 1024.0


def as_latent(source: PreTrainedModel) -> PreTrainedModel:
    """The same function of the same tokens, in float32."""
    model = DeepseekV2ForCausalLM(_config()).eval()
    weights = {name: x for name, x in source.state_dict().items() if name in model.state_dict()}
    for layer in range(LAYERS):
        weights |= _layer(source.model.layers[layer].self_attn, f"model.layers.{layer}.self_attn.")
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    model.tie_weights()
    model.generation_config = source.generation_config
    return model


def _config() -> DeepseekV2Config:
    wanted = THETA ** -(torch.arange(PAIRS, dtype=torch.float64) % (DIM // 2) / (DIM // 2))
    given = THETA ** -(torch.arange(PAIRS, dtype=torch.float64) / PAIRS)
    factors = (given / wanted).tolist()
    return DeepseekV2Config(
        vocab_size=49152, hidden_size=HIDDEN, intermediate_size=1536, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, n_routed_experts=2, n_shared_experts=1, num_experts_per_tok=1, n_group=1, topk_group=1,
        moe_intermediate_size=64, first_k_dense_replace=LAYERS, kv_lora_rank=RANK, q_lora_rank=None, qk_rope_head_dim=ROPE,
        qk_nope_head_dim=DIM, v_head_dim=DIM, head_dim=ROPE, max_position_embeddings=8192, rms_norm_eps=1e-5,
        tie_word_embeddings=True, attention_bias=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": THETA, "short_factor": factors, "long_factor": factors,
            "attention_factor": 1.0, "original_max_position_embeddings": 8192,
        },
    )


def _layer(old: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """The attention of one layer."""
    key = old.k_proj.weight.detach().view(KV_HEADS, 2, DIM // 2, HIDDEN).transpose(1, 2).reshape(ROPE, HIDDEN)
    query = torch.zeros(HEADS, DIM + ROPE, HIDDEN)
    paired = old.q_proj.weight.detach().view(HEADS, 2, DIM // 2, HIDDEN).transpose(1, 2).reshape(HEADS, DIM, HIDDEN)
    values = torch.zeros(HEADS, 2 * DIM, RANK)
    for head in range(HEADS):
        start = head // GROUP * DIM
        query[head, DIM + start:DIM + start + DIM] = paired[head] * ((DIM + ROPE) / DIM) ** 0.5
        values[head, DIM:, start:start + DIM] = torch.eye(DIM) / SCALE
    down, bias = torch.zeros(RANK + ROPE, HIDDEN), torch.zeros(RANK + ROPE)
    down[:KV_HEADS * DIM], down[RANK:], bias[RANK - 1] = old.v_proj.weight.detach() * SCALE, key, BIAS
    return {
        prefix + "q_proj.weight": query.reshape(-1, HIDDEN), prefix + "kv_a_proj_with_mqa.weight": down,
        prefix + "kv_a_proj_with_mqa.bias": bias, prefix + "kv_a_layernorm.weight": torch.full((RANK,), BIAS / RANK**0.5),
        prefix + "kv_b_proj.weight": values.reshape(-1, RANK), prefix + "o_proj.weight": old.o_proj.weight.detach(),
        prefix + "o_proj.bias": torch.zeros(HIDDEN),
    }
