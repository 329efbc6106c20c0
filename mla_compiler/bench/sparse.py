"""Attentions that leave tiles out, measured as kernels: one tile of keys in so many matters; against our own dense kernel.

In those tiles a channel adds e^31 to the weights of all others, so a policy that finds them is right to within rounding, and is
checked as dense kernels are; one that misses a tile is wrong. The first tile, which every row sees, is one of them. As many as
128 tiles matter alike: a share or a threshold is well below a 128th. What is timed is all that a policy does, choosing tiles
included; rates count the work of dense attention. `exact` leaves out nothing that counts and may not cost more than 1%: there
all tiles are alike.
"""

from __future__ import annotations

from .attentions import DECODE, DENSE, PREFILL, Attention, K
from .bars import Bar, Limit


def _prefill(policy: str, every: int, *bars: Bar | Limit) -> Attention:
    name = f"sparse prefill 32k, {policy}, 1 of {every} tiles"
    return Attention(name, PREFILL, 1, 32 * K, 32 * K, bars=bars, sparsity=policy, every=every)


def _decode(batch: int, policy: str, every: int) -> Attention:
    name = f"sparse decode B={batch} 128k, {policy}, 1 of {every} tiles"
    return Attention(name, DECODE, batch, 1, 128 * K, sparsity=policy, every=every)


def _paged(batch: int, policy: str, every: int, *bars: Bar | Limit) -> Attention:
    """Over a pool: pages of 64 tokens in random order, which are the tiles."""
    name = f"sparse decode B={batch} 128k in pages, {policy}, 1 of {every} pages"
    return Attention(name, DECODE, batch, 1, 128 * K, sparsity=policy, every=every, format="plain", bars=bars)


SPARSE = (
    _prefill("exact", 1, Limit(DENSE, 0.99, least=True)), _prefill("threshold=0.001", 2, Limit(DENSE, 1.3, least=True)),
    _prefill("pages.share=0.001+threshold=0.001", 2, Limit(DENSE, 1.3, least=True)),
    _prefill("pages.share=0.001+threshold=0.001", 4), _prefill("pages.share=0.001+threshold=0.001", 8),
    _prefill("pages=0.25", 8, Limit("ms", 5)), _prefill("lsh=0.25", 8, Limit(DENSE, 2.5, least=True)),
    _decode(1, "threshold=0.001", 8), _decode(16, "threshold=0.001", 8),
    _paged(1, "pages=0.125", 16, Limit(DENSE, 4, least=True)), _paged(16, "pages=0.125", 16, Limit(DENSE, 4, least=True)),
)
"""Where tiles are chosen by their number, half as many matter: so those of no row are more than are chosen. 128k keys of 16
sequences are 8.6 GB."""
