"""o = sum_j 2^(a_j - m) v_j / l,   l = sum_j 2^(a_j - m),   m = max_j a_j        one row tile against a range of keys

The online softmax that prefill and decode share. A row tile is M = BLOCK_M (h, i) pairs of one KV head; tiles of
N = BLOCK_N keys stream past it. Keys outside the hull are never read; inside [full_begin, full_end) no row needs the
hull as a mask. Where the spec has a residue it is evaluated first and an empty tile costs neither K nor V; where its tiles
are classed, keys before the first and after the last live tile are not visited, and a run of full ones is like a hull's.
Accumulation is float32; logits are in units of log2. NaN and +inf logits make their row NaN, as in SDPA.
"""

import triton
import triton.language as tl

from .hooks import HAS_HI, HAS_LO, HAS_RESIDUE, HAS_TILE, hull_hi, hull_lo, residue, score, tile_class
from .keys import key_scales, load_keys, load_values, value_scales

SUMMARY_TILE = tl.constexpr(64)
SCAN_TILES = tl.constexpr(64)


@triton.jit
def hull(b, h, i, S, env, BLOCK_M: tl.constexpr):
    """Visible keys of each row, lo and hi [M, 1] int32, within [0, S]."""
    lo = tl.zeros([BLOCK_M, 1], tl.int32)
    hi = tl.zeros([BLOCK_M, 1], tl.int32) + S
    if HAS_LO:
        lo = tl.minimum(tl.maximum(lo + hull_lo(b, h, i, env), 0), S).to(tl.int32)
    if HAS_HI:
        hi = tl.minimum(tl.maximum(hi * 0 + hull_hi(b, h, i, env), 0), S).to(tl.int32)
    return lo, hi


@triton.jit
def tile_range(lo, hi, S):
    """Over the rows that see anything: the first and one past the last visible key."""
    seen = lo < hi
    return tl.min(tl.where(seen, lo, S)), tl.max(tl.where(seen, hi, 0))


@triton.jit
def samples(i, BLOCK_M: tl.constexpr):
    """Of consecutive rows i [M, 1] one each SUMMARY_TILE and the last, [R, 1]: they touch every summary tile."""
    ROWS: tl.constexpr = triton.next_power_of_2(triton.cdiv(BLOCK_M, SUMMARY_TILE) + 1)
    return tl.minimum(tl.min(i) + tl.arange(0, ROWS) * SUMMARY_TILE, tl.max(i))[:, None]


@triton.jit
def tile_summary(b, h, i, j0, S, env, BLOCK_N: tl.constexpr):
    """Least and greatest class of the summary tiles that rows i [R, 1] and BLOCK_N keys from j0 touch.

    One sample each SUMMARY_TILE positions and one at the end touches them all, wherever the tile boundaries fall.
    """
    SAMPLES: tl.constexpr = triton.next_power_of_2(triton.cdiv(BLOCK_N, SUMMARY_TILE) + 1)
    last = tl.minimum(j0 + BLOCK_N, S) - 1
    j = tl.minimum(j0 + tl.arange(0, SAMPLES) * SUMMARY_TILE, last)[None, :]
    classes = tl.broadcast_to(tile_class(b, h, i, j, env).to(tl.int32), [i.shape[0], SAMPLES])
    return tl.min(classes), tl.max(classes)


@triton.jit
def live_tiles(b, h, i, first, last, S, env):
    """Of keys [first, last) and rows i [R, 1], in summary tiles: begin, end outside which the residue is nowhere true, and
    full, part, the first run in which it is true everywhere (empty: full >= part)."""
    begin = last
    end = first
    full = last
    part = last
    for c0 in tl.range(first // SUMMARY_TILE * SUMMARY_TILE, last, SCAN_TILES * SUMMARY_TILE):
        j = c0 + tl.arange(0, SCAN_TILES) * SUMMARY_TILE                                       # [SCAN_TILES]
        classes = tile_class(b, h, i, tl.minimum(j, S - 1)[None, :], env).to(tl.int32)
        classes = tl.broadcast_to(classes, [i.shape[0], SCAN_TILES])
        most = tl.where(j < last, tl.max(classes, 0), 0)
        least = tl.where(j < last, tl.min(classes, 0), 0)
        begin = tl.minimum(begin, tl.min(tl.where(most > 0, j, last)))
        end = tl.maximum(end, tl.max(tl.where(most > 0, j + SUMMARY_TILE, first)))
        full = tl.minimum(full, tl.min(tl.where(least == 2, j, last)))
        part = tl.minimum(part, tl.min(tl.where((least < 2) & (j > full), j, last)))
    return begin, end, full, part


@triton.jit
def dot(x, y, acc, UPCAST: tl.constexpr):
    """x @ y + acc in float32, x in the dtype of y. UPCAST: in float32, for the interpreter has no bfloat16 product."""
    if UPCAST:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(x.to(y.dtype), y, acc, input_precision="ieee")


@triton.jit
def nothing(M: tl.constexpr, BLOCK_DV: tl.constexpr):
    """acc, m, l before any key."""
    return (tl.zeros([M, BLOCK_DV], tl.float32), tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32))


