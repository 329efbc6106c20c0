"""out[b,h,i,:] = sum_j exp(a_j) v[b,h//GROUP,j,:] / sum_j exp(a_j)      for few queries and many keys, in one launch

Shapes: q [B, H, T, D]; k [B, H/GROUP, S, D]; v [B, H/GROUP, S, DV]; out [B, H, T, DV]; any strides. Row r = g * T + i of a KV
head packs query head g, position i: K and V are read once for all its query heads. An item is a tile of BLOCK_M such rows.
Grid: fixed by shapes (CUDA graphs); nothing is read on the host. BALANCED: any number of programs, each takes an equal share
of all live key tiles (`balance`), a part of an item, a whole one or several. Else SPLITS programs an item, each a part of
the hull of its rows in whole tiles.
Out: a program that has all of an item stores it. Else it leaves its part in the workspace and counts itself in
counters [items]; the last to come joins the parts (`merge`) and sets the counter back to 0, for the next launch.
Traffic: (D + DV) * itemsize bytes per key of the hull and KV head. FLOPs: 2 (D + DV) per visible (row, j).
"""

import triton
import triton.language as tl

from ..hooks import HAS_RESIDUE, HAS_SINK, sink
from ..keys import head_of
from ..packed import load_packed
from ..scan import hull, join_sink, normalise, nothing, scan, tile_range, visit
from .balance import divide, keys_of, keys_of_part, parts_of, row_tiles
from .merge import merge, slot_of, store_part, store_rows


@triton.jit
def rows_of(x, r0, H, T, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, R: tl.constexpr):
    """Item x of a sequence: its KV head; rows r0 .. r0 + R of its tile: h, i and whether there is such a row [R, 1]."""
    tiles = row_tiles(T, GROUP, BLOCK_M, BLOCK_T)
    row = (x % tiles * BLOCK_M + r0 + tl.arange(0, R))[:, None]
    r = tl.minimum(row, GROUP * T - 1)                              # rows past the end repeat the last one, unstored
    if BLOCK_T == 1:
        return x // tiles, x // tiles * GROUP + r, r * 0, row < GROUP
    else:
        return x // tiles, x // tiles * GROUP + r // T, r % T, row < GROUP * T


@triton.jit
def stream(b_q, first, last, lo, hi, at, keys, env, D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr):
    """Keys [first, last) in one loop, masked throughout: a second loop for the edges would wait for memory once more."""
    acc, m, l = nothing(b_q.shape[0], BLOCK_DV)
    for j0 in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        j = (j0 + tl.arange(0, BLOCK_N))[None, :]
        acc, m, l = visit(acc, m, l, b_q, (j >= lo) & (j < hi), j0, (first, last), at, keys, env, D, DV, BLOCK_N, True, UPCAST)
    return acc, m, l


@triton.jit
def end_of(last, lo, hi, S):
    """`last`, or where what the rows see ends."""
    return tl.minimum(last, tile_range(lo, hi, S)[1])


