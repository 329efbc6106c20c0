"""The attentions measured as kernels: shapes, what a query sees, the work, and the bars each case must clear.

    q [batch, heads, queries, head_dim]    k, v [batch, kv_heads, keys, head_dim | value_dim]
    query i of sequence b stands at position p = live[b] - queries + i and sees j <= p, p - window < j, same document
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pool.formats import PAIRS
from .bars import BEST, BEST_SDPA, Bar, Limit

PREFILL, DECODE, POOL = "prefill", "decode", "pool"
WIDTH = 128
"""Keys of a tile, of which one in `every` matters."""
COMPILE_S, DENSE = "s to compile", "x ours, dense"
"""Units: seconds of the first call; speed over ours of the same operands, all of what is causal seen, nothing left out, keys
and values in one piece."""

K = 1024


PACKED = (
    "residue: T0[0, i] == T0[0, j]; tile: where((T1[0, i//64, 1] < T1[0, j//64, 0]) | (T1[0, j//64, 1] < T1[0, i//64, 0]), 0, "
    "where((T1[0, i//64, 0] == T1[0, j//64, 1]) & (T1[0, i//64, 1] == T1[0, j//64, 0]), 2, 1))"
)
"""What packed documents add to a spec: the same id, and the class of a tile by the ids' bounds."""


