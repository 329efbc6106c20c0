"""o = sum_{j kept} 2^(a_j - m) v_j / l        a tile of keys is kept if one row at least may need it

`scan` and `stream` of the plain kernels, for a spec with a threshold or an error budget: they take the places of those, and
whatever is built on them, parts, packed rows, merging, is as it was. Tiles are met inward: the first, where a softmax keeps its
sink, then from the last backwards, so that the largest weights come early. Per row, best is the logit of a tile's best key and
y = log2 sum 2^best over the tiles met before, kept or not; a tile whose every row has

    best < y + limit        limit = log2 of the ratio; of an error budget log2 (budget / keys of all the tiles)

costs q.k and a maximum, and neither V, nor its weights, nor its product with V. A NaN logit counts only where its tile is kept.
"""

import triton
import triton.language as tl

from ..hooks import HAS_LO, HAS_RESIDUE, HAS_TILE, limit, residue, score
from ..keys import key_scales, load_keys, load_values, value_scales
from ..scan import dot, nothing, segments, tile_summary

BUDGET = tl.constexpr(False)


@triton.jit
def met(y, best):
    """log2(2^y + 2^best) [M]."""
    top = tl.maximum(y, best)
    shift = tl.where(top == float("-inf"), 0.0, top)
    return top + tl.log2(tl.where(top == float("-inf"), 1.0, tl.exp2(y - shift) + tl.exp2(best - shift)))


@triton.jit
def counted(at, j0, computed, env, BLOCK_N: tl.constexpr):
    """Nothing is noted of the tile; `sparse/counted.py` does."""


@triton.jit
def weigh(acc, m, l, y, b_q, visible, j0, span, least, at, keys, env, D: tl.constexpr, DV: tl.constexpr,
          BLOCK_N: tl.constexpr, MASKED: tl.constexpr, EAGER: tl.constexpr, UPCAST: tl.constexpr):
    """acc [M, DV], m, l and y [M] after the tile of keys j0 .. j0 + N; `least` is the limit.

    EAGER: V is on its way before it is known whether it is needed: many rows wait for it, and it is in the second-level cache.
    """
    b, h, i = at
    DTYPE: tl.constexpr = tl.float32 if UPCAST else b_q.dtype
    j = j0 + tl.arange(0, BLOCK_N)                                                             # [N]
    b_k = load_keys(keys, j, span, DTYPE, D, b_q.shape[1], MASKED)                             # [N, D]
    s = dot(b_q, tl.trans(b_k), tl.zeros([b_q.shape[0], BLOCK_N], tl.float32), UPCAST)         # [M, N]
    s = key_scales(s, keys, j, span, MASKED)
    a = score(s, b, h, i, j[None, :], env)                                                     # [M, N]
    if MASKED:
        a = tl.where(visible, a, float("-inf"))
    if EAGER:
        b_v = load_values(keys, j, span, DTYPE, DV, acc.shape[1], MASKED)                      # [N, DV]
    best = tl.max(a, 1)                                                                        # [M]
    needed = (best != float("-inf")) & ((best >= y + least) | (best != best))
    y = met(y, best)
    computed = tl.max(needed.to(tl.int32)) > 0
    counted(at, j0, computed, env, BLOCK_N)
    if computed:
        m_new = tl.maximum(m, best)                                                            # [M]
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(a - shift[:, None])                                                        # [M, N]
        shrink = tl.exp2(m - shift)                                                            # [M]
        if not EAGER:
            b_v = load_values(keys, j, span, DTYPE, DV, acc.shape[1], MASKED)                  # [N, DV]
        acc = dot(value_scales(p, keys, j, span, MASKED), b_v, acc * shrink[:, None], UPCAST)  # [M, DV]
        l = l * shrink + tl.sum(p, 1)
        m = m_new
    return acc, m, l, y


@triton.jit
def smallest(first, last, env, BLOCK_N: tl.constexpr):
    """The limit for the tiles of keys [first, last)."""
    least = limit(env)
    if BUDGET:
        least -= tl.log2((tl.maximum(tl.cdiv(last - first, BLOCK_N), 1) * BLOCK_N).to(tl.float32))
    return least


@triton.jit
def weigh_edge(acc, m, l, y, b_q, j0, span, least, lo, hi, S, at, rows, keys, env, D: tl.constexpr, DV: tl.constexpr,
               BLOCK_N: tl.constexpr, UPCAST: tl.constexpr):
    """`weigh` under hull and residue; a tile in which the residue shows nothing costs neither K nor V."""
    b, h, i = at
    j = (j0 + tl.arange(0, BLOCK_N))[None, :]
    visible = (j >= lo) & (j < hi)
    if HAS_RESIDUE:
        most = 1
        if HAS_TILE:
            _, most = tile_summary(rows[0], rows[1], rows[2], j0, S, env, BLOCK_N)
        if most > 0:
            visible = visible & residue(b, h, i, j, env)
            acc, m, l, y = weigh(acc, m, l, y, b_q, visible, j0, span, least, at, keys, env, D, DV, BLOCK_N, True, False,
                                 UPCAST)
    else:
        acc, m, l, y = weigh(acc, m, l, y, b_q, visible, j0, span, least, at, keys, env, D, DV, BLOCK_N, True, False, UPCAST)
    return acc, m, l, y


