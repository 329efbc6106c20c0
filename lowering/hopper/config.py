"""Tiles of the Hopper kernel, by head dim; what it serves.

Bytes = q tiles + STAGES * (k tile + v tile) + out tile <= shared memory of a block; two q tiles where they fit, so that the
next item's is there in time. Registers of a thread of a multiplying warpgroup, of the 240 it has (160 where there are three):
acc DV / 2 + scores BLOCK_N / 2 + weights BLOCK_N / 4, and as many again for the score where it is not linear.
"""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import sympy
import torch

from ... import expr as E
from ...ir import AttentionSpec
from ...sparsity import EXACTLY
from ..choice import Choice, padded, padded_value
from ..machine import Machine

ROWS = 64
"""Rows of a warpgroup."""
SECTION_BYTES = 24 << 20
"""K and V of the heads that are worked on together: half of the second level cache."""

# (block_m, block_n, stages), in order of preference
_TILES = ((128, 128, 2), (128, 64, 2), (128, 32, 2))
_NARROW = ((192, 128, 2), (128, 128, 2), (128, 64, 2))
"""Where the value dim is 64 at most: a third warpgroup, for exponentials bind and not products."""


def serves(spec: AttentionSpec, head_dim: int, value_dim: int, dtype: torch.dtype, machine: Machine) -> bool:
    """Whether there is a kernel: for hulls and classed tiles, in 16 bits, with rows of whole 16 bytes."""
    return (
        machine.backend == "cuda" and machine.capability == (9, 0) and dtype in (torch.float16, torch.bfloat16)
        and _planned(spec) and _leaves_out(spec) and padded_value(head_dim, value_dim) == padded(value_dim)
        and head_dim % 8 == value_dim % 8 == 0 and has_gluon()
    )


def _planned(spec: AttentionSpec) -> bool:
    """Whether only tiles at an edge ask more than their scores: of each element, or of a residue."""
    by_element = any({E.i, E.j} <= load.free_symbols for load in E.loads(spec.score))
    return not by_element and (spec.residue == sympy.true or spec.tile is not None)


def _leaves_out(spec: AttentionSpec) -> bool:
    """Whether it leaves out what the spec does: of hulls alone, and without an account."""
    return spec.sparsity == EXACTLY or (spec.residue == sympy.true and not spec.site)


@lru_cache(maxsize=1)
def has_gluon() -> bool:
    """Found without importing Triton."""
    found = importlib.util.find_spec("triton")
    places = (found.submodule_search_locations if found else None) or []
    return any((Path(place) / "experimental" / "gluon" / "nvidia" / "hopper.py").exists() for place in places)


def configure(spec: AttentionSpec, head_dim: int, value_dim: int, machine: Machine) -> Choice:
    """head_dim and value_dim in elements."""
    return candidates(spec, head_dim, value_dim, machine)[0]


def candidates(spec: AttentionSpec, head_dim: int, value_dim: int, machine: Machine) -> list[Choice]:
    """Those that fit, the preferred first; the smallest if none does."""
    tiles = _NARROW if padded(value_dim) <= 64 and spec.sparsity == EXACTLY else _TILES
    all_ = [Choice("hopper", *tile[:2], 4, tile[2], ping_pong=turns, persistent=True, overlap=overlap, ahead=ahead)
            for tile in tiles for turns, overlap, ahead in _forms(spec, tile[0], head_dim, value_dim)]
    return [choice for choice in all_ if _fits(spec, choice, head_dim, value_dim, machine)] or all_[-3:]


def _forms(spec: AttentionSpec, block_m: int, head_dim: int, value_dim: int) -> tuple[tuple[bool, bool, int], ...]:
    """ping_pong, overlap and ahead, the preferred first: overlap where two warpgroups meet few tiles at an edge
    (BENCHMARKS.md); keys ahead of values where the kernel itself decides which values it needs."""
    if spec.sparsity.log2_limit > -math.inf:
        return (False, False, 1), (False, False, 0)
    return tuple((*turns_and_overlap, 0) for turns_and_overlap in _turns(spec, block_m, head_dim, value_dim))


def _turns(spec: AttentionSpec, block_m: int, head_dim: int, value_dim: int) -> tuple[tuple[bool, bool], ...]:
    """ping_pong and overlap of a kernel that multiplies all of its tiles."""
    if block_m > 2 * ROWS or spec.lo != 0 or spec.tile is not None:
        return (True, False), (False, False), (True, True)
    if padded(head_dim) == padded(value_dim) == 128:
        return (False, True), (True, True), (True, False)
    return (True, True), (False, True), (True, False)


def _fits(spec: AttentionSpec, choice: Choice, head_dim: int, value_dim: int, machine: Machine) -> bool:
    linear = spec.score.as_coeff_Mul()[1] == E.s
    needed = padded(value_dim) / 2 + choice.block_n * (1 if linear else 2)
    few = choice.block_m > 2 * ROWS and (spec.tile is not None or not linear)
    return _bytes(choice, head_dim, value_dim, 1) <= machine.shared_memory and needed <= 200 and not few


def query_stages(choice: Choice, head_dim: int, value_dim: int, shared_memory: int) -> int:
    """How many q tiles a block holds; shared_memory in bytes."""
    return 2 if _bytes(choice, head_dim, value_dim, 2, padded(value_dim)) <= shared_memory else 1


def out_columns(choice: Choice, head_dim: int, value_dim: int, shared_memory: int) -> int:
    """Columns of the tile through which a result leaves: half of them where the whole has no room."""
    dv = padded(value_dim)
    return dv if _bytes(choice, head_dim, value_dim, 1, dv) <= shared_memory else dv // 2


def _bytes(choice: Choice, head_dim: int, value_dim: int, query_stages: int, out: int = 0) -> int:
    """Of shared memory, with the smallest or the given tile of results."""
    d, dv = sum(columns(head_dim)), padded(value_dim)
    tiles = choice.block_m * (query_stages * d + (out or dv // 2)) + choice.stages * choice.block_n * (d + dv)
    return 2 * (tiles + choice.ahead * choice.block_n * d) + 1024


def registers(choice: Choice) -> tuple[int, int, int]:
    """Of a thread: at the start, of a multiplying warpgroup, of the warps that plan and load. 65536 in all."""
    return (168, 240, 24) if choice.block_m == 2 * ROWS else (128, 160, 32)


def columns(head_dim: int) -> tuple[int, int]:
    """Columns of the two tiles a row of q or k is held in: 128 and 0, 192 = 128 + 64, 72 <= 64 + 16."""
    whole = padded(head_dim)
    rest = padded(head_dim - whole // 2) if whole != head_dim else whole
    return (whole // 2, rest) if rest < whole // 2 else (whole, 0)


@lru_cache(maxsize=1024)
def section(heads: int, group: int, keys: int, dims: int) -> int:
    """How many of `heads` (all, of all sequences) are worked on together; divides them; dims = D + DV, 16 bits each."""
    most = max(1, SECTION_BYTES // (2 * keys * dims)) * group
    return max(count for count in range(1, heads + 1) if heads % count == 0 and count <= most)
