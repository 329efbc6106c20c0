"""What is measured: model shapes, cases, and the bars each case must clear.

    bar   flashmla >= ratio x peer, in speed or in (less) memory
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 8,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}
"""Llama-3-8B, with 8 of its 32 layers."""

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

EAGER, INDUCTOR, FLEX, FLASHMLA = "eager", "inductor", "flex", "flashmla"
COLUMNS = {
    EAGER: "eager, sdpa", INDUCTOR: "Inductor, sdpa", FLEX: "Inductor, flex_attention by hand", FLASHMLA: "flashmla",
}


@dataclass(frozen=True)
class Bar:
    """flashmla must be at least `ratio` times as good as `peer`: in time, or in peak memory."""

    peer: str
    ratio: float
    of: str = "time"

    def __str__(self) -> str:
        return f">= {self.ratio:g}x {self.peer}" + ("" if self.of == "time" else f" in {self.of}")


@dataclass(frozen=True)
class Case:
    """One forward. Prefill of `context` tokens without a cache, or one step at `context` of a static cache of `cache`."""

    name: str
    batch: int
    context: int
    cache: int = 0
    bars: tuple[Bar, ...] = ()

    @property
    def decode(self) -> bool:
        return self.cache > 0

    def shrunk(self, divisor: int) -> Case:
        """The same case, `divisor` times shorter, with no bar."""
        context, cache = max(self.context // divisor, 8), -(-self.cache // divisor)
        return dataclasses.replace(self, batch=min(self.batch, 2), context=context, cache=cache, bars=())


_NOT_SLOWER = Bar(FLEX, 1.0)

GPU_CASES = (
    Case("prefill 32k", 1, 32768, bars=(Bar(INDUCTOR, 2.1), Bar(EAGER, 1.1), Bar(EAGER, 1.0, "memory"), _NOT_SLOWER)),
    Case("prefill 8k", 1, 8192, bars=(Bar(INDUCTOR, 1.3), _NOT_SLOWER)),
    Case("decode B=16, 8k of 16k", 16, 8192, 16384, (Bar(INDUCTOR, 5.0), _NOT_SLOWER)),
    Case("decode B=16, 2k of 4k", 16, 2048, 4096, (Bar(INDUCTOR, 2.5), _NOT_SLOWER)),
    Case("decode B=1, 32k", 1, 32768, 33024, (Bar(INDUCTOR, 2.0), _NOT_SLOWER)),
)

CPU_CASES = (Case("decode B=1, 256 of 4k", 1, 256, 4096, (Bar(INDUCTOR, 1.0),)),)
