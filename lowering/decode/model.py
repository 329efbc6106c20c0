"""us(choice) = START + merge + max(bytes / rate, (waves - 1) * tile) + tile; so which kernel, tile and stages, is timed first

    bytes    K and V of all items, at the memory's rate, which falls by CROWD for each MiB on its way beyond ENOUGH
    waves    key tiles of the program that has most
    tile     max(LATENCY / stages, STEP + products / FLOPS + elements * weight)       us
    merge    MERGE, and ROW for each row of each part of an item, where items are cut

products = 2 BLOCK_M BLOCK_N (D + DV) flops, elements = BLOCK_M BLOCK_N. Lengths are not known when a kernel is chosen: all
keys count as live. Constants: fitted to the table that the test reads (one H100, 16 bits; `BENCHMARKS.md`); for other machines
the hand's order stays. A choice is moved before those that are preferred by hand only where it is MARGIN faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ..choice import Choice
from ..machine import Machine
from .config import Shape

MARGIN = 1.03
ENOUGH = 64 << 10
"""Bytes of K and V that each processor has on their way without crowding the others."""
LEAST_KEYS = 128
"""Of a program, as in `balance.py`."""
FLOPS = 5.26e6
"""A us and processor, of products of 64 rows."""
LATENCY = 1.44
"""us from asking for a tile to having it, where all processors ask."""


@dataclass(frozen=True)
class Rates:
    """start, merge, row, step: us; memory: bytes a us; crowd: share of a MiB; weight: us an element."""

    start: float
    merge: float
    row: float
    memory: float
    crowd: float
    step: float
    weight: float


HOPPER = Rates(start=4.6, merge=0.5, row=0.0158, memory=3.02e6, crowd=0.06, step=0.36, weight=1.3e-5)
PLAIN = Rates(start=6.6, merge=0.9, row=0.0124, memory=3.01e6, crowd=0.02, step=0.29, weight=2.1e-4)


def ordered(group: int, shape: Shape, choices: Sequence[Choice], machine: Machine) -> list[Choice]:
    """`choices`, preferred first, in the order of their times; the preferred of those within MARGIN of the fastest leads."""
    if shape.itemsize != 2 or machine.backend != "cuda" or machine.capability != (9, 0):
        return list(choices)
    times = {choice: microseconds(choice, group, shape, machine) for choice in choices}
    fastest = min(times.values())
    leader = next(choice for choice in choices if times[choice] <= MARGIN * fastest)
    return [leader, *sorted((choice for choice in choices if choice != leader), key=times.__getitem__)]


def microseconds(choice: Choice, group: int, shape: Shape, machine: Machine) -> float:
    """The time of one launch of a balanced line."""
    rates = HOPPER if choice.family == "decode_hopper" else PLAIN
    rows = group * shape.queries
    items = shape.batch * shape.kv_heads * ceil(rows / choice.block_m)
    tiles = ceil(shape.keys / choice.block_n)
    waves, parts = cut(items, tiles, choice.programs, ceil(LEAST_KEYS / choice.block_n))
    key = shape.itemsize * (shape.head_dim + shape.value_dim)                                   # bytes
    waiting = choice.stages * choice.block_n * key * choice.programs / machine.processors
    crowded = 1 + rates.crowd * max(0.0, waiting - ENOUGH) / (1 << 20)
    merge = (rates.merge + rates.row * min(rows, choice.block_m) * parts) if parts > 1 else 0.0
    memory = items * shape.keys * key / rates.memory * crowded
    tile = tile_us(choice, shape, rates)
    return rates.start + merge + max(memory, (waves - 1) * tile) + tile


def cut(items: int, tiles: int, programs: int, least: int) -> tuple[int, float]:
    """Key tiles of a program, and in how many parts an item lies, as `balance.py` cuts a line of equal lengths."""
    share, few = max(ceil(items * tiles / programs), least), programs // items
    even = max(ceil(tiles / max(1, few)), least)
    if few and even <= share + 1 + share // 8:
        return min(even, tiles), ceil(tiles / even)
    return min(share, items * tiles), tiles / share + 1


def tile_us(choice: Choice, shape: Shape, rates: Rates) -> float:
    """One tile of keys, on a processor that has nothing else to do."""
    elements = choice.block_m * choice.block_n
    products = 2 * elements * (shape.head_dim + shape.value_dim)
    return max(LATENCY / choice.stages, rates.step + products / FLOPS + elements * rates.weight)
