"""Tiles of the prefill kernel, by head dim, element size and machine; the first that fits.

Key: D and DV padded, itemsize, machine, and the most keys of a tile: what a tile evaluates of its own, a bias or a mask, needs
registers (`room`). Packed documents, 16 x 2k in 32k, hd128, H100: 64x64 2.35 ms, 128x64 2.43, 128x32 2.70, 128x128 2.96.
Candidates fall from the fastest to the smallest that always fits; `model.ordered` says which leads for a shape. Pruning:
bytes = q tile + stages * (k tile + v tile) <= shared memory of a block, and accumulators that leave registers for the rest:
block_m * DV <= 128 a thread of 8 warps on Hopper, whose products read their operands from shared memory, else 64. A float32
product holds its operands in registers: block_m * block_n * max(D, DV) <= 512 a thread.
"""

from __future__ import annotations

import sympy

from ... import expr as E
from ...ir import AttentionSpec
from ...sparsity import EXACTLY
from ..choice import Choice, padded, padded_value
from ..machine import Machine

# (block_m, block_n, warps, stages), in order of preference: causal hd128 32k, H100, 478, 443, 456 TFLOP/s
_HOPPER = (
    (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (128, 32, 8, 2), (64, 32, 8, 2),
    (32, 32, 4, 2),
)
_OTHERS = (
    (128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2), (16, 32, 4, 1), (16, 16, 4, 1),
)
_FLOAT32 = ((32, 32, 8, 1), (32, 16, 8, 1), (16, 16, 8, 1))


def room(spec: AttentionSpec) -> tuple[int, int]:
    """Most keys of a tile, most accumulators a thread on Hopper: few where every tile loads or evaluates an element for each
    (i, j), fewer where it also asks for tile classes; some where only tiles at an edge do. Small tiles are left out oftener."""
    by_element = any({E.i, E.j} <= load.free_symbols for e in (spec.score, spec.residue) for load in E.loads(e))
    if spec.residue == sympy.true and not by_element:
        return 128 if spec.sparsity == EXACTLY else 64, 128
    if by_element:
        return 32, 64 if spec.tile is None else 32
    return (32, 64) if spec.tile is None else (64, 128)


def configure(head_dim: int, value_dim: int, itemsize: int, limits: tuple[int, int], machine: Machine) -> Choice:
    """head_dim and value_dim in elements, itemsize in bytes; limits: `room` of the spec."""
    return candidates(head_dim, value_dim, itemsize, limits, machine)[0]


def candidates(head_dim: int, value_dim: int, itemsize: int, limits: tuple[int, int], machine: Machine) -> list[Choice]:
    """Those that fit, the preferred first; the smallest if none does."""
    known = _FLOAT32 if itemsize == 4 else _HOPPER if _is_hopper(machine) else _OTHERS
    d, dv = padded(head_dim), padded_value(head_dim, value_dim)
    return [Choice("prefill", *tile) for tile in known if _fits(tile, d, dv, itemsize, limits, machine)] or [
        Choice("prefill", *known[-1])]


def _fits(candidate: tuple[int, int, int, int], d: int, dv: int, itemsize: int, limits: tuple[int, int],
          machine: Machine) -> bool:
    block_m, block_n, warps, stages = candidate
    threads = warps * (64 if machine.backend == "hip" else 32)
    if itemsize * (block_m * d + stages * block_n * (d + dv)) > machine.shared_memory or block_n > limits[0]:
        return False
    if itemsize == 4:
        return block_m * block_n * max(d, dv) <= threads * 512
    most = limits[1] if _is_hopper(machine) and warps == 8 else 64
    return block_m * max(d, dv) <= threads * min(most, limits[1])


def _is_hopper(machine: Machine) -> bool:
    return machine.backend == "cuda" and machine.capability >= (9, 0)
