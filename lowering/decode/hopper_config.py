"""Tiles of the Hopper decode kernel; what it serves.

Bytes = q tile + STAGES * (k tile + v tile) <= shared memory of a block. Few stages: the bytes that 132 processors have on
their way with more than 2 of 64 keys only queue before the memory (`BENCHMARKS.md`).
"""

from __future__ import annotations

import sympy
import torch

from ... import expr as E
from ...ir import AttentionSpec
from ...pool.formats import FORMATS
from ..choice import Choice, padded, programs
from ..hopper.config import serves as addressable
from ..machine import Machine
from .config import MOST_BOUNDS, Shape, batch_block, power, same_for_all_heads

TILES = ((64, 2), (64, 3), (32, 3), (128, 2), (32, 2))
"""(keys, stages) at 256 elements of K and V a key, best first; of half as many elements tiles have twice as many keys."""
UNPACKED = ("int8", "fp8")
"""Formats of pages that the loading warps of a block unpack."""
_MERGED = 8192  # elements of out that are merged at once


def serves(spec: AttentionSpec, shape: Shape, dtype: torch.dtype, machine: Machine) -> bool:
    """Whether there is a kernel: hulls that all heads share, in 16 bits, on a line that every program finds for itself.

    A residue is asked within the hull, no tile of which is left out: one that is a mask in memory, whose summary is the hull.
    """
    return (
        addressable(spec, shape.head_dim, shape.value_dim, dtype, machine) and spec.kv_splits == 0
        and (spec.residue == sympy.true or isinstance(spec.tile, E.Load)) and same_for_all_heads(spec)
        and batch_block(shape.batch) * power(shape.queries) <= MOST_BOUNDS
    )


def candidates(spec: AttentionSpec, shape: Shape, machine: Machine, page: int = 0) -> list[Choice]:
    """Those that fit, the preferred first. page: tokens of a page, in one of which a tile lies; 0 without pages."""
    rows, d, dv = spec.group * shape.queries, padded(shape.head_dim), padded(shape.value_dim)
    block_m = 64 if rows <= 64 else 128
    room = machine.shared_memory - 2048 - 2 * block_m * d
    tiles = [(keys_of(block_n, d + dv), stages) for block_n, stages in TILES]
    return [_choice(spec, shape, block_m, *tile, machine) for tile in dict.fromkeys(tiles)
            if 2 * tile[0] * tile[1] * (d + dv) <= room and page % tile[0] == 0]


def candidates_packed(spec: AttentionSpec, shape: Shape, machine: Machine, format: str, page: int) -> list[Choice]:
    """The same for quantised pages, `packed.py`: for one warpgroup of rows, each row of a page with one scale.

    As many bytes of packed tiles on their way as of two tiles of 64 keys in 16 bits; two that are being read, or two of numbers
    of q's dtype.
    """
    if format not in UNPACKED:
        return []
    rows, d, dv = spec.group * shape.queries, padded(shape.head_dim), padded(shape.value_dim)
    whole = all(FORMATS[format].group(dim, keys) == dim for dim, keys in ((shape.head_dim, True), (shape.value_dim, False)))
    if not whole or rows > 64 or max(d, dv) > 128 or page % 64:
        return []
    stages = min(8, 1024 // (d + dv))
    few = rows <= 16 and min(d, dv) >= 32
    return [_choice(spec, shape, 16, 64, stages + 2, machine) if few else _choice(spec, shape, 64, 64, stages, machine)]


def keys_of(block_n: int, width: int) -> int:
    """Keys of a tile of as many bytes as `block_n` keys of 256 elements, to a power of two between 16 and 128."""
    return max(16, min(128, power(block_n * 256 // width)))


def _choice(spec: AttentionSpec, shape: Shape, block_m: int, block_n: int, stages: int, machine: Machine) -> Choice:
    rows = spec.group * shape.queries
    items = shape.batch * shape.kv_heads * -(-rows // block_m)
    return Choice(
        "decode_hopper", block_m, block_n, 4, stages,
        programs=programs(items, items * -(-shape.keys // block_n), machine.processors),
        block_b=batch_block(shape.batch), block_t=power(shape.queries),
        block_r=min(16, power(rows), _MERGED // padded(shape.value_dim)),
    )
