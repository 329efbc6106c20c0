"""A sequence's pages, and what a kernel reads of several sequences."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, field

import torch

from .fences import Fence
from .geometry import Geometry


@dataclass(eq=False)
class Sequence:
    """Tokens [start, length) of one sequence; token t lies in pages[t // page - start // page] at t % page.

    `start` is above 0 once tokens are forgotten, as behind a sliding window. Changed by the pool alone. Below 0 a page is on
    the host (`eviction`), as some may be where `away`; `arriving`: those that were there have come back when this has passed.
    """

    length: int = 0
    start: int = 0
    pages: list[int] = field(default_factory=list)
    released: bool = False
    away: bool = False
    arriving: Fence | None = None

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class Tables:
    """pages [B, N] int32, -1 past the end; lengths [B] and origins [B] int32, in tokens; on the device.

    Token t of row b lies in pages[b, (t - origins[b]) // page] at (t - origins[b]) % page, for t < lengths[b].
    """

    pages: torch.Tensor
    lengths: torch.Tensor
    origins: torch.Tensor
    page: int

    def before(self, tokens: int) -> torch.Tensor:
        """Tokens of each row before its last `tokens`, counted from its origin: [B] int32."""
        return self.lengths - self.origins - tokens


def tables(geometry: Geometry, sequences: List[Sequence]) -> Tables:
    """The tables of these sequences, one row each; one copy to the device, for which the host does not wait."""
    width = max((len(sequence.pages) for sequence in sequences), default=0)
    rows = [
        [s.length, s.start // geometry.page * geometry.page, *s.pages, *[-1] * (width - len(s.pages))]
        for s in sequences
    ]
    on_gpu = geometry.device.type == "cuda"
    packed = torch.tensor(rows, dtype=torch.int32, pin_memory=on_gpu).reshape(len(rows), width + 2)
    packed = packed.to(geometry.device, non_blocking=True)
    return Tables(packed[:, 2:], packed[:, 0], packed[:, 1], geometry.page)
