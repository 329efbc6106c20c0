"""boxes = (greatest + least) / 2, (greatest - least) / 4        of every BOX keys, channel by channel

The centre of a box, and half of its half extent:

    q . k_j = q . centre + q . (k_j - centre) <= q . centre + 2 |q| . boxes[1]        for every key j of the box

Shapes: k [B, H, S, D], any strides; boxes [B, H, X, 2, D] contiguous, X = ceil(S / BOX); the last key fills the last box.
Grid: (B * H * ceil(X / BLOCK_X),). Traffic: S * D + 2 * X * D elements of K's dtype.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["S", "X"])
def boxes(k, k_strides, to, H, S, X, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BOX: tl.constexpr):
    pid = tl.program_id(0)
    parts = tl.cdiv(X, BLOCK_X)
    head = pid // parts
    b64 = (head // H).to(tl.int64)
    h64 = (head % H).to(tl.int64)
    x0 = pid % parts * BLOCK_X
    j = tl.minimum(x0 * BOX + tl.arange(0, BLOCK_X * BOX), S - 1).to(tl.int64)                 # [BLOCK_X * BOX]
    o_d = tl.arange(0, BLOCK_D)
    p_k = k + b64 * k_strides[0] + h64 * k_strides[1] + j[:, None] * k_strides[2] + o_d.to(tl.int64)[None, :] * k_strides[3]
    b_k = tl.load(p_k, mask=(o_d < D)[None, :], other=0.0).to(tl.float32)
    b_k = tl.reshape(b_k, [BLOCK_X, BOX, BLOCK_D])
    greatest = tl.max(b_k, 1)                                                                  # [BLOCK_X, BLOCK_D]
    least = tl.min(b_k, 1)
    x = x0 + tl.arange(0, BLOCK_X)
    at = (head.to(tl.int64) * X + x)[:, None] * (2 * D) + o_d[None, :]
    m_x = (x < X)[:, None] & (o_d < D)[None, :]
    tl.store(to + at, ((greatest + least) * 0.5).to(to.dtype.element_ty), mask=m_x)
    tl.store(to + D + at, ((greatest - least) * 0.25).to(to.dtype.element_ty), mask=m_x)
