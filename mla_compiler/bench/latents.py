"""The attentions over latents measured as kernels: DeepSeek's decode of 128 heads, or of 16 (one GPU of 8), chosen tokens.

    q [batch, heads, queries, rank + rope]    latent [batch, keys, rank]    rope [batch, keys, rope]
    query i of sequence b stands at p = live[b] - queries + i and sees j <= p, or those of its `tokens` chosen j that are
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from .attentions import DENSE, K
from .bars import Bar, Limit

LATENT = "latent"
FLASHMLA_PEER = "deepseek"
RIDGE = 200
"""Flops for each byte where an H100's products take as long as its reads."""
PAGE = 64


@dataclass(frozen=True)
class Latent:
    """One case. live: keys of each sequence; tokens: chosen by each query, 0 for all; dense: see Attention."""

    name: str
    batch: int
    heads: int
    keys: int
    queries: int = 1
    live: tuple[int, ...] = ()
    tokens: int = 0
    paged: bool = False
    dense: bool = False
    bars: tuple[Bar | Limit, ...] = ()
    rank: int = 512
    rope: int = 64
    toy: bool = False

    group = LATENT

    @property
    def scale(self) -> float:
        """Of DeepSeek-V3's expanded keys, 128 + 64 wide."""
        return float(192**-0.5)

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.live or (self.keys,) * self.batch

    @property
    def spec(self) -> str:
        """The text of AttentionSpec. T0: the first query's position [batch]."""
        return f"score: {self.scale!r}*s; hi: T0[b] + 1" if self.queries == 1 else f"score: {self.scale!r}*s; hi: T0[b] + i + 1"

    @property
    def pairs(self) -> int:
        """(query, key) pairs of one head, over the batch."""
        if self.tokens:
            return self.batch * self.queries * self.tokens
        return sum(sum(range(length - self.queries + 1, length + 1)) for length in self.lengths)

    @property
    def flops(self) -> int:
        """Of both products: 2 (rank + rope + rank) for each pair and head."""
        return 2 * (2 * self.rank + self.rope) * self.pairs * self.heads

    def live_bytes(self, dtype: torch.dtype) -> int:
        """Of the latents, each once for a query that chose it, or once for all queries."""
        read = self.batch * self.queries * self.tokens if self.tokens else sum(self.lengths)
        return read * (self.rank + self.rope) * dtype.itemsize

    def read_bytes(self, dtype: torch.dtype) -> int:
        """Of queries and live latents."""
        return self.live_bytes(dtype) + self.batch * self.heads * self.queries * (self.rank + self.rope) * dtype.itemsize

    @property
    def unit(self) -> str:
        """Of the floor that binds."""
        return "TFLOP/s" if self.flops > RIDGE * self.live_bytes(torch.bfloat16) else "TB/s"

    def work(self, dtype: torch.dtype) -> int:
        """Bytes or flops, as the unit has it."""
        return self.flops if self.unit == "TFLOP/s" else self.live_bytes(dtype)

    def shrunk(self) -> Latent:
        """The same case, 128 times shorter, with few heads and no bar; whole pages."""
        live = tuple(max(length // 128, 8) for length in self.live[:2])
        return dataclasses.replace(
            self, batch=min(self.batch, 2), heads=self.heads // 16, keys=-(-self.keys // 128 // PAGE) * PAGE, live=live,
            queries=min(self.queries, 8), tokens=self.tokens // 128, rank=32, rope=16, bars=(), toy=True)


FASTER = Bar(FLASHMLA_PEER, 1.0)
GOAL = Bar(FLASHMLA_PEER, 1.0, goal=True)


def _points(heads: int) -> tuple[Latent, ...]:
    """The seven points FlashMLA was measured at."""
    found = []
    for batch, kilo in ((1, 8), (4, 8), (1, 32), (16, 8), (64, 4), (128, 4), (128, 8)):
        bars: tuple[Bar | Limit, ...] = (FASTER,) if batch <= 16 else (GOAL,)
        if (batch, kilo) == (1, 8):
            bars += (Limit("us", 20),)
        if batch >= 64 and heads == 128:
            bars += (Bar(FLASHMLA_PEER, 0.85),)
        if (batch, kilo, heads) == (128, 8, 16):
            bars += (Limit("TB/s", 2.8, least=True),)
        found.append(Latent(f"latent {heads} heads, B={batch} {kilo}k", batch, heads, kilo * K, bars=bars))
    return tuple(found)


LATENTS = (
    *_points(128), *_points(16),
    Latent("latent 128 heads, B=16 8k, paged", 16, 128, 8 * K, paged=True, bars=(FASTER,)),
    Latent("latent 128 heads, B=64 4k, paged", 64, 128, 4 * K, paged=True, bars=(GOAL, Bar(FLASHMLA_PEER, 0.85))),
    Latent("latent 128 heads, B=16 8k, 2 queries", 16, 128, 8 * K, queries=2, bars=(FASTER,)),
    Latent("latent 128 heads, B=16 8k, 4 queries", 16, 128, 8 * K, queries=4, bars=(FASTER,)),
    Latent("latent 128 heads, B=16, 1 of 32k, 15 of 1k", 16, 128, 32 * K, live=(32 * K, *(K,) * 15), bars=(FASTER,)),
    Latent("latent tokens, B=16, 2048 of 32k", 16, 128, 32 * K, tokens=2048, dense=True, bars=(Limit(DENSE, 5, least=True),)),
    Latent("latent tokens, 4096 queries, 2048 of 32k", 1, 128, 32 * K, queries=4096, tokens=2048,
           bars=(Limit("TFLOP/s", 400, least=True),)),
)
"""bf16, rank 512 and rope 64, latents contiguous as transformers caches them, unless they are paged."""
