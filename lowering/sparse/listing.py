"""Which tiles of keys each tile of rows attends, before it does: what the keys of a box promise, then which tiles are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...ir import AttentionSpec
from ...sparsity import Sparsity
from ..choice import Choice, padded
from ..launch import launch
from ..machine import Machine, machine_of

BOX = 16
"""Keys of a box. SmolLM2 at 2048 tokens, any tile of 64 keys with 0.05 of a row: boxes of 16 leave out 44%, of 32 and of 64
as much at a higher loss."""
CHUNK, CHUNK_KEYS = 16, 1024
"""Tiles looked at together, and the most keys of them."""
CHUNK_SIGNED = 32
"""Tiles looked at together where boxes have signatures: four elements a thread."""
RESIDENT = 2
"""Programs of `estimate` a processor: what they keep stays in the second-level cache."""
BLOCK_X = 8
BITS = 64
"""Directions of a signature."""


def listed(load: Callable[[str], ModuleType], spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, given: list[Any],
           upcast: bool) -> tuple[Tensor, Tensor, int]:
    """(tiles [items, capacity] int16 or int32, counts [items] int32, capacity) for the tiles of rows of `choice`.

    load: the module of a family of the spec that leaves nothing out; given: its operands. Nothing is read back.
    """
    scores = scored(load, spec, choice, q, k, given, upcast)
    tiles = torch.empty_like(scores, dtype=torch.int16 if scores.shape[1] < 1 << 15 else torch.int32)
    counts = q.new_empty(len(scores), dtype=torch.int32)
    ranked(scores, tiles, counts, spec.sparsity.value, spec.sparsity.measure)
    return tiles, counts, scores.shape[1]


def scored(load: Callable[[str], ModuleType], spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, given: list[Any],
           upcast: bool) -> Tensor:
    """What each tile of keys promises each tile of rows [items, capacity] float32, -1 where that is not asked."""
    batch, heads, queries, head_dim = q.shape
    items, capacity = batch * heads * -(-queries // choice.block_m), -(-k.shape[2] // choice.block_n)
    scores = q.new_full((items, capacity), -1.0, dtype=torch.float32)
    policy, fixed, family = spec.sparsity, constants(spec, choice, head_dim, upcast), family_of(spec.sparsity)
    sizes: tuple[int, ...] = (heads, queries, k.shape[2], -(-k.shape[2] // BOX), capacity)
    known: tuple[Any, ...] = signatures_of(q, k) if family == "lsh" else (q, q.stride(), boxes_of(k))
    programs = items
    if family == "estimate":
        programs, sizes = min(items, RESIDENT * machine_of(q.device).processors), (*sizes, items)
        rows = programs * -(-capacity // fixed["CHUNK"]) * choice.block_m
        known += tuple(q.new_empty(rows * width, dtype=torch.float32) for width in (fixed["CHUNK"], 1))
    elif family == "lsh":
        known += (q.new_empty(items, choice.block_m // BOX, capacity, dtype=torch.float32),)
    launch(getattr(load(family), family), (programs,), (*known, scores, *sizes, *given), fixed, warps(policy, choice), 1,
           q.device.index, **registers(policy, head_dim, machine_of(q.device)))
    return scores


def warps(policy: Sparsity, choice: Choice) -> int:
    """Of a program of that kernel: those of `lsh` have a row for every BOX."""
    if family_of(policy) == "lsh":
        return 2
    return 8 if choice.family == "hopper" else choice.warps


def registers(policy: Sparsity, head_dim: int, machine: Machine) -> dict[str, int]:
    """The most of a thread on Hopper, where two programs of 8 warps share a processor: beside the products of one run the
    sums of the other. At head dims past 128 their shared memory leaves room for one."""
    shared = machine.backend == "cuda" and machine.capability == (9, 0) and padded(head_dim) <= 128
    return {"maxnreg": 128} if shared and family_of(policy) != "lsh" else {}


def family_of(policy: Sparsity) -> str:
    """The family of the kernel that says what each tile promises."""
    return "promise" if policy.measure == "share" else "lsh" if policy.policy == "lsh" else "estimate"


def constants(spec: AttentionSpec, choice: Choice, head_dim: int, upcast: bool) -> dict[str, Any]:
    """Compile-time constants of that kernel."""
    tiles = {"GROUP": spec.group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n, "BOX": BOX}
    family, mean = family_of(spec.sparsity), {"MEAN": spec.sparsity.measure == "mass"}
    if family == "lsh":
        return tiles | {"CHUNK": CHUNK_SIGNED} | mean
    dims = {"D": head_dim, "BLOCK_D": padded(head_dim), "CHUNK": min(CHUNK, CHUNK_KEYS // choice.block_n), "UPCAST": upcast}
    return tiles | dims | (mean if family == "estimate" else {})


def ranked(scores: Tensor, tiles: Tensor, counts: Tensor, value: float, measure: str) -> None:
    """Writes the list of each item, of scores [items, capacity]."""
    from .rank import rank

    block = 1 << (scores.shape[1] - 1).bit_length()
    launch(rank, (len(scores),), (scores, tiles, counts, value, scores.shape[1]),
           {"BLOCK_C": max(block, 32), "MEASURE": measure}, 1 if block <= 512 else 4, 1, scores.device.index)


def boxes_of(k: Tensor) -> Tensor:
    """k [B, H, S, D] -> centre and half of the half extent of every BOX keys [B, H, ceil(S / BOX), 2, D], in k's dtype."""
    from .boxes import boxes

    batch, heads, keys, head_dim = k.shape
    count = -(-keys // BOX)
    found = k.new_empty(batch, heads, count, 2, head_dim)
    fixed = {"D": head_dim, "BLOCK_D": padded(head_dim), "BLOCK_X": BLOCK_X, "BOX": BOX}
    grid = (batch * heads * -(-count // BLOCK_X),)
    launch(boxes, grid, (k, k.stride(), found, heads, keys, count), fixed, 4, 1, k.device.index)
    return found


def signatures_of(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words and norms of the boxes of queries, then of keys, which are centred."""
    mean = k.mean(2, dtype=torch.float32)
    return *_signatures(q, torch.zeros_like(q[:, :, 0], dtype=torch.float32)), *_signatures(k, mean)


def _signatures(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    from .signatures import signatures

    batch, heads, length, head_dim = x.shape
    count = -(-length // BOX)
    words = x.new_empty(batch, heads, count, dtype=torch.int64)
    norms = x.new_empty(batch, heads, count, dtype=torch.float32)
    fixed = {"D": head_dim, "BLOCK_D": padded(head_dim), "BLOCK_X": 16, "BOX": BOX}
    arguments = (x, x.stride(), centre.contiguous(), planes(head_dim, x.device), words, norms, heads, length, count)
    launch(signatures, (batch * heads * -(-count // 16),), arguments, fixed, 4, 1, x.device.index)
    return words, norms


@lru_cache(maxsize=64)
def planes(head_dim: int, device: torch.device) -> Tensor:
    """Random directions [BITS, head_dim] float32, the same in every process."""
    rng = torch.Generator().manual_seed(0)
    return (torch.randn(BITS, head_dim, generator=rng) / math.sqrt(head_dim)).to(device)
