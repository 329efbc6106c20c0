"""Tiles of the prefill kernel, by head dim, element size and machine; the first that fits in shared memory.

Key: max(D, DV) padded, itemsize. Candidates fall from the fastest measured to the smallest that always fits.
Pruning: bytes = q tile + stages * (k tile + v tile) <= shared memory of a block.
"""

from __future__ import annotations

from ..choice import Choice, padded
from ..machine import Machine

# (block_m, block_n, warps, stages), fastest first
_HOPPER = ((128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2))
_AMPERE = ((128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (16, 16, 4, 1))
_FLOAT32 = ((64, 32, 8, 1), (32, 32, 8, 1), (32, 16, 8, 1), (16, 16, 8, 1))


def configure(head_dim: int, value_dim: int, itemsize: int, rows: int, machine: Machine) -> Choice:
    """head_dim, value_dim in elements; rows: query positions."""
    d, dv = padded(head_dim), padded(value_dim)
    candidates = _FLOAT32 if itemsize == 4 else _HOPPER if machine.capability >= (9, 0) and machine.backend == "cuda" else _AMPERE
    for block_m, block_n, warps, stages in candidates:
        if fits(block_m, block_n, stages, d, dv, itemsize, machine):
            break
    return Choice("prefill", block_m, block_n, warps, stages)


def fits(block_m: int, block_n: int, stages: int, d: int, dv: int, itemsize: int, machine: Machine) -> bool:
    return itemsize * (block_m * d + stages * block_n * (d + dv)) <= machine.shared_memory
