"""Tiles of the decode kernel, and how the keys are shared out.

Key: the spec's hull and kv_splits, the shape, itemsize, whether each tile evaluates a mask or a bias ("dense"), the machine.
Pruning: one block a processor, its shared memory full of key tiles on their way. H100, bf16, 32 q and 8 kv heads of 128, K and
V rotated beyond the L2, one CUDA graph: (64 keys, 6 stages) B=1 2k 11.8 us, 8k 22.0, 32k 55.7, 128k 188; B=16 2k 52, 8k 186,
32k 699 (3.07 TB/s); B=64 8k 712; 1 of 32k + 15 of 1k 86. 4 stages within 3%; two blocks a processor up to 17% slower; 128 keys
by 8 warps 28% slower at B=1 2k and 2% faster at B=16 8k.
Registers: 12288 elements of K a tile, 2048 in float32, whose products hold their operands there; a dense tile 2048 logits
and 4 stages; 8192 elements of out and more are held by 8 warps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ... import expr as E
from ...ir import AttentionSpec
from ..choice import Choice, padded, padded_value, programs
from ..machine import Machine

MAX_PARTS = 128
PROGRAMS_PER_PROCESSOR = 1
MOST_BOUNDS = 16384
"""Bounds, of sequences times query positions, that every program reads for itself."""
_HALF = ((64, 6), (64, 4), (32, 6), (32, 4), (32, 3), (32, 2), (16, 2), (16, 1))  # (block_n, stages), best first
_FLOAT32 = ((64, 1), (32, 1), (16, 1))
_MERGED = 8192  # elements of one chunk of parts: merge.CHUNK_ELEMENTS


@dataclass(frozen=True)
class Shape:
    """q [batch, kv_heads * group, queries, head_dim], k [batch, kv_heads, keys, head_dim]; itemsize in bytes."""

    batch: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    itemsize: int


def configure(spec: AttentionSpec, shape: Shape, dense: bool, machine: Machine) -> Choice:
    """The preferred one of `candidates`."""
    return candidates(spec, shape, dense, machine)[0]


def candidates(spec: AttentionSpec, shape: Shape, dense: bool, machine: Machine) -> list[Choice]:
    """Every tile that fits, the preferred first; then the preferred ones with two programs a processor."""
    fitting = tiles(rows_of_a_tile(spec.group * shape.queries, shape), shape, dense, machine)
    one, two = ([_choice(spec, shape, *tile, each, machine) for tile in fitting]
                for each in (PROGRAMS_PER_PROCESSOR, 2 * PROGRAMS_PER_PROCESSOR))
    return list(dict.fromkeys([*one, *two[:2]]))


def _choice(spec: AttentionSpec, shape: Shape, block_n: int, stages: int, each: int, machine: Machine) -> Choice:
    """A balanced line where every program can find all lengths, else equal parts of each item; `each` programs a processor."""
    rows, dv = spec.group * shape.queries, padded_value(shape.head_dim, shape.value_dim)
    block_m = rows_of_a_tile(rows, shape)
    items = shape.batch * shape.kv_heads * -(-rows // block_m)
    block_b, block_t = batch_block(shape.batch), power(shape.queries)
    balanced = spec.kv_splits == 0 and same_for_all_heads(spec) and block_b * block_t <= MOST_BOUNDS
    splits = 1 if balanced else spec.kv_splits or parts(items, shape.keys, block_n, machine.processors)
    most = items * math.ceil(shape.keys / block_n)
    return Choice(
        "decode", block_m, block_n, 8 if block_m * dv >= 8192 else 4, stages, splits,
        programs=programs(items, most, each * machine.processors) if balanced else 0,
        block_b=block_b if balanced else 1, block_t=block_t if balanced else 1,
        block_r=min(block_m, power(rows), _MERGED // dv),
    )


def same_for_all_heads(spec: AttentionSpec) -> bool:
    """Whether the hull is a property of the sequence and the position alone."""
    return E.h not in spec.lo.free_symbols | spec.hi.free_symbols


def rows_of_a_tile(rows: int, shape: Shape) -> int:
    """rows: query heads of a KV head times query positions."""
    largest = 16 if shape.itemsize == 4 else 64 if max(padded(shape.head_dim), padded(shape.value_dim)) <= 128 else 32
    return min(largest, max(16, power(rows)))


def tiles(block_m: int, shape: Shape, dense: bool, machine: Machine) -> list[tuple[int, int]]:
    """(block_n, stages) that fit, the preferred first; the smallest if none does."""
    known = _FLOAT32 if shape.itemsize == 4 else _HALF
    return [tile for tile in known if _fits(*tile, block_m, shape, dense, machine)] or [known[-1]]


def _fits(block_n: int, stages: int, block_m: int, shape: Shape, dense: bool, machine: Machine) -> bool:
    d, dv = padded(shape.head_dim), padded_value(shape.head_dim, shape.value_dim)
    if block_n * max(d, dv) > (2048 if shape.itemsize == 4 else 12288) and block_n > 16:
        return False
    if dense and (block_m * block_n > 2048 or stages > 4):
        return False
    # NVIDIA: a tile's memory is filled anew as soon as its products are done.
    held = max(1, stages - 1) if machine.backend == "cuda" else stages
    return shape.itemsize * (block_m * (d + block_n) + held * block_n * (d + dv)) <= machine.shared_memory


def parts(items: int, keys: int, block_n: int, processors: int) -> int:
    """Parts of a range of `keys`, when `items` run beside each other; after FlashAttention-3: one if the items alone fill 0.8
    of the machine or there are at most 4 key tiles; else the least n whose last wave is within 0.85 of the fullest."""
    blocks, slots = math.ceil(keys / block_n), PROGRAMS_PER_PROCESSOR * processors
    if items >= 0.8 * slots or blocks <= 4:
        return 1
    most = min(MAX_PARTS, blocks, slots)
    waves = [items * n / slots for n in range(1, most + 1)]
    full = [w / math.ceil(w) for w in waves]
    return next(n for n, f in enumerate(full, 1) if f >= 0.85 * max(full))


def batch_block(batch: int) -> int:
    """1, 16, 64, 256, 1024, ...: few kernels serve every batch."""
    return 1 if batch == 1 else max(16, 4 ** -(-(batch - 1).bit_length() // 2))


def power(x: int) -> int:
    """The least power of two that is not below x."""
    return 1 << (x - 1).bit_length()
