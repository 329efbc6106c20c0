"""How the memory of a pool is used."""

from __future__ import annotations

from dataclasses import dataclass

from .eviction import movable
from .geometry import Geometry
from .ledger import Ledger


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
    evicted: int
    """On the host, and not in the arena."""
    idle: int
    """Held by sequences that are idle, and by nobody else: what eviction can give."""
    high_water: int
    """The most that was ever held."""
    sequences: int

    @property
    def utilisation(self) -> float:
        """Live bytes of the bytes held; 1 where nothing is held."""
        return self.live / self.held if self.held else 1.0

    def __str__(self) -> str:
        parts = ("held", "live", "wasted", "shared", "pending", "evicted", "idle", "high_water")
        facts = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name) / 2**20:.2f}" for name in parts)
        used = f"{self.utilisation:.1%} of what is held is live"
        return f"{self.sequences} sequences, MiB of {self.reserved / 2**20:.2f}: {facts}; {used}"


def measure(geometry: Geometry, ledger: Ledger) -> PoolStats:
    """The figures of now: one look at every page of every sequence."""
    pages, bytes_of = ledger.pages, geometry.page_bytes
    copies = 0 if ledger.shelf is None else len(ledger.shelf.copies)
    on_host = 0 if ledger.shelf is None else ledger.shelf.slots.held - copies
    live, held = sum(read_tokens(geometry, ledger)) * geometry.token_bytes, pages.held * bytes_of
    return PoolStats(
        reserved=pages.count * bytes_of, held=held, live=live, wasted=held - live,
        shared=sum(refs > 1 for refs in pages.refs) * bytes_of, pending=len(pages.pending) * bytes_of,
        evicted=on_host * bytes_of, idle=len(movable(ledger, list(ledger.idle))) * bytes_of,
        high_water=pages.high_water * bytes_of, sequences=len(ledger.sequences),
    )


def read_tokens(geometry: Geometry, ledger: Ledger) -> list[int]:
    """Of each page the tokens that some sequence can read, each counted once."""
    size, count = geometry.page, ledger.pages.count
    low, high = [size] * count, [0] * count
    for sequence in ledger.sequences:
        origin = sequence.start // size * size
        for i, page in enumerate(sequence.pages):
            if page >= 0:
                low[page] = min(low[page], max(sequence.start - origin - i * size, 0))
                high[page] = max(high[page], min(sequence.length - origin - i * size, size))
    return [max(b - a, 0) for a, b in zip(low, high, strict=True)]
