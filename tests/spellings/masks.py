"""visible[b, h, i, j] in many hands: each function gives a bool mask that broadcasts to [B, H, T, S].

Queries are the last T of the S positions. Every row sees at least one key, so that each mask has one meaning only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """What a mask is made from: T queries, S keys, `lengths` [B] of live keys (>= 1), `documents` [B, S] numbers."""

    queries: int
    keys: int
    lengths: Tensor
    documents: Tensor

    @property
    def i(self) -> Tensor:
        """[T, 1] positions of the queries."""
        return torch.arange(self.queries)[:, None] + (self.keys - self.queries)

    @property
    def j(self) -> Tensor:
        """[1, S] positions of the keys."""
        return torch.arange(self.keys)[None, :]


def causal_tril(p: Positions) -> Tensor:
    return torch.ones(p.queries, p.keys, dtype=torch.bool).tril(p.keys - p.queries)


def causal_triu(p: Positions) -> Tensor:
    return torch.triu(torch.ones(p.queries, p.keys), diagonal=1 + p.keys - p.queries) == 0


def causal_arange(p: Positions) -> Tensor:
    return p.j <= p.i


def causal_not_greater(p: Positions) -> Tensor:
    return ~(p.i[None, None] < p.j[None, None])


def window(p: Positions) -> Tensor:
    return (p.j <= p.i) & (p.j > p.i - 3)


def window_by_difference(p: Positions) -> Tensor:
    return ((p.i - p.j) >= 0).logical_and((p.i - p.j) < 3)


def band(p: Positions) -> Tensor:
    return (p.i - p.j).abs() <= 2


def prefix(p: Positions) -> Tensor:
    return (p.j <= p.i) | (p.j < 2)


def chunks(p: Positions) -> Tensor:
    return (p.i // 4 == p.j // 4) & (p.j <= p.i)


def sink_and_window(p: Positions) -> Tensor:
    return ((p.j > p.i - 2) | (p.j == 0)) & (p.j <= p.i)


def every_third(p: Positions) -> Tensor:
    return ((p.i - p.j) % 3 == 0) | (p.j == 0)


def padding(p: Positions) -> Tensor:
    return (p.j < p.lengths[:, None])[:, None, None, :]


def padded_causal(p: Positions) -> Tensor:
    return padding(p) & (p.j <= p.i) | (p.j == 0)


def documents(p: Positions) -> Tensor:
    own = p.documents[:, p.keys - p.queries:]
    return (own[:, :, None] == p.documents[:, None, :])[:, None]


def documents_causal(p: Positions) -> Tensor:
    return documents(p) & (p.j <= p.i)


def documents_by_cumsum(p: Positions) -> Tensor:
    starts = torch.nn.functional.pad(p.documents.diff(dim=-1) != 0, (1, 0))
    numbers = starts.cumsum(-1)
    return (numbers[:, p.keys - p.queries:, None] == numbers[:, None, :])[:, None] & (p.j <= p.i)


MASKS: dict[str, Callable[[Positions], Tensor] | None] = {"none": None, **{f.__name__: f for f in (
    causal_tril, causal_triu, causal_arange, causal_not_greater, window, window_by_difference, band, prefix, chunks,
    sink_and_window, every_third, padding, padded_causal, documents, documents_causal, documents_by_cumsum,
)}}
