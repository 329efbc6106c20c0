"""Tiles of the prefill kernel, by head dim, element size and machine; the first that fits.

Key: D and DV padded, itemsize, whether each tile evaluates a mask or a bias of its own ("dense", which needs registers).
Candidates fall from the fastest to the smallest that always fits. Pruning: bytes = q tile + stages * (k tile + v tile)
<= shared memory of a block, and accumulators that leave registers for the rest: block_m * DV <= 128 a thread on Hopper,
whose products read their operands from shared memory, 64 before it. A float32 product holds its operands in registers:
block_m * block_n * max(D, DV) <= 512 a thread.
"""

from __future__ import annotations

from ..choice import Choice, padded
from ..machine import Machine

# (block_m, block_n, warps, stages), in order of preference, untimed
_HOPPER = (
    (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 8, 2), (32, 32, 4, 2),
)
_OTHERS = (
    (128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2), (16, 32, 4, 1), (16, 16, 4, 1),
)
_FLOAT32 = ((32, 32, 8, 1), (32, 16, 8, 1), (16, 16, 8, 1))


def configure(head_dim: int, value_dim: int, itemsize: int, dense: bool, machine: Machine) -> Choice:
    """head_dim and value_dim in elements, itemsize in bytes."""
    candidates = _FLOAT32 if itemsize == 4 else _HOPPER if _is_hopper(machine) else _OTHERS
    for candidate in candidates:
        if _fits(candidate, padded(head_dim), padded(value_dim), itemsize, dense, machine):
            return Choice("prefill", *candidate)
    return Choice("prefill", *candidates[-1])


def _fits(candidate: tuple[int, int, int, int], d: int, dv: int, itemsize: int, dense: bool, machine: Machine) -> bool:
    block_m, block_n, warps, stages = candidate
    threads = warps * (64 if machine.backend == "hip" else 32)
    if itemsize * (block_m * d + stages * block_n * (d + dv)) > machine.shared_memory:
        return False
    if dense and block_n > 32:
        return False
    if itemsize == 4:
        return block_m * block_n * max(d, dv) <= threads * 512
    return block_m * max(d, dv) <= threads * (128 if _is_hopper(machine) and not dense else 64)


def _is_hopper(machine: Machine) -> bool:
    return machine.backend == "cuda" and machine.capability >= (9, 0)
