"""out[b,h,i,:] = sum_j exp(a_j) v[b,h//GROUP,j,:] / sum_j exp(a_j)      for few queries and many keys

Shapes: q [B, H, T, D]; k [B, H/GROUP, S, D]; v [B, H/GROUP, S, DV]; any strides. Row r = g * T + i of a KV head packs
query head g, position i: K and V are read once for all its query heads.
Grid: (SPLITS * ceil(GROUP * T / BLOCK_M) * B * H/GROUP,), fixed by shapes. Each program divides the live hull of its rows
into SPLITS parts of whole tiles and takes one: the work is balanced at any length, with nothing read on the host.
Out, if SPLITS == 1: out [B, H, T, DV]. Else parts [SPLITS, B, H, T, DV] float32, each normalised, and lse [SPLITS, B, H, T]
in units of log2, -inf where the part saw no key; `merge` joins them. The sink joins part 0.
Traffic: (D + DV) * itemsize bytes per key of the hull and KV head. FLOPs: 2 (D + DV) per visible (row, j).
"""

import triton
import triton.language as tl

from ..hooks import HAS_SINK, sink
from ..scan import hull, join_sink, normalise, scan, tile_range


@triton.jit
def load_packed(q, q_strides, b64, h, i, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """q[b, h, i, :] [M, BLOCK_D] for rows h, i [M, 1]."""
    o_d = tl.arange(0, BLOCK_D)[None, :]
    p = q + b64 * q_strides[0] + h.to(tl.int64) * q_strides[1] + i.to(tl.int64) * q_strides[2]
    return tl.load(p + o_d.to(tl.int64) * q_strides[3], mask=o_d < D, other=0.0)


@triton.jit(do_not_specialize=["T", "S", "SPLITS"])
def decode(q, q_strides, k, k_strides, v, v_strides, out, out_strides, lse, B, H, T, S, SPLITS,
           operands, D: tl.constexpr, DV: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, IN_PARTS: tl.constexpr,
           UPCAST: tl.constexpr):
    env = operands
    pid = tl.program_id(0)
    part = pid % SPLITS
    tiles = tl.cdiv(GROUP * T, BLOCK_M)
    kv_head = pid // SPLITS // tiles % (H // GROUP)
    b = pid // SPLITS // tiles // (H // GROUP)
    row = (pid // SPLITS % tiles * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]                 # [M, 1]
    r = tl.minimum(row, GROUP * T - 1)                              # rows past the end repeat the last one, unstored
    h = kv_head * GROUP + r // T
    i = r % T
    b64 = b.to(tl.int64)

    lo, hi = hull(b, h, i, S, env, BLOCK_M)
    begin, end = tile_range(lo, hi, S)
    each = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N), SPLITS) * BLOCK_N
    first = begin + part * each
    last = tl.minimum(end, first + each)
    b_q = load_packed(q, q_strides, b64, h, i, D, BLOCK_D)                                   # [M, D]
    p_k = k + b64 * k_strides[0] + kv_head.to(tl.int64) * k_strides[1]
    p_v = v + b64 * v_strides[0] + kv_head.to(tl.int64) * v_strides[1]
    keys = (p_k, (k_strides[2], k_strides[3]), p_v, (v_strides[2], v_strides[3]))
    acc, m, l = scan(b_q, first, last, (begin, last), lo, hi, S, (b, h, i), (b, h, i), keys, env, D, DV, BLOCK_N,
                     BLOCK_DV, STAGES, UPCAST)
    if HAS_SINK:
        a = sink(b, h, i, env) + tl.zeros([BLOCK_M, 1], tl.float32)
        acc, m, l = join_sink(acc, m, l, tl.where(part == 0, a, float("-inf")))
    o_d = tl.arange(0, BLOCK_DV)[None, :]
    m_row = row < GROUP * T
    h64 = h.to(tl.int64)
    if IN_PARTS:
        at = ((part.to(tl.int64) * B + b64) * H + h64) * T + i                               # [M, 1]
        tl.store(out + at * DV + o_d, normalise(acc, l), mask=m_row & (o_d < DV))
        tl.store(lse + at, tl.reshape(m + tl.log2(l), [BLOCK_M, 1]), mask=m_row)
    else:
        p_out = out + b64 * out_strides[0] + h64 * out_strides[1] + i.to(tl.int64) * out_strides[2]
        tl.store(p_out + o_d.to(tl.int64) * out_strides[3], normalise(acc, l).to(out.dtype.element_ty),
                 mask=m_row & (o_d < DV))
