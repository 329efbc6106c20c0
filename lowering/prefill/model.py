"""us(choice) = LAUNCH + the busiest slot's sum of its items; so which tile, and plain Triton or Hopper, is the first to time

An item is BLOCK_M queries of one head: START, its tiles of keys, and EDGE for each tile that is masked. A tile takes

    plain    max(products / rate + elements * weight, bytes / L2, LEAST)  its warps do one after the other
    Hopper   max(products / rate, elements * weight) + STEP              its warpgroups do one beside the other

products = 2 BLOCK_M BLOCK_N (D + DV) flops, elements = BLOCK_M BLOCK_N exponentials and what goes with each, bytes those of K
and V from the second-level cache. Slots are processors times the blocks one holds; the items are dealt out as the kernels do,
so a last wave that is not full costs what it takes. A choice is moved before those that are preferred by hand only where it is
MARGIN faster. Constants: fitted to the tables of BENCHMARKS.md (one H100, 16 bits); for other machines the hand's order stays.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...ir import AttentionSpec
from ..choice import Choice, padded, padded_value
from ..machine import Machine
from .spans import Spans, rounded, spans_of

LAUNCH, MARGIN = 3.0, 1.05
MOST_DEALT = 1024
"""Items dealt out one by one; of more a last wave is a small part."""


@dataclass(frozen=True)
class Rates:
    """Of one processor. rate, narrow, deep: flops a us, in tiles of 128 keys, of fewer, of fewer with D = DV = 256; weight: us
    an element; l2: bytes a us; start, edge, step: us; scan: us for each 4096 keys whose tiles are classed, 0 where a warp does
    so beside; element: us more for one that a table masks."""

    rate: float
    narrow: float
    weight: float
    start: float
    edge: float
    step: float = 0.0
    deep: float = 0.0
    l2: float = math.inf
    scan: float = 0.0
    element: float = 0.0


PLAIN = Rates(rate=5.23e6, narrow=5.23e6, weight=3.84e-5, start=1.79, edge=1.5, l2=4.94e4, scan=2.55, element=1.73e-4)
HOPPER = Rates(rate=5.43e6, narrow=4.83e6, deep=6.04e6, weight=6.85e-5, start=1.29, edge=0.673, step=0.098, element=6.47e-5)
TWO_STAGES, LEAST, THREE = 1.14, 0.6, 0.85
"""Plain tiles with fewer than three stages wait for their keys; no tile was seen to take fewer us than LEAST. Hopper: an
element where three warpgroups share the units."""


@dataclass(frozen=True)
class Work:
    """q [batch, heads, queries, head_dim], k [batch, kv_heads, keys, head_dim] in 16 bits: `heads` of all sequences."""

    heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int


def ordered(spec: AttentionSpec, work: Work, choices: Sequence[Choice], itemsize: int, machine: Machine) -> tuple[Choice, ...]:
    """`choices`, preferred first, in the order of their times; the preferred of those within MARGIN of the fastest leads."""
    if itemsize != 2 or machine.backend != "cuda" or machine.capability != (9, 0):
        return tuple(choices)
    near = Work(work.heads, rounded(work.queries), rounded(work.keys), work.head_dim, work.value_dim)
    return _ordered(spec, near, tuple(choices), machine)


@lru_cache(maxsize=1024)
def _ordered(spec: AttentionSpec, work: Work, choices: tuple[Choice, ...], machine: Machine) -> tuple[Choice, ...]:
    spans = spans_of(spec, work.queries, work.keys)
    times = {choice: microseconds(choice, work, spans, machine) for choice in choices}
    fastest = min(times.values())
    leader = next(choice for choice in choices if times[choice] <= MARGIN * fastest)
    return (leader, *sorted((choice for choice in choices if choice != leader), key=times.__getitem__))


def microseconds(choice: Choice, work: Work, spans: Spans, machine: Machine) -> float:
    """The time of one launch."""
    rates, slots = (HOPPER, 1) if choice.family == "hopper" else (PLAIN, blocks_of_a_processor(choice, work, machine))
    tile = slots * tile_us(choice, work)
    table = rates.element * choice.block_m * choice.block_n * slots if spans.by_table else 0.0
    items = []
    for whole, edge, last in spans.tiles(work.queries, choice.block_m, choice.block_n):
        scanned = rates.scan * math.ceil(last / 4096) if spans.classed else 0.0
        items.append(rates.start + scanned + whole * tile + edge * (tile + rates.edge + table))
    each = math.ceil(work.queries / choice.block_m) / len(items)
    return LAUNCH + dealt(items, work.heads * each, machine.processors * slots, longest_first=choice.family == "hopper")


def tile_us(choice: Choice, work: Work) -> float:
    """One tile of keys, on a processor that has nothing else to do."""
    elements = choice.block_m * choice.block_n
    if choice.family != "hopper":
        d, dv = padded(work.head_dim), padded_value(work.head_dim, work.value_dim)
        computed = 2 * elements * (d + dv) / PLAIN.rate + elements * PLAIN.weight
        return max(computed, 2 * choice.block_n * (d + dv) / PLAIN.l2, LEAST) * (TWO_STAGES if choice.stages < 3 else 1.0)
    d, dv = padded(work.head_dim), padded(work.value_dim)
    d = d if work.head_dim > 3 * d // 4 else 3 * d // 4                     # two tiles: 192 = 128 + 64
    rate = HOPPER.rate if choice.block_n >= 128 else HOPPER.narrow if d + dv < 512 else HOPPER.deep
    weight = HOPPER.weight * (1.0 if choice.block_m <= 128 else THREE)
    return max(2 * elements * (d + dv) / rate, elements * weight) + HOPPER.step


def blocks_of_a_processor(choice: Choice, work: Work, machine: Machine) -> int:
    """By shared memory, and by registers: eight warps may have all of them."""
    d, dv = padded(work.head_dim), padded_value(work.head_dim, work.value_dim)
    size = 2 * (choice.block_m * d + choice.stages * choice.block_n * (d + dv))
    return max(1, min(machine.shared_memory // size, 8 // choice.warps))


def dealt(items: Sequence[float], times: float, slots: int, longest_first: bool) -> float:
    """us until the last item is done, of items that come `times` times each: one goes to the first slot that is free."""
    total, count = sum(items) * times, round(len(items) * times)
    if count > MOST_DEALT:
        return total / slots + (0.0 if longest_first else max(items) / 4)
    queue = list(items) * round(times)
    if longest_first:
        queue.sort(reverse=True)
    free = [0.0] * min(slots, len(queue))
    for item in queue:
        heapq.heapreplace(free, free[0] + item)
    return max(free)
