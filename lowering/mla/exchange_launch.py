"""Boxes, grid and constants of the Hopper kernels of latents; how many blocks share the key tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import Tensor

from ... import expr as E
from ...ir import AttentionSpec
from ...ops import packed_width
from ..choice import Choice, padded, programs
from ..hopper.config import has_gluon
from ..machine import Machine
from ..prefill.config import room
from ..tma import REGISTERS, describe
from .config import Shape, parts

FAMILIES = ("mla_exchange", "packed_exchange", "tokens_exchange", "mla_narrow")
LEAST_TILES = 3
"""Key tiles of a block: fewer, and its part costs more to write and join than its keys to read."""
LINE_QUERIES = 16
"""Query positions up to which the hulls of a sequence's rows are so alike that one length stands for all."""
MOST_LENGTHS = 1024
"""Sequences times query positions whose lengths a warp holds in registers."""
PART_TILES = 4
"""Least tiles of a part: two pairs."""
AT_ONCE = 64
"""Most parts: those that the merge reads at once."""
FULL = 0.9
"""Of the processors that whole items keep busy, from which nothing is cut."""
ROWS = 64
NARROW = (16, 32)
"""Rows of a block of mla_narrow."""
BLOCK_N = 64
_RANKS = (128, 256, 512)
PACKED_RANK = 512
LARGEST_ROPE = 64
"""Columns of the rope part: its queries lie where weights will."""


def serves(spec: AttentionSpec, shape: Shape, dtype: torch.dtype, machine: Machine) -> bool:
    """Whether there is a kernel: for hulls alone, in 16 bits, with rows of whole 16 bytes."""
    return (
        machine.backend == "cuda" and machine.capability == (9, 0) and dtype in (torch.float16, torch.bfloat16)
        and spec.residue == sympy.true and spec.tile is None and room(spec) == (128, 128) and padded(shape.rank) in _RANKS
        and shape.rank % 8 == shape.rope % 8 == 0 and shape.rope <= LARGEST_ROPE and has_gluon()
        and (not shape.packed or shape.rank == PACKED_RANK)
    )


def family_of(family: str, heads: int, queries: int) -> str:
    """The kernel of a family, mla, packed or tokens: of few rows one whose products have them as columns."""
    return "mla_narrow" if family == "mla" and _power(heads) * queries <= NARROW[-1] else f"{family}_exchange"


def whole(family: str, heads: int, queries: int) -> Choice:
    """A block that has all keys of an item."""
    rows = ROWS
    if family == "mla_narrow":
        rows = next(rows for rows in NARROW if _power(heads) * queries <= rows)
    return Choice(family, rows, BLOCK_N, 4, 2)