@triton.jit
def weigh_right(acc, m, l, y, b_q, start, outer, stop, span, least, lo, hi, S, at, rows, keys, env, D: tl.constexpr,
                DV: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr):
    """The first tile of [start, stop), then those past `outer`, which some rows see in part, from the last backwards."""
    right = tl.maximum(outer, start + BLOCK_N)
    edges = tl.cdiv(tl.maximum(stop - right, 0), BLOCK_N)
    for n in tl.range(0, tl.where(start < stop, edges + 1, 0), num_stages=1):
        j0 = tl.where(n == 0, start, right + (edges - n) * BLOCK_N)
        acc, m, l, y = weigh_edge(acc, m, l, y, b_q, j0, span, least, lo, hi, S, at, rows, keys, env, D, DV, BLOCK_N, UPCAST)
    return acc, m, l, y


@triton.jit
def weigh_left(acc, m, l, y, b_q, start, inner, span, least, lo, hi, S, at, rows, keys, env, D: tl.constexpr, DV: tl.constexpr,
               BLOCK_N: tl.constexpr, UPCAST: tl.constexpr):
    """The tiles before `inner`, which some rows see in part, but for the first, from the last backwards."""
    if HAS_LO or HAS_TILE:
        second = start + BLOCK_N
        left = tl.cdiv(tl.maximum(inner - second, 0), BLOCK_N)
        for n in tl.range(0, left, num_stages=1):
            j0 = second + (left - 1 - n) * BLOCK_N
            acc, m, l, y = weigh_edge(acc, m, l, y, b_q, j0, span, least, lo, hi, S, at, rows, keys, env, D, DV, BLOCK_N,
                                      UPCAST)
    return acc, m, l, y


@triton.jit
def scan(b_q, first, last, span, lo, hi, S, at, rows, keys, env, D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr,
         BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr):
    """acc [M, DV] float32, m [M], l [M] of the keys [first, last) that are kept; arguments as of the plain `scan`."""
    acc, m, l = nothing(b_q.shape[0], BLOCK_DV)
    y = tl.full([b_q.shape[0]], float("-inf"), tl.float32)
    start = first
    stop = tl.maximum(last, first)
    inner = stop
    outer = first
    if HAS_TILE or not HAS_RESIDUE:
        start, inner, outer, stop = segments(first, last, lo, hi, S, rows, env, BLOCK_N)
    else:
        inner = first
    least = smallest(start, stop, env, BLOCK_N)
    acc, m, l, y = weigh_right(acc, m, l, y, b_q, start, outer, stop, span, least, lo, hi, S, at, rows, keys, env, D, DV,
                               BLOCK_N, UPCAST)
    whole = tl.maximum(inner, start + BLOCK_N)
    count = tl.maximum(outer - whole, 0) // BLOCK_N
    for n in tl.range(0, count, num_stages=STAGES):
        j0 = whole + (count - 1 - n) * BLOCK_N
        acc, m, l, y = weigh(acc, m, l, y, b_q, True, j0, span, least, at, keys, env, D, DV, BLOCK_N, False, True, UPCAST)
    acc, m, l, y = weigh_left(acc, m, l, y, b_q, start, inner, span, least, lo, hi, S, at, rows, keys, env, D, DV, BLOCK_N,
                              UPCAST)
    return acc, m, l


@triton.jit
def stream(b_q, first, last, lo, hi, at, keys, env, D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr):
    """Keys [first, last) of a decode step in one loop, masked throughout."""
    acc, m, l = nothing(b_q.shape[0], BLOCK_DV)
    y = tl.full([b_q.shape[0]], float("-inf"), tl.float32)
    least = smallest(first, last, env, BLOCK_N)
    tiles = tl.cdiv(tl.maximum(last - first, 0), BLOCK_N)
    for n in tl.range(0, tiles, num_stages=STAGES):
        j0 = first + tl.where(n == 0, 0, tiles - n) * BLOCK_N
        j = (j0 + tl.arange(0, BLOCK_N))[None, :]
        acc, m, l, y = weigh(acc, m, l, y, b_q, (j >= lo) & (j < hi), j0, (first, last), least, at, keys, env, D, DV, BLOCK_N,
                             True, False, UPCAST)
    return acc, m, l
