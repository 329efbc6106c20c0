"""words[x] = the signs of (mean of BOX vectors - centre) . the planes, 64 bits; norms[x] = the length of that difference

Shapes: x [B, H, S, D], any strides; centre [B, H, D] float32; planes [64, D] float32; words [B, H, X] int64, norms
[B, H, X] float32, X = ceil(S / BOX); the last vector fills the last box.
Grid: (B * H * ceil(X / BLOCK_X),). Traffic: S * D elements of x. FLOPs: 128 D per box.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["S", "X"])
def signatures(x, x_strides, centre, planes, words, norms, H, S, X, D: tl.constexpr, BLOCK_D: tl.constexpr,
               BLOCK_X: tl.constexpr, BOX: tl.constexpr):
    pid = tl.program_id(0)
    parts = tl.cdiv(X, BLOCK_X)
    head = pid // parts
    p_x = x + (head // H).to(tl.int64) * x_strides[0] + (head % H).to(tl.int64) * x_strides[1]
    o_x = pid % parts * BLOCK_X + tl.arange(0, BLOCK_X)                                        # [X]
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[None, :]
    mean = tl.zeros([BLOCK_X, BLOCK_D], tl.float32)
    for n in tl.range(0, BOX):
        s = tl.minimum(o_x * BOX + n, S - 1).to(tl.int64)
        mean += tl.load(p_x + s[:, None] * x_strides[2] + o_d.to(tl.int64)[None, :] * x_strides[3], mask=m_d, other=0.0)
    b_c = tl.load(centre + head.to(tl.int64) * D + o_d, mask=o_d < D, other=0.0)
    mean = mean / BOX - b_c[None, :]                                                           # [X, D]
    at = head.to(tl.int64) * X + o_x
    word = tl.zeros([BLOCK_X], tl.int64)
    for n in tl.range(0, 64):
        b_p = tl.load(planes + n * D + o_d, mask=o_d < D, other=0.0)                           # [D]
        word |= (tl.sum(mean * b_p[None, :], 1) > 0).to(tl.int64) << n
    tl.store(words + at, word, mask=o_x < X)
    tl.store(norms + at, tl.sqrt(tl.sum(mean * mean, 1)), mask=o_x < X)
