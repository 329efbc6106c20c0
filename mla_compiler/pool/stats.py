"""How the memory of a pool is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .geometry import Geometry
from .pages import Pages
from .sequences import Sequence


@dataclass(frozen=True)
class PoolStats:
    """Bytes. reserved = held + pending + free; held = live + wasted."""

    reserved: int
    """All pages of the arena."""
    held: int
    """Pages that belong to a sequence."""
    live: int
    """Tokens that some sequence can read, each page counted once however many share it."""
    wasted: int
    """What no sequence can read of the pages they hold: tails, and heads behind a window."""
    shared: int
    """Pages with more than one holder, counted once."""
    pending: int
    """Released pages whose last readers are not known to be done."""
    high_water: int
    """The most that was ever held."""
    sequences: int

    @property
    def utilisation(self) -> float:
        """Live bytes of the bytes held; 1 where nothing is held."""
        return self.live / self.held if self.held else 1.0

    def __str__(self) -> str:
        parts = ("held", "live", "wasted", "shared", "pending", "high_water")
        facts = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name) / 2**20:.2f}" for name in parts)
        used = f"{self.utilisation:.1%} of what is held is live"
        return f"{self.sequences} sequences, MiB of {self.reserved / 2**20:.2f}: {facts}; {used}"


def measure(geometry: Geometry, pages: Pages, sequences: Iterable[Sequence]) -> PoolStats:
    """The figures of now: one look at every page of every sequence."""
    size, count, number = geometry.page, pages.count, 0
    low, high = [size] * count, [0] * count
    for sequence in sequences:
        number += 1
        origin = sequence.start // size * size
        for i, page in enumerate(sequence.pages):
            low[page] = min(low[page], max(sequence.start - origin - i * size, 0))
            high[page] = max(high[page], min(sequence.length - origin - i * size, size))
    live = sum(max(b - a, 0) for a, b in zip(low, high, strict=True)) * geometry.token_bytes
    held = pages.held * geometry.page_bytes
    return PoolStats(
        reserved=count * geometry.page_bytes, held=held, live=live, wasted=held - live,
        shared=sum(refs > 1 for refs in pages.refs) * geometry.page_bytes, pending=len(pages.pending) * geometry.page_bytes,
        high_water=pages.high_water * geometry.page_bytes, sequences=number,
    )
