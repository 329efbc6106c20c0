"""The launch configuration of a kernel, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

EVEN = 0.94
"""Of the processors, that equal items have to keep busy for the others to be left idle."""


@dataclass(frozen=True)
class Choice:
    """Which kernel, how large its tiles (rows, keys), how many warps, pipeline stages, parts of the key range.

    Of decode: `programs` that share all live keys equally, 0 if each item is cut into kv_splits parts; what holds all sequences
    (block_b), all query positions (block_t) and the rows merged at once (block_r), powers of two. Of the Hopper kernel: whether
    its warpgroups take turns (ping_pong), its blocks stay for several tiles (persistent), and the weights are computed before
    the values of the last are awaited, which ptxas else turns round (overlap); and how many tiles of keys it holds more than of
    values (ahead).
    """

    family: str
    block_m: int
    block_n: int
    warps: int
    stages: int
    kv_splits: int = 1
    programs: int = 0
    block_b: int = 1
    block_t: int = 1
    block_r: int = 4
    ping_pong: bool = False
    persistent: bool = False
    overlap: bool = False
    ahead: int = 0

    def __str__(self) -> str:
        tiles = f"{self.family} {self.block_m}x{self.block_n}, {self.warps} warps, {self.stages} stages"
        if self.family in ("prefill", "hopper"):
            return tiles
        return tiles + (f", {self.programs} programs" if self.programs else f", {self.kv_splits} parts")


def padded(dim: int) -> int:
    """The block a head dim is held in: the next power of two, 16 at least (the tensor cores' smallest)."""
    return max(16, 1 << (dim - 1).bit_length())


def padded_value(head_dim: int, value_dim: int) -> int:
    """The block of the value dim beside K's: at least the smaller of 64 and that, so that both tiles are swizzled alike.

    Of tiles that differ there and share memory, ptxas 12.8 (of triton 3.6) builds wgmma's descriptors from a register that
    nothing wrote: D = 64, DV = 16 gave wrong numbers and stray addresses on an H100.
    """
    return max(padded(value_dim), min(64, padded(head_dim)))


def programs(items: int, most: int, processors: int) -> int:
    """How many share the key tiles of `items` items: all processors, or the few less among which equal items come out even.

    H100, B=16 32k: 128 programs of an item each 687 us, 132, of which four find nothing to do, 697; cuDNN 686.
    """
    even = items * (processors // items) if items <= processors else math.ceil(items / math.ceil(items / processors))
    return min(most, even if even >= EVEN * processors else processors)
