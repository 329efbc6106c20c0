"""How many heads have K and V at once: those that BUFFER holds, unless smaller groups would leave processors idle

    waves(n) = ceil(H / n) · ceil(B · n · ceil(T / ROWS) / processors)         n heads at a time, one launch each

waves(n) / waves(H) is what n costs in time: a launch ends when its last tile of rows does. Groups as large as BUFFER holds
are taken if that is at most 1 + IDLE; if no such group fits, the smallest that costs no more, at worst all heads.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from .machine import machine_of

BUFFER = 1 << 28
"""Bytes of K and V at once: those of 51 heads of DeepSeek-V3 at 8k tokens, where all have 671 MB, and 2.7 GB at 32k."""
IDLE = 1 / 8
"""Of the time of all heads at once, what smaller groups may cost."""
ROWS = 128
"""Query rows of a tile."""


def heads_at_once(batch: int, heads: int, queries: int, keys: int, width: int, itemsize: int, device: torch.device) -> int:
    """For queries [batch, heads, queries, .] and `keys` keys whose K and V have `width` channels together."""
    if 0 in (batch, heads, queries, keys):
        return heads
    head_bytes = batch * keys * width * itemsize
    return chosen(heads, batch * math.ceil(queries / ROWS), processors(device), max(1, BUFFER // head_bytes))


@lru_cache(maxsize=4096)
def chosen(heads: int, tiles: int, processors: int, most: int) -> int:
    """Of `heads` heads with `tiles` tiles of rows each, `most` of which fit."""

    def waves(n: int) -> int:
        return math.ceil(heads / n) * math.ceil(n * tiles / processors)

    fast = [n for n in even_groups(heads) if waves(n) <= (1 + IDLE) * waves(heads)]
    return max((n for n in fast if n <= most), default=min(fast))


def even_groups(heads: int) -> tuple[int, ...]:
    """Sizes of groups of which the last lacks least, the largest first: all heads, half, a third, ..."""
    return tuple(dict.fromkeys(math.ceil(heads / groups) for groups in range(1, heads + 1)))


def processors(device: torch.device) -> int:
    """What takes a tile of rows at a time."""
    return machine_of(device).processors if device.type == "cuda" else torch.get_num_threads()
