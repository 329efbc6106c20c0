"""How many blocks share the key tiles of the exchange kernels, and their tiles' constants."""

from __future__ import annotations

from ..choice import Choice
from ..machine import Machine

LEAST_TILES = 2
"""Key tiles of a block: fewer, and its part costs more to write and join than its keys to read."""
LINE_QUERIES = 16
"""Query positions up to which the hulls of a sequence's rows are so alike that one length stands for all."""
MOST_LENGTHS = 1024
"""Sequences times query positions whose lengths a warp holds in registers."""
ROWS = 64


def line(family: str, batch: int, queries: int, rows: int, keys: int, machine: Machine) -> Choice:
    """The configuration for `rows` rows that share `keys` keys: of a sequence, or with chosen tokens of one of its queries."""
    tokens = family.startswith("tokens")
    if not tokens and (queries > LINE_QUERIES or _power(batch) * _power(queries) > MOST_LENGTHS):
        return Choice(family, ROWS, 64, 4, 2)
    lanes, tiles = -(-rows // ROWS), -(-keys // 64)
    items = batch * queries if tokens else batch
    blocks = max(1, min(machine.processors // lanes, -(-items * tiles // LEAST_TILES)))
    share = -(-min(rows, ROWS) // max(1, blocks // items))
    return Choice(family, ROWS, 64, 4, 2, programs=blocks * lanes, block_b=_power(1 if tokens else batch),
                  block_t=_power(1 if tokens else queries), block_r=min(16, _power(share)))


def shares(items: int, tiles: int, blocks: int) -> tuple[int, int]:
    """(tiles of a block, tiles of an item in the line) for equal items; as `share` in `line.py`."""
    each = max(-(-items * tiles // blocks), LEAST_TILES)
    limit = each + 1 + each // 8
    if items <= blocks:
        whole = max(-(-tiles // (blocks // items)), LEAST_TILES)
        if whole <= limit:
            return whole, -(-tiles // whole) * whole
    several = -(-each // tiles) * tiles
    return (several if several <= limit else each), tiles


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()
