"""Tiles of the latent kernels, and into how many parts the keys are divided: by a model of flops, bytes and waves.

Key: rows that share their keys (H * T, or H of chosen tokens), R and P padded, itemsize, the machine. Pruning: shared memory
(queries, STAGES latent tiles, the weights); 64 rows take Hopper's warpgroup products, whose 64 x 512 float32 sums are half of
the registers; float32 products hold their operands in registers, and take 16 rows and 16 keys. Packed latents are unpacked in
registers: where more of them are held than here, the compiler spills.

The model, in us. A program takes START and, for each tile of keys, the longer of its flops and its bytes; programs run in
waves; parts are written and read once more, and cost a second launch. A row of a part is 8 * R bytes there and back, as much
as R / (R + P) of 8 * itemsize keys of it: more parts are soon no gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ...ops import packed_width
from ..choice import Choice, padded
from ..machine import Machine

MAX_PARTS = 128
FLOPS = 4.0e6
"""A us, of a processor in 16 bits: FlashMLA's 547 TFLOP/s on the 132 of an H100. float32 without tensor cores has a tenth."""
BYTES = 2.3e4
"""A us, of a processor from device memory, all of them reading: 3.0 TB/s over 132."""
MERGED_BYTES = 3.0e6
"""A us, of parts written and read: they stay in the second-level cache."""
START, MERGE_START = 2.0, 3.0
LINE_PARTS = 16
"""Read at once of an item in a line: where lengths differ, one item may have parts of most blocks."""
MOST_AT_ONCE = 40
"""Parts whose numbers are on their way to the merge at once."""

# (block_m, block_n, warps, stages), in order of preference
_WARPGROUP = ((64, 32, 8, 2),)
_FEW_ROWS = ((16, 64, 8, 2), (16, 32, 8, 2), (16, 32, 8, 1), (16, 16, 4, 1))
_MANY_ROWS = ((32, 32, 8, 2), (16, 32, 8, 2), (16, 32, 8, 1), (16, 16, 4, 1))
_FLOAT32 = ((16, 16, 8, 1),)
_PACKED_WARPGROUP = ((64, 16, 8, 2),)
_PACKED = ((16, 32, 8, 2), (16, 16, 4, 1))
_PACKED_AMD = ((16, 16, 4, 1),)


@dataclass(frozen=True)
class Shape:
    """`items` groups of `rows` queries that share `keys` keys (dense: B of H * T; chosen tokens: B * T of H), of
    rank R and rope dimensions P; itemsize, of queries, in bytes; `packed`: keys in 8 bits."""

    items: int
    rows: int
    keys: int
    rank: int
    rope: int
    itemsize: int
    packed: bool = False

    @property
    def key_bytes(self) -> int:
        """Read for a key."""
        return packed_width(self.rank, self.rope) if self.packed else self.itemsize * (padded(self.rank) + padded(self.rope))


def configure(family: str, shape: Shape, kv_splits: int, machine: Machine) -> Choice:
    """family: mla or tokens; kv_splits: the number of parts, 0 to choose it."""
    return candidates(family, shape, kv_splits, machine)[0]


@lru_cache(maxsize=4096)
def candidates(family: str, shape: Shape, kv_splits: int, machine: Machine) -> tuple[Choice, ...]:
    """The tiles that fit, each in the number of parts that the model finds fastest; then in half and in twice as many."""
    tiles = _tiles(shape, machine)
    fitting = [tile for tile in tiles if _fits(shape, tile, machine)]
    found = {tile: kv_splits or parts(shape, tile[0], tile[1], machine) for tile in fitting}
    most = max(1, min(MAX_PARTS, shape.keys // min(tile[1] for tile in fitting)))
    counts = (lambda n: n, lambda n: max(1, n // 2), lambda n: min(most, 2 * n))
    return tuple(dict.fromkeys(
        Choice(family, *tile, n if kv_splits else count(n)) for count in counts for tile, n in found.items()))


def _tiles(shape: Shape, machine: Machine) -> tuple[tuple[int, int, int, int], ...]:
    if shape.itemsize == 4:
        return _FLOAT32
    if shape.packed and machine.backend != "cuda":
        return _PACKED_AMD
    if shape.rows <= 16:
        return _FEW_ROWS
    warpgroups = machine.backend == "cuda" and machine.capability[0] >= 9
    if shape.packed:
        return (*_PACKED_WARPGROUP, *_PACKED) if warpgroups else _PACKED
    return (*_WARPGROUP, *_MANY_ROWS) if warpgroups else _MANY_ROWS


def _fits(shape: Shape, tile: tuple[int, int, int, int], machine: Machine) -> bool:
    block_m, block_n, _, stages = tile
    width = padded(shape.rank) + padded(shape.rope)
    size = shape.itemsize * ((block_m + stages * block_n) * width + block_m * block_n)
    return size <= machine.shared_memory or tile in (_MANY_ROWS[-1], _FLOAT32[-1])


def merging(splits: int, rank: int) -> tuple[int, int]:
    """(parts at once, warps) of the merge of rows of `rank` numbers. Up to 16 parts a thread has 16 bytes of each, in 16 bits,
    and of more 8: all on their way in some 100 registers."""
    passes = -(-splits // MOST_AT_ONCE)
    block_p = -(-splits // (8 * passes)) * 8
    return block_p, max(1, min(4, padded(rank) // (256 if block_p <= 16 else 128)))


def parts(shape: Shape, block_m: int, block_n: int, machine: Machine, most: int = MAX_PARTS) -> int:
    """The number of parts, up to `most`, that the model finds fastest."""
    most = max(1, min(most, math.ceil(shape.keys / block_n)))
    return min(range(1, most + 1), key=lambda n: (_time(shape, n, block_m, block_n, machine), n))


def _time(shape: Shape, n: int, block_m: int, block_n: int, machine: Machine) -> float:
    """us, for n parts."""
    row_tiles = math.ceil(shape.rows / block_m)
    width = padded(shape.rank) + padded(shape.rope)
    rate = FLOPS / (10 if shape.itemsize == 4 else 1)
    flops, read = 2 * block_m * block_n * (width + padded(shape.rank)), block_n * shape.key_bytes
    tile = max(flops / rate, read / row_tiles / BYTES)
    waves = math.ceil(shape.items * row_tiles * n / machine.processors)
    busy = waves * (START + math.ceil(math.ceil(shape.keys / block_n) / n) * tile)
    moved = shape.items * shape.rows * shape.rank * 8 * n
    return busy + (MERGE_START + moved / MERGED_BYTES if n > 1 else 0.0)
