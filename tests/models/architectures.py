"""Tiny configurations of the architectures of transformers: a few heads, a vocabulary of 99, layers enough for each kind.

Weights are drawn wide (variance 1 / fan-in), so that a wrong mask or score moves every logit far beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from transformers import PreTrainedModel

from tests.models import latents

VOCABULARY = 99
WINDOW = 8
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_DECODER = {**_SIZES, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128}
_MIXED = ["sliding_attention", "full_attention"]
_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


@dataclass(frozen=True)
class Architecture:
    """One model family. `sites` counts the attentions of one forward; `decode_sites` those of a decode step with a cache.

    `kind`: decoder, encoder, encoder_decoder, vision or two_towers. `positions`: takes position_ids.
    `window`: some layers see only the last WINDOW keys. `caches`: those it can decode with: Falcon's
    ALiBi fails in eager with a static cache, MPT slices by its length counter, which Dynamo cannot trace.
    """

    name: str
    kind: str
    build: Callable[[], PreTrainedModel]
    sites: int = 2
    decode_sites: int = 2
    positions: bool = True
    window: bool = False
    caches: tuple[str, ...] = ("static", "dynamic")


def _causal(config: type, **changes: object) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        return hf.AutoModelForCausalLM.from_config(config(**{**_DECODER, **_NO_SPECIAL_TOKENS, **changes}))

    return build


def _bert() -> PreTrainedModel:
    return hf.BertModel(hf.BertConfig(**_SIZES, intermediate_size=48, max_position_embeddings=64))


def _t5() -> PreTrainedModel:
    return hf.T5ForConditionalGeneration(hf.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=VOCABULARY, decoder_start_token_id=1,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, pad_token_id=0, eos_token_id=None,
    ))


def _whisper() -> PreTrainedModel:
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=VOCABULARY, num_mel_bins=4, max_source_positions=12,
        max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=None, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    ))


def _vit() -> PreTrainedModel:
    return hf.ViTModel(hf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4
    ))


def _clip() -> PreTrainedModel:
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text = {**tower, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**tower, "image_size": 16, "patch_size": 4}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def _gpt_oss() -> Callable[[], PreTrainedModel]:
    return _causal(
        hf.GptOssConfig, head_dim=8, num_local_experts=4, num_experts_per_tok=2, intermediate_size=16,
        sliding_window=WINDOW, layer_types=_MIXED,
    )


def _mpt() -> PreTrainedModel:
    return hf.MptForCausalLM(hf.MptConfig(
        d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=64, vocab_size=VOCABULARY, eos_token_id=None,
    ))


def _gpt2() -> PreTrainedModel:
    return hf.GPT2LMHeadModel(hf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCABULARY, **_NO_SPECIAL_TOKENS
    ))


def _smollm3() -> Callable[[], PreTrainedModel]:
    return _causal(hf.SmolLM3Config, no_rope_layers=[1, 0], use_sliding_window=False)


ARCHITECTURES = {a.name: a for a in (
    Architecture("llama", "decoder", _causal(hf.LlamaConfig)),
    Architecture("mistral", "decoder", _causal(hf.MistralConfig, sliding_window=WINDOW), window=True),
    Architecture("qwen2", "decoder", _causal(hf.Qwen2Config)),
    Architecture("qwen3", "decoder", _causal(hf.Qwen3Config, head_dim=16)),
    Architecture("phi3", "decoder", _causal(hf.Phi3Config)),
    Architecture("smollm3", "decoder", _smollm3()),
    Architecture("gemma2", "decoder", _causal(
        hf.Gemma2Config, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=_MIXED), window=True),
    Architecture("gemma3", "decoder", _causal(
        hf.Gemma3TextConfig, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=_MIXED),
        window=True),
    Architecture("cohere2", "decoder", _causal(hf.Cohere2Config, sliding_window=WINDOW, layer_types=_MIXED), window=True),
    Architecture("gpt_oss", "decoder", _gpt_oss(), window=True),
    Architecture("bloom", "decoder", _causal(hf.BloomConfig, n_head=4, n_layer=2), positions=False),
    Architecture("mpt", "decoder", _mpt, positions=False, caches=("dynamic",)),
    Architecture("gpt2", "decoder", _gpt2),
    Architecture("falcon_alibi", "decoder", _causal(
        hf.FalconConfig, alibi=True, new_decoder_architecture=False, multi_query=False), positions=False, caches=("dynamic",)),
    Architecture("falcon_rope", "decoder", _causal(
        hf.FalconConfig, alibi=False, new_decoder_architecture=True, num_kv_heads=2)),
    Architecture("opt", "decoder", _causal(hf.OPTConfig, ffn_dim=48, word_embed_proj_dim=32), positions=False),
    *(Architecture(name, "decoder", latents.builder(name), sites=latents.sites(name), decode_sites=latents.sites(name))
      for name in latents.NAMES if name not in latents.BREAKS),
    Architecture("bert", "encoder", _bert, caches=()),
    Architecture("t5", "encoder_decoder", _t5, sites=6, decode_sites=4),
    Architecture("whisper", "encoder_decoder", _whisper, sites=6, decode_sites=4),
    Architecture("vit", "vision", _vit, caches=()),
    Architecture("clip", "two_towers", _clip, sites=4, caches=()),
)}


def model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same weights each time, drawn in float32 and rounded to `dtype`; in eval mode."""
    torch.manual_seed(0)
    built = (ARCHITECTURES[name].build if name in ARCHITECTURES else latents.builder(name))().eval()
    with torch.no_grad():
        for weight_name, weight in built.named_parameters():
            _draw(weight_name, weight)
    return widened(built) if dtype == torch.float64 else built.to(dtype)


def widened(subject: PreTrainedModel) -> PreTrainedModel:
    """In float64, where grouped matmul is not to be had."""
    if hasattr(subject, "set_experts_implementation"):
        subject.set_experts_implementation("eager")
    return subject.to(torch.float64)


def _draw(name: str, weight: torch.Tensor) -> None:
    if weight.dim() >= 2:
        weight.normal_(0, weight.shape[-1] ** -0.5)
    elif name.endswith(("bias", "sinks")):
        weight.normal_(0, 0.3)