@triton.jit
def join_parts(workspace, out, out_strides, item, holder, parts, H, T, DV: tl.constexpr, GROUP: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_DV: tl.constexpr, PER: tl.constexpr):
    """out of an item whose parts programs holder, ..., holder + parts - 1 have left, BLOCK_R rows at a time."""
    items = row_tiles(T, GROUP, BLOCK_M, BLOCK_T) * (H // GROUP)
    rows = tl.minimum(GROUP * T, BLOCK_M)
    for r0 in tl.range(0, rows, BLOCK_R, num_stages=1):
        _, h, i, m_row = rows_of(item % items, r0, H, T, GROUP, BLOCK_M, BLOCK_T, BLOCK_R)
        m_row = m_row & (r0 + tl.arange(0, BLOCK_R) < rows)[:, None]
        o = merge(workspace, holder, parts, r0, rows, DV, BLOCK_DV, BLOCK_M, BLOCK_R, PER)
        store_rows(out, out_strides, o, (item // items).to(tl.int64), h, i, m_row, DV)


@triton.jit
def attend_part(tensors, item, first, last, part, parts, holder, H, T, S, env, D: tl.constexpr, DV: tl.constexpr,
                GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr,
                BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, PER: tl.constexpr, UPCAST: tl.constexpr):
    """Keys [first, last) of an item: part `part` of `parts`, of which program `holder` has the first."""
    q, q_strides, k, k_strides, v, v_strides, out, out_strides, workspace, counters = tensors
    items = row_tiles(T, GROUP, BLOCK_M, BLOCK_T) * (H // GROUP)
    b = item // items
    b64 = b.to(tl.int64)
    kv_head, h, i, m_row = rows_of(item % items, 0, H, T, GROUP, BLOCK_M, BLOCK_T, BLOCK_M)
    lo, hi = hull(b, h, i, S, env, BLOCK_M)
    last = end_of(last, lo, hi, S)
    b_q = load_packed(q, q_strides, b64, h, i, D, BLOCK_D)                                   # [M, D]
    keys = head_of(k, k_strides, v, v_strides, b64, kv_head)
    if HAS_RESIDUE:
        acc, m, l = scan(b_q, first, last, (first, last), lo, hi, S, (b, h, i), (b, h, i), keys, env, D, DV, BLOCK_N,
                         BLOCK_DV, STAGES, UPCAST)
    else:
        acc, m, l = stream(b_q, first, last, lo, hi, (b, h, i), keys, env, D, DV, BLOCK_N, BLOCK_DV, STAGES, UPCAST)
    if HAS_SINK:
        a = sink(b, h, i, env) + tl.zeros([BLOCK_M, 1], tl.float32)
        acc, m, l = join_sink(acc, m, l, tl.where(part == 0, a, float("-inf")))
    if parts == 1:
        store_rows(out, out_strides, normalise(acc, l), b64, h, i, m_row, DV)
    else:
        store_part(workspace, slot_of(holder + part, part, PER), normalise(acc, l), m + tl.log2(l), m_row, DV, PER)
        tl.debug_barrier()                                          # all threads have stored before one of them counts
        if tl.atomic_add(counters + item, 1, sem="acq_rel") == parts - 1:
            tl.store(counters + item, 0)
            join_parts(workspace, out, out_strides, item, holder, parts, H, T, DV, GROUP, BLOCK_M, BLOCK_T, BLOCK_R, BLOCK_DV,
                       PER)


@triton.jit(do_not_specialize=["B", "H", "T", "S", "SPLITS", "FEW"])
def decode(q, q_strides, k, k_strides, v, v_strides, out, out_strides, workspace, counters, B, H, T, S, SPLITS, FEW,
           operands, D: tl.constexpr, DV: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr,
           BALANCED: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr):
    env = operands
    tensors = (q, q_strides, k, k_strides, v, v_strides, out, out_strides, workspace, counters)
    pid = tl.program_id(0)
    KNOWN_T: tl.constexpr = BLOCK_T if BALANCED else 0
    items = row_tiles(T, GROUP, BLOCK_M, KNOWN_T) * (H // GROUP)                             # of one sequence
    if BALANCED:
        line = divide(B, T, S, items, FEW, env, BLOCK_N, BLOCK_B, BLOCK_T)
        item, before, left = keys_of_part(line, pid, items, B, FEW)
        while left > 0:
            start, n = keys_of(line, item // items)
            count = tl.minimum(n - before, left)
            holder, parts = parts_of(line, item, items, FEW)
            first = start + before * BLOCK_N
            attend_part(tensors, item, first, first + count * BLOCK_N, pid - holder, parts, holder, H, T, S, env, D, DV,
                        GROUP, BLOCK_M, BLOCK_N, KNOWN_T, BLOCK_R, BLOCK_D, BLOCK_DV, STAGES, 2, UPCAST)
            left -= count
            item += 1
            before = 0
    else:
        part = pid % SPLITS
        item = pid // SPLITS
        _, h, i, _ = rows_of(item % items, 0, H, T, GROUP, BLOCK_M, KNOWN_T, BLOCK_M)
        lo, hi = hull(item // items, h, i, S, env, BLOCK_M)
        start, end = tile_range(lo, hi, S)
        each = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), BLOCK_N), SPLITS) * BLOCK_N
        attend_part(tensors, item, start + part * each, start + (part + 1) * each, part, SPLITS, pid - part, H, T, S, env,
                    D, DV, GROUP, BLOCK_M, BLOCK_N, KNOWN_T, BLOCK_R, BLOCK_D, BLOCK_DV, STAGES, 1, UPCAST)
