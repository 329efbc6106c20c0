"""out[b,h,i,:] = sum_j exp(a_j) v[b,h//GROUP,j,:] / sum_j exp(a_j)      a = score(q[b,h,i,:] . k[b,h//GROUP,j,:])

Shapes: q [B, H, T, D]; k [B, H/GROUP, S, D]; v [B, H/GROUP, S, DV]; out [B, H, T, DV]; any strides.
Grid: (B * H * ceil(T / BLOCK_M),): the tiles of one head follow each other, so that its K and V stay in L2; the last
tile comes first, because under a causal mask it is the longest.
Traffic: (D + DV) * itemsize bytes per query, and per key of the tile's hull. FLOPs: 2 (D + DV) per visible (i, j).
"""

import triton
import triton.language as tl

from ..hooks import HAS_SINK, sink
from ..keys import head_of
from ..rows import load_rows
from ..scan import hull, join_sink, normalise, samples, scan, tile_range


@triton.jit(do_not_specialize=["T", "S"])
def prefill(q, q_strides, k, k_strides, v, v_strides, out, out_strides, H, T, S,
            operands, D: tl.constexpr, DV: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
            BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr):
    env = operands
    pid = tl.program_id(0)
    tiles = tl.cdiv(T, BLOCK_M)
    h = pid // tiles % H
    b = pid // tiles // H
    row = (tiles - 1 - pid % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)                        # [M]
    i = tl.minimum(row, T - 1)[:, None]                             # rows past the end repeat the last one, unstored
    b64 = b.to(tl.int64)
    h64 = h.to(tl.int64)

    lo, hi = hull(b, h, i, S, env, BLOCK_M)
    begin, end = tile_range(lo, hi, S)
    first = begin // BLOCK_N * BLOCK_N
    p_q = q + b64 * q_strides[0] + h64 * q_strides[1]
    b_q = load_rows(p_q, q_strides[2], q_strides[3], tl.minimum(row, T - 1), 0, T, D, BLOCK_D, False)    # [M, D]
    keys = head_of(k, k_strides, v, v_strides, b64, h // GROUP)
    acc, m, l = scan(b_q, first, end, (begin, end), lo, hi, S, (b, h, i), (b, h, samples(i, BLOCK_M)), keys, env, D, DV,
                     BLOCK_N, BLOCK_DV, STAGES, UPCAST)
    if HAS_SINK:
        acc, m, l = join_sink(acc, m, l, sink(b, h, i, env) + tl.zeros([BLOCK_M, 1], tl.float32))
    o_d = tl.arange(0, BLOCK_DV)
    p_out = out + b64 * out_strides[0] + h64 * out_strides[1]
    p_out += row.to(tl.int64)[:, None] * out_strides[2] + o_d.to(tl.int64)[None, :] * out_strides[3]
    tl.store(p_out, normalise(acc, l).to(out.dtype.element_ty), mask=(row < T)[:, None] & (o_d < DV)[None, :])