@triton.jit
def visit(acc, m, l, b_q, visible, j0, span, at, keys, env, D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr,
          MASKED: tl.constexpr, UPCAST: tl.constexpr):
    """acc [M, DV], m [M], l [M] after the tile of keys j0 .. j0 + N, of which `visible` [M, N] count if MASKED."""
    b, h, i = at
    DTYPE: tl.constexpr = tl.float32 if UPCAST else b_q.dtype
    j = j0 + tl.arange(0, BLOCK_N)                                                             # [N]
    b_k = load_keys(keys, j, span, DTYPE, D, b_q.shape[1], MASKED)                             # [N, D]
    s = dot(b_q, tl.trans(b_k), tl.zeros([b_q.shape[0], BLOCK_N], tl.float32), UPCAST)         # [M, N]
    s = key_scales(s, keys, j, span, MASKED)
    a = score(s, b, h, i, j[None, :], env)                                                     # [M, N]
    if MASKED:
        a = tl.where(visible, a, float("-inf"))
    m_new = tl.maximum(m, tl.max(a, 1))                                                        # [M]
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(a - shift[:, None])                                                            # [M, N]
    shrink = tl.exp2(m - shift)                                                                # [M]
    b_v = load_values(keys, j, span, DTYPE, DV, acc.shape[1], MASKED)                          # [N, DV]
    acc = dot(value_scales(p, keys, j, span, MASKED), b_v, acc * shrink[:, None], UPCAST)      # [M, DV]
    return acc, m_new, l * shrink + tl.sum(p, 1)


@triton.jit
def segments(first, last, lo, hi, S, rows, env, BLOCK_N: tl.constexpr):
    """start <= inner <= outer <= stop: all that is seen of [first, last) is in [start, stop), all of [inner, outer) is seen.

    start, inner and outer lie whole tiles from first.
    """
    start = first
    stop = tl.maximum(last, first)
    inside = tl.max(lo)
    beyond = tl.minimum(tl.min(hi), stop)
    if HAS_TILE:
        begin, end, full, part = live_tiles(rows[0], rows[1], rows[2], first, last, S, env)
        start = first + tl.maximum(begin - first, 0) // BLOCK_N * BLOCK_N
        stop = tl.maximum(tl.minimum(stop, end), start)
        inside = tl.maximum(inside, full)
        beyond = tl.minimum(beyond, part)
    inner = tl.minimum(start + tl.cdiv(tl.maximum(inside - start, 0), BLOCK_N) * BLOCK_N, stop)
    outer = tl.maximum(start + tl.maximum(tl.minimum(beyond, stop) - start, 0) // BLOCK_N * BLOCK_N, inner)
    return start, inner, outer, stop


@triton.jit
def scan_edge(acc, m, l, b_q, first, last, span, lo, hi, S, at, rows, keys, env, D: tl.constexpr, DV: tl.constexpr,
              BLOCK_N: tl.constexpr, UPCAST: tl.constexpr):
    """Keys [first, last) under hull and residue; a tile in which the residue shows nothing costs neither K nor V."""
    b, h, i = at
    for j0 in tl.range(first, last, BLOCK_N, num_stages=1):
        j = (j0 + tl.arange(0, BLOCK_N))[None, :]
        visible = (j >= lo) & (j < hi)
        if HAS_RESIDUE:
            least = 1
            most = 1
            if HAS_TILE:
                least, most = tile_summary(rows[0], rows[1], rows[2], j0, S, env, BLOCK_N)
            if most > 0:
                if least < 2:
                    visible = visible & residue(b, h, i, j, env)
                if tl.max(visible.to(tl.int32)) > 0:
                    acc, m, l = visit(acc, m, l, b_q, visible, j0, span, at, keys, env, D, DV, BLOCK_N, True, UPCAST)
        else:
            acc, m, l = visit(acc, m, l, b_q, visible, j0, span, at, keys, env, D, DV, BLOCK_N, True, UPCAST)
    return acc, m, l


@triton.jit
def scan(b_q, first, last, span, lo, hi, S, at, rows, keys, env, D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr,
         BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr):
    """acc [M, DV] float32, m [M], l [M] of keys [first, last).

    b_q [M, D]; span = (begin, end), the keys that may be read; lo, hi [M, 1]; at = (b, h, i); rows = (b, h, i [R, 1]),
    one at least of each SUMMARY_TILE rows; keys what `head_of` made, of one KV head; env the operands of the spec.
    """
    acc, m, l = nothing(b_q.shape[0], BLOCK_DV)
    if HAS_RESIDUE and not HAS_TILE:
        return scan_edge(acc, m, l, b_q, first, last, span, lo, hi, S, at, rows, keys, env, D, DV, BLOCK_N, UPCAST)
    else:
        start, inner, outer, stop = segments(first, last, lo, hi, S, rows, env, BLOCK_N)
        if HAS_LO or HAS_TILE:
            acc, m, l = scan_edge(acc, m, l, b_q, start, inner, span, lo, hi, S, at, rows, keys, env, D, DV, BLOCK_N, UPCAST)
        for j0 in tl.range(inner, outer, BLOCK_N, num_stages=STAGES):
            acc, m, l = visit(acc, m, l, b_q, True, j0, span, at, keys, env, D, DV, BLOCK_N, False, UPCAST)
        return scan_edge(acc, m, l, b_q, outer, stop, span, lo, hi, S, at, rows, keys, env, D, DV, BLOCK_N, UPCAST)


@triton.jit
def join_sink(acc, m, l, a):
    """acc, m, l with one more key of logit a [M, 1] and value 0."""
    a = tl.reshape(a, m.shape)
    m_new = tl.maximum(m, a)
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    shrink = tl.exp2(m - shift)
    return acc * shrink[:, None], m_new, l * shrink + tl.exp2(a - shift)


@triton.jit
def normalise(acc, l):
    """acc / l [M, DV]; 0 in the rows that saw no key."""
    return acc / tl.where(l == 0.0, 1.0, l)[:, None]
