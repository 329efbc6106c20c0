"""The models measured end to end: shapes, cases, and the bars each case must clear."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .bars import Bar, Limit

LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 8,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}
"""Llama-3-8B, with 8 of its 32 layers."""

LLAMA_70B = {
    "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 4,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}
"""Llama-3-70B, with 4 of its 80 layers."""

DEEPSEEK_V3 = {
    "vocab_size": 1024, "hidden_size": 7168, "intermediate_size": 256, "num_hidden_layers": 2, "first_k_dense_replace": 2,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "max_position_embeddings": 65536,
}
"""DeepSeek-V3's attention, 2 layers of 61, between next to nothing: small dense MLPs and a small vocabulary."""

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}
"""SmolLM2-135M."""

TINY = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}
"""For a look at the program itself."""

TINY_LATENT = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "first_k_dense_replace": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "max_position_embeddings": 4096,
}
"""The same, of latent attention."""

_8B, _70B, _LATENT = "Llama-8B, 8 layers", "Llama-70B, 4 layers", "DeepSeek-V3's attention, 2 layers"
SHAPES: dict[str, tuple[str, Mapping[str, Any]]] = {
    _8B: ("Llama", LLAMA_8B), _70B: ("Llama", LLAMA_70B), _LATENT: ("DeepseekV3", DEEPSEEK_V3),
}
"""transformers' name of the architecture, and its sizes."""
TINY_SHAPES: Mapping[str, Mapping[str, Any]] = {"Llama": TINY, "DeepseekV3": TINY_LATENT}

EAGER, INDUCTOR, FLEX, FLASHMLA = "eager", "inductor", "flex", "flashmla"
COLUMNS = {
    EAGER: "eager, sdpa", INDUCTOR: "Inductor, sdpa", FLEX: "Inductor, flex_attention by hand", FLASHMLA: "flashmla",
}


@dataclass(frozen=True)
class Case:
    """One forward. Prefill of `context` tokens without a cache, or one step at `context` of a static cache of `cache`.

    gib: of device memory that a process compiling one column takes, roughly: so many run beside each other.
    """

    name: str
    batch: int
    context: int
    cache: int = 0
    bars: tuple[Bar | Limit, ...] = ()
    shape: str = _8B
    columns: tuple[str, ...] = tuple(COLUMNS)
    gib: int = 20

    @property
    def decode(self) -> bool:
        return self.cache > 0

    def shrunk(self, divisor: int) -> Case:
        """The same case, `divisor` times shorter, with no bar."""
        context, cache = max(self.context // divisor, 8), -(-self.cache // divisor)
        return dataclasses.replace(self, batch=min(self.batch, 2), context=context, cache=cache, bars=())


_NOT_SLOWER = Bar(FLEX, 1.0)
NEEDED = "x (weights + caches)"
"""The unit of peak memory in bytes over the bytes of the weights and of the caches."""


def _llama_70b(batch: int, ratio: float) -> Case:
    bars = (Bar(INDUCTOR, ratio), _NOT_SLOWER, Limit(NEEDED, 1.05))
    return Case(f"70B decode B={batch}, 2k of 4k", batch, 2048, 4096, bars, _70B, gib=18)


def _latent(name: str, batch: int, context: int, cache: int, gib: int, *bars: Bar | Limit) -> Case:
    """Without FlexAttention, which has no kernel for these head dims in a batch."""
    return Case(f"latent {name}", batch, context, cache, bars, _LATENT, (EAGER, INDUCTOR, FLASHMLA), gib)


GPU_CASES = (
    Case("prefill 32k", 1, 32768, bars=(
        Bar(INDUCTOR, 2.1), Bar(EAGER, 1.1), Bar(EAGER, 1.0, "memory"), _NOT_SLOWER, Bar(FLEX, 1.25), Limit("ms", 300),
        Limit("ms", 285, goal=True))),
    Case("prefill 8k", 1, 8192, bars=(Bar(INDUCTOR, 1.3), _NOT_SLOWER), gib=10),
    Case("decode B=16, 8k of 16k", 16, 8192, 16384, (Bar(INDUCTOR, 5.0), _NOT_SLOWER, Bar(FLEX, 1.2), Limit("ms", 3.9))),
    Case("decode B=16, 2k of 4k", 16, 2048, 4096, (Bar(INDUCTOR, 2.5), _NOT_SLOWER, Limit("ms", 2.6)), gib=13),
    Case("decode B=1, 32k", 1, 32768, 33024, (Bar(INDUCTOR, 2.0), _NOT_SLOWER, Limit("ms", 2.45)), gib=10),
    _llama_70b(16, 2.4),
    _llama_70b(32, 2.67),
    _latent("decode B=4, 8k of 16k", 4, 8192, 16384, 14, Bar(INDUCTOR, 25.0), Limit("ms", 0.6), Limit(NEEDED, 1.05)),
    _latent("decode B=1, 32k", 1, 32768, 33024, 10, Bar(INDUCTOR, 13.0), Limit(NEEDED, 1.05)),
    _latent("prefill 8k", 1, 8192, 0, 8, Bar(INDUCTOR, 1.5)),
)

CPU_CASES = (Case("decode B=1, 256 of 4k", 1, 256, 4096, (Bar(INDUCTOR, 1.0),)),)