@dataclass(frozen=True)
class Attention:
    """One case. window: keys a query sees at most, 0 for all; documents: equal ones packed; live: keys of each sequence.

    sparsity: the policy; one tile of keys in `every` matters. format: a pair's name, of the
    pages where keys and values lie in some.
    """

    name: str
    group: str
    batch: int
    queries: int
    keys: int
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    value_dim: int = 128
    window: int = 0
    documents: int = 1
    live: tuple[int, ...] = ()
    sparsity: str = ""
    every: int = 1
    format: str = ""
    bars: tuple[Bar | Limit, ...] = ()
    toy: bool = False

    @property
    def sharing(self) -> int:
        """Query heads of one KV head."""
        return self.heads // self.kv_heads

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.live or (self.keys,) * self.batch

    @property
    def equal(self) -> bool:
        """Whether every sequence has as many live keys."""
        return len(set(self.lengths)) == 1

    @property
    def document(self) -> int:
        """Tokens of one document."""
        return self.keys // self.documents

    @property
    def dense(self) -> bool:
        """Whether ours is timed without what makes the case sparse, or its keys lie in pages, too."""
        return self.documents > 1 or bool(self.sparsity or self.format)

    @property
    def decode(self) -> bool:
        """Whether it is a step over a cache."""
        return self.group in (DECODE, POOL)

    @property
    def unit(self) -> str:
        return "TB/s" if self.decode else "TFLOP/s"

    def work(self, dtype: torch.dtype) -> int:
        """Bytes or flops, as the unit has it."""
        return self.live_bytes(dtype) if self.decode else self.flops

    @property
    def spec(self) -> str:
        """The text of AttentionSpec. T0: in decode the first query's position [batch]; if packed, document ids [1, keys], and
        T1 their bounds, as the pipeline asks for them."""
        hi = "i + 1" if self.group == PREFILL else "T0[b] + 1" if self.queries == 1 else "T0[b] + i + 1"
        parts = [f"score: {self.scale!r}*s", f"hi: {hi}", f"group: {self.sharing}"]
        if self.window:
            parts.insert(1, f"lo: max(0, i - {self.window - 1})")
        parts = parts[:-1] + ([PACKED] if self.documents > 1 else []) + parts[-1:]
        return "; ".join([*parts, f"sparsity: {self.sparsity}"] if self.sparsity else parts)

    def visible(self, b: int, i: Tensor, j: Tensor) -> Tensor:
        """Bool: whether query i of sequence b sees key j, from the words above and not from the spec."""
        at = i + (self.lengths[b] - self.queries)
        seen = (j <= at) & (i // self.document == j // self.document if self.documents > 1 else j >= 0)
        return seen & (at - j < self.window) if self.window else seen

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one head, over the batch."""
        reach = min(self.window or self.keys, self.document)
        first = [length - self.queries for length in self.lengths]
        if self.documents > 1:
            return self.batch * self.documents * _staircase(0, self.document, reach)
        return sum(_staircase(at, self.queries, reach) for at in first)

    @property
    def flops(self) -> int:
        """Of both products: 2 (head_dim + value_dim) for each visible pair and head."""
        return 2 * (self.head_dim + self.value_dim) * self.pairs * self.heads

    def live_bytes(self, dtype: torch.dtype) -> int:
        """Of the live keys and values."""
        k, v = PAIRS[self.format or "plain"]
        row = k.row_bytes(self.head_dim, dtype, keys=True) + v.row_bytes(self.value_dim, dtype, keys=False)
        return sum(self.lengths) * self.kv_heads * row

    def read_bytes(self, dtype: torch.dtype) -> int:
        """Of queries, live keys and values."""
        return self.live_bytes(dtype) + self.batch * self.heads * self.queries * self.head_dim * dtype.itemsize

    def shrunk(self) -> Attention:
        """The same case, 128 times shorter, with no bar."""
        queries = self.queries if self.decode else max(self.queries // 128, 16)
        live = tuple(max(length // 128, 8) for length in self.live[:2])
        return dataclasses.replace(
            self, batch=min(self.batch, 2), queries=queries, keys=max(self.keys // 128, 16), heads=self.sharing * 2, kv_heads=2,
            window=self.window // 128, live=live, bars=(), toy=True)


def _staircase(first: int, rows: int, reach: int) -> int:
    """sum over rows r of min(first + r + 1, reach)."""
    rising = max(0, min(rows, reach - first))
    return rising * first + rising * (rising + 1) // 2 + (rows - rising) * reach


def _prefill(name: str, length: int, *bars: Bar | Limit, **shape: int) -> Attention:
    return Attention(name, PREFILL, 1, length, length, bars=bars, **shape)  # type: ignore[arg-type]


def _decode(batch: int, kilo: int, *bars: Bar | Limit) -> Attention:
    return Attention(f"decode B={batch} {kilo}k", DECODE, batch, 1, kilo * K, bars=(Bar(BEST, 1.0), *bars))


_FA3_GOAL = Bar("fa3", 1.0, goal=True)
ATTENTIONS = (
    _prefill("prefill causal 2k", 2 * K),
    _prefill("prefill causal 8k", 8 * K, Limit("TFLOP/s", 600, least=True), _FA3_GOAL),
    _prefill("prefill causal 32k", 32 * K, Limit("TFLOP/s", 650, least=True), _FA3_GOAL),
    _prefill("prefill head dim 64, 8k", 8 * K, Limit("TFLOP/s", 480, least=True), head_dim=64, value_dim=64),
    _prefill("prefill head dim 256, 8k", 8 * K, head_dim=256, value_dim=256),
    _prefill("prefill MLA 192/128, 8k", 8 * K, heads=16, kv_heads=16, head_dim=192),
    _prefill("prefill window 1024, 2k", 2 * K, window=1024),
    _prefill("prefill window 1024, 8k", 8 * K, window=1024),
    _prefill("prefill window 1024, 32k", 32 * K, Limit("ms", 1.175), window=1024),
    _prefill("prefill documents 16 x 2k", 32 * K, Limit(DENSE, 6, least=True), documents=16),
    _decode(1, 2, Limit("us", 12)), _decode(1, 8), _decode(1, 32), _decode(1, 128), _decode(16, 2), _decode(16, 8),
    _decode(16, 32, Limit("TB/s", 3.0, least=True)), _decode(64, 8),
    Attention("decode B=16, 8k of 16k", DECODE, 16, 1, 16 * K, live=(8 * K,) * 16),
    Attention("decode B=16, 1 of 32k, 15 of 1k", DECODE, 16, 1, 32 * K, live=(32 * K, *(K,) * 15), bars=(Bar(BEST_SDPA, 1.5),)),
    Attention("decode B=16 8k, 4 queries", DECODE, 16, 4, 8 * K),
)
"""bf16. The eight points of decode are `decode B=N Mk`."""