def candidates(
    spec: AttentionSpec, family: str, rows: tuple[int, int, int], shape: Shape, machine: Machine
) -> tuple[Choice, ...]:
    """What is taken without timing first; rows: B, H, T. A number of parts that was asked for is kept.

    Equal parts need no plan, and are faster by 5 to 10% of a step (BENCHMARKS.md), but as slow as the longest sequence. So
    sequences share a line, unless there is one, or whole ones keep the machine busy.
    """
    alone = whole(family, *rows[1:])
    if spec.kv_splits:
        return (replace(alone, kv_splits=spec.kv_splits),)
    most = min(AT_ONCE, max(1, -(-shape.keys // (PART_TILES * BLOCK_N))))
    count = parts(shape, alone.block_m, BLOCK_N, machine, most)
    counts = dict.fromkeys((count, max(1, count // 2), min(most, 2 * count)))
    equal = [replace(alone, kv_splits=count) for count in counts]
    shared = line(spec, family, *rows, shape.keys, machine)
    if shared is None:
        return tuple(equal)
    full = shape.items * lanes(alone, *rows[1:]) >= FULL * machine.processors
    single = shape.items == 1 and family != "tokens_exchange"
    if full and shape.items * lanes(alone, *rows[1:]) > shared.programs:
        return tuple(equal)                                         # each item has a slot of the workspace
    return (*equal, shared) if full or single else (shared, *equal)


def box(choice: Choice, heads: int) -> int:
    """BLOCK_H: heads of a block's box of rows."""
    return ROWS if choice.family == "tokens_exchange" else min(choice.block_m, _power(heads))


def lanes(choice: Choice, heads: int, queries: int) -> int:
    """Boxes of an item."""
    block_h = box(choice, heads)
    return -(-heads // block_h) * (1 if choice.family == "tokens_exchange" else -(-queries // (choice.block_m // block_h)))


def constants(choice: Choice, heads: int, rank: int, width: int, paged: bool) -> dict[str, Any]:
    """The constexpr arguments. Packed rows lie as they were packed."""
    found = {"R": rank, "BLOCK_N": BLOCK_N, "HALF": padded(rank) // 2, "BLOCK_P": LARGEST_ROPE, "BLOCK_H": box(choice, heads),
             "IN_PAGES": paged, "BLOCK_B": choice.block_b if choice.programs else 0}
    found |= {"ROW": packed_width(rank, width) // 4} if choice.family == "packed_exchange" else {}
    found |= {"BLOCK_M": choice.block_m} if choice.family == "mla_narrow" else {}
    return found | ({"P": width} if choice.family == "tokens_exchange" else {"BLOCK_T": choice.block_t})


def tiles(choice: Choice, heads: int, rank: int) -> dict[str, tuple[int, ...]]:
    """The tile of each descriptor: of q_latent, q_rope and out [B, T, H, .], of what TMA reads of latent, rope [.., S, .]."""
    rows, half = (choice.block_m // box(choice, heads), box(choice, heads)), padded(rank) // 2
    found: dict[str, tuple[int, ...]] = {"q_latent": (*rows, half), "q_rope": (*rows, LARGEST_ROPE), "out": (*rows, half)}
    found |= {"latent": (BLOCK_N, half)} if choice.family in ("mla_exchange", "mla_narrow") else {}
    return found | ({"rope": (BLOCK_N, LARGEST_ROPE)} if choice.family != "tokens_exchange" else {})


def registers(choice: Choice) -> int:
    """Per thread at the start, of 64 K: of 12 warps, or of 8."""
    return 240 if choice.family == "mla_narrow" else REGISTERS


def part(choice: Choice, heads: int, queries: int, rank: int) -> tuple[int, int]:
    """The tile of the descriptor of parts [slots * block_m, R] in the queries' memory of half of the columns: rows that there
    are, 8 at least, which are swizzled together."""
    return min(choice.block_m, max(8, box(choice, heads) * _power(queries))), padded(rank) // 2


def described(choice: Choice, given: dict[str, Tensor]) -> dict[str, Any]:
    """Descriptors of the tensors that have one; queries and out are [B, H, T, .]."""
    heads, rank = given["q_latent"].shape[1], given["q_latent"].shape[3]
    return {name: describe(given[name].transpose(1, 2) if given[name].dim() == 4 else given[name], *tile)
            for name, tile in tiles(choice, heads, rank).items()}


def line(spec: AttentionSpec, family: str, batch: int, heads: int, queries: int, keys: int, machine: Machine) -> Choice | None:
    """Blocks that share a line of tiles, `keys` keys or chosen tokens an item; None where lengths are not known to be alike."""
    tokens, alone = family == "tokens_exchange", whole(family, heads, queries)
    if not tokens and (queries > LINE_QUERIES or _power(batch) * _power(queries) > MOST_LENGTHS or _of_heads(spec)):
        return None
    rows = lanes(alone, heads, queries)
    tiles, items = -(-keys // BLOCK_N), batch * queries if tokens else batch
    blocks = programs(items, max(1, -(-items * tiles // LEAST_TILES)), max(1, machine.processors // rows))
    return replace(alone, programs=blocks * rows, block_b=1 if tokens else _power(batch),
                   block_t=1 if tokens else _power(queries))


def _of_heads(spec: AttentionSpec) -> bool:
    """Whether heads have hulls of their own."""
    return bool((spec.lo.free_symbols | spec.hi.free_symbols) & {E.h})


def shares(items: int, tiles: int, blocks: int) -> tuple[int, int]:
    """(tiles of a block, tiles of an item in the line) for equal items; as `share_alike` in `line.py`."""
    each = max(-(-items * tiles // blocks), LEAST_TILES)
    limit = each + 1 + each // 8
    if items <= blocks:
        whole = max(-(-tiles // (blocks // items)), LEAST_TILES)
        if whole <= limit:
            return whole, -(-tiles // whole) * whole
    several = -(-each // tiles) * tiles
    return (several if several <= limit else each), tiles


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()
