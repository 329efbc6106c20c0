"""Tiles of the decode kernel, and into how many parts the key range is divided.

Key: rows of a KV head (GROUP * T), D and DV padded, itemsize, whether each tile evaluates a mask or a bias ("dense").
Pruning: two blocks share a processor, so that one loads while the other computes; float32 products, which hold their
operands in registers, take 2048 elements of K; a dense tile 2048 logits. Parts, after FlashAttention-3: one if the row
tiles alone fill 0.8 of the machine or there are at most 4 key tiles; else the least n whose last wave is within 0.85 of
the fullest.
"""

from __future__ import annotations

import math

from ..choice import Choice, padded
from ..machine import Machine

MAX_PARTS = 128
BLOCKS_PER_PROCESSOR = 2
_HALF = ((64, 3), (64, 2), (32, 3), (32, 2), (16, 2), (16, 1))  # (block_n, stages), in order of preference, untimed
_FLOAT32 = ((64, 1), (32, 1), (16, 1))


def configure(rows: int, head_dim: int, value_dim: int, itemsize: int, dense: bool, machine: Machine) -> Choice:
    """rows: query heads of a KV head times query positions. kv_splits is left at 1."""
    d, dv = padded(head_dim), padded(value_dim)
    largest = 16 if itemsize == 4 else 64 if max(d, dv) <= 128 else 32
    block_m = min(largest, max(16, 1 << (rows - 1).bit_length()))
    share = machine.shared_memory // (BLOCKS_PER_PROCESSOR if machine.backend == "cuda" else 1)
    for block_n, stages in _FLOAT32 if itemsize == 4 else _HALF:
        if (itemsize == 4 and block_n * max(d, dv) > 2048 and block_n > 16) or (dense and block_m * block_n > 2048):
            continue
        if itemsize * (block_m * d + stages * block_n * (d + dv)) <= share:
            break
    return Choice("decode", block_m, block_n, 4, stages)


def parts(tiles: int, keys: int, block_n: int, processors: int) -> int:
    """Parts of a range of `keys`, when `tiles` row tiles run beside each other."""
    blocks, slots = math.ceil(keys / block_n), BLOCKS_PER_PROCESSOR * processors
    if tiles >= 0.8 * slots or blocks <= 4:
        return 1
    most = min(MAX_PARTS, blocks, slots)
    waves = [tiles * n / slots for n in range(1, most + 1)]
    full = [w / math.ceil(w) for w in waves]
    return next(n for n, f in enumerate(full, 1) if f >= 0.85 * max(full))
