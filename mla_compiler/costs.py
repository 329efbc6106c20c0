"""What an attention costs, from shapes alone:  FLOPs = 2 B H N (D + Dv),  N = T S as written, sum_i (hi_i - lo_i) fused.

Bytes are those that cross main memory at least once: q and out, K and V as often as they are read, and the mask. Caches
on the way, the softmax's own FLOPs and the split of the key range are not counted: an estimate to compare by, no measurement.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy

from . import expr as E
from .ir import AttentionSpec


@dataclass(frozen=True)
class Costs:
    """FLOPs and bytes of one call: as the model is written, and fused."""

    flops_before: int
    flops_after: int
    bytes_before: int
    bytes_after: int


def estimate(
    spec: AttentionSpec,
    *,
    B: int, H: int, Hkv: int, T: int, S: int, D: int, Dv: int,
    itemsize: int,
    mask_bytes: int = 0,
    repeated: bool = False,
    score_passes: int = 0,
    table_bytes: int = 0,
    kv_bytes: int | None = None,
    gathered: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> Costs:
    """The costs of q [B, H, T, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv] under `spec`. Symbolic lengths come as their hints.

    itemsize      bytes of one element of q, k and v
    mask_bytes    bytes of the mask tensor as written
    repeated      K and V are repeated to H heads in memory as written (written once, read once, on top of the first read)
    score_passes  how often a [B, H, T, S] tensor crosses memory as written: 0 for F.sdpa
    table_bytes   bytes of the tables the fused kernel reads
    kv_bytes      bytes of one key and its value where they lie; (D + Dv) * itemsize unless they are quantised
    gathered      as written, K and V are first gathered from pages: written once, read once
    sizes         hints of the run-time integers n0, n1, ... that the hull speaks of
    """
    visible, reach = visible_keys(spec.lo, spec.hi, T, S, tuple(sorted((sizes or {}).items())))
    ends = B * H * T * (D + Dv) * itemsize
    row = B * (D + Dv) * itemsize
    kv_bytes = (D + Dv) * itemsize if kv_bytes is None else kv_bytes
    copies = (2 * H * S if repeated else 0) + (2 * Hkv * S if gathered else 0)
    return Costs(
        flops_before=2 * B * H * T * S * (D + Dv),
        flops_after=2 * B * H * visible * (D + Dv),
        bytes_before=ends + B * kv_bytes * Hkv * S + row * copies + mask_bytes + score_passes * B * H * T * S * itemsize,
        bytes_after=ends + B * kv_bytes * Hkv * reach + table_bytes,
    )


@lru_cache(maxsize=1024)
def visible_keys(lo: sympy.Basic, hi: sympy.Basic, T: int, S: int, sizes: tuple[tuple[str, int], ...]) -> tuple[int, int]:
    """(sum over the T query rows of the keys in their hull, keys in the union of the hulls), both clipped to [0, S).

    Exact where the hull speaks of i and sizes only; a bound that a table or the batch or head decides is left out (0 or
    S), so the hull is never too small. Of Max (lo) and Min (hi) the parts that are known still bound.
    """
    known = {E.index_symbol(name): value for name, value in sizes}
    lows = _known([part.subs(known) for part in _parts(lo, sympy.Max)])
    highs = _known([part.subs(known) for part in _parts(hi, sympy.Min)])
    total, first, last = 0, S, 0
    for i in range(T):
        low = max([0, *(int(low(i)) for low in lows)])
        high = min([S, *(int(high(i)) for high in highs)])
        if low < high:
            total, first, last = total + high - low, min(first, low), max(last, high)
    return total, max(last - first, 0)


def shape_text(names: Sequence[str], shapes: Sequence[Sequence[object]]) -> str:
    """`q [1, 9, 64, 64], k [1, 3, 64, 64], v [1, 3, 64, 64]`: the text of Site.shape."""
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in zip(names, shapes, strict=True))


def _parts(bound: sympy.Basic, kind: Any) -> list[sympy.Basic]:
    return list(bound.args) if isinstance(bound, kind) else [bound]


def _known(parts: list[sympy.Basic]) -> list[Callable[[int], int]]:
    """As functions of the query row i: the parts that depend on i alone and are finite."""
    found = []
    for part in parts:
        if part.has(E.Load) or part.free_symbols - {E.i} or part.has(sympy.oo, -sympy.oo):
            continue
        found.append(sympy.lambdify(E.i, part, modules=[_PYTHON, "math"]))
    return found


_PYTHON = {
    "FloorDiv": operator.floordiv, "PythonMod": operator.mod, "Min": min, "Max": max,
    "Where": lambda condition, then, otherwise: then if condition else otherwise,
}
