"""lo(i), hi(i) of a spec as numbers, for a model of time: how many whole and how many edge tiles a tile of rows has

What only a run knows is guessed: a number or a table's element is keys - queries, as where the last query sits at the last
key; a table by rows bounds nothing; positions that share a table's element, packed documents, come in runs of DOCUMENT.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sympy

from ... import expr as E
from ...ir import AttentionSpec

POINTS, MOST_ROW_TILES = 33, 32
DOCUMENT = 2048
"""Tokens of a packed document, where nothing says how many."""


@dataclass(frozen=True)
class Spans:
    """lo, hi: at POINTS rows, evenly from the first to the last. by_table: whether edge tiles evaluate a residue; everywhere:
    whether all tiles do; classed: whether its tiles are classed."""

    lo: tuple[float, ...]
    hi: tuple[float, ...]
    by_table: bool = False
    everywhere: bool = False
    classed: bool = False

    def at(self, values: tuple[float, ...], share: float) -> float:
        """Between the points."""
        place = min(max(share, 0.0), 1.0) * (POINTS - 1)
        first = min(int(place), POINTS - 2)
        return values[first] + (place - first) * (values[first + 1] - values[first])

    def tiles(self, queries: int, block_m: int, block_n: int) -> Iterator[tuple[int, int, float]]:
        """Whole tiles, edge tiles and the last key of row tiles, the last rows first; of many row tiles a sample."""
        count = -(-queries // block_m)
        step = max(1.0, count / MOST_ROW_TILES)
        for at in range(min(count, MOST_ROW_TILES) - 1, -1, -1):
            first = int((at + 0.5) * step) * block_m
            ends = [row / max(1, queries - 1) for row in (first, min(first + block_m, queries) - 1)]
            lo, hi = ([self.at(values, end) for end in ends] for values in (self.lo, self.hi))
            if self.classed:
                lo = [first // DOCUMENT * DOCUMENT] * 2
            begin, end = int(min(lo)) // block_n, -(-int(max(hi)) // block_n)
            whole = 0 if self.everywhere else max(0, int(min(hi)) // block_n - -(-int(max(lo)) // block_n))
            yield whole, max(1, end - begin) - whole, max(hi)


def spans_of(spec: AttentionSpec, queries: int, keys: int) -> Spans:
    """Of the first head of the first sequence."""
    rows = [round(at * (queries - 1) / (POINTS - 1)) for at in range(POINTS)]
    guessed = max(0, keys - queries)
    lo = tuple(_clamped(_number(spec.lo, row, guessed, 0), keys) for row in rows)
    hi = tuple(_clamped(_number(spec.hi, row, guessed, keys), keys) for row in rows)
    by_table = spec.residue != sympy.true
    return Spans(lo, hi, by_table, by_table and spec.tile is None, by_table and spec.tile is not None)


def _number(expr: sympy.Basic, row: int, guessed: int, unknown: int) -> float:
    """The expression at a row; `unknown` where it is none, or a table's by rows."""
    loads = E.loads(expr)
    if any(E.i in load.free_symbols for load in loads):
        return float(unknown)
    value = expr.xreplace(dict.fromkeys(loads, sympy.Integer(guessed)))
    places = {E.i: row, E.b: 0, E.h: 0}
    value = value.subs({symbol: places.get(symbol, guessed) for symbol in value.free_symbols})
    return float(value) if value.is_number and value.is_finite else float(unknown)


def _clamped(value: float, keys: int) -> float:
    return min(max(value, 0.0), float(keys))


def rounded(length: int) -> int:
    """Up to an eighth of the power of two below it, 64 at least: lengths that are near share a choice."""
    step = max(64, 1 << max(0, length.bit_length() - 4))
    return -(-length // step) * step
