"""Rows of a tile that are (head, position) pairs: what the kernels for few queries share."""

import triton
import triton.language as tl


@triton.jit
def load_packed(q, q_strides, b64, h, i, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """q[b, h, i, :] [M, BLOCK_D] for rows h, i [M, 1]."""
    o_d = tl.arange(0, BLOCK_D)[None, :]
    p = q + b64 * q_strides[0] + h.to(tl.int64) * q_strides[1] + i.to(tl.int64) * q_strides[2]
    return tl.load(p + o_d.to(tl.int64) * q_strides[3], mask=o_d < D, other=0.0)
