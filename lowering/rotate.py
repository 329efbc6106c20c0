"""y[b, h, t, :] = x[b, h, t, :] H        H[i, j] = (-1)^popcount(i & j) / sqrt(BLOCK) over blocks of BLOCK channels

What pages of rotated numbers need of the queries before attention, and of the output after it. H is made of indices and never
read; the products are of float32.
Shapes: x, y [B, H, T, D], any strides, either of any dtype. Grid: (B H T / ROWS, D / BLOCK). Traffic: 2 B H T D itemsize bytes;
2 B H T D BLOCK flops.
"""

import triton
import triton.language as tl


@triton.jit
def signs(i, j):
    """(-1)^popcount(i & j), of integers below 65536, float32."""
    x = i & j
    x = x ^ (x >> 8)
    x = x ^ (x >> 4)
    x = x ^ (x >> 2)
    x = x ^ (x >> 1)
    return 1.0 - 2.0 * (x & 1).to(tl.float32)


@triton.jit
def rotate(x, x_strides, y, y_strides, B, H, T, scale, BLOCK: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """ROWS rows and one block of channels. `scale`: BLOCK^-1/2."""
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]                                # [ROWS, 1]
    d0 = tl.program_id(1) * BLOCK
    b, h, t = (r // T // H).to(tl.int64), (r // T % H).to(tl.int64), (r % T).to(tl.int64)
    m_r = r < B * H * T
    o_j = tl.arange(0, BLOCK)[None, :]
    p_x = x + b * x_strides[0] + h * x_strides[1] + t * x_strides[2]
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for i0 in range(0, BLOCK, CHUNK):
        o_i = i0 + tl.arange(0, CHUNK)
        b_x = tl.load(p_x + (d0 + o_i).to(tl.int64)[None, :] * x_strides[3], mask=m_r, other=0.0).to(tl.float32)
        b_h = signs(o_i[:, None], o_j)                                                         # [CHUNK, BLOCK]
        if BLOCK < 16:
            acc += tl.sum(b_x[:, :, None] * b_h[None, :, :], 1)
        else:
            acc = tl.dot(b_x, b_h, acc, input_precision="ieee")
    p_y = y + b * y_strides[0] + h * y_strides[1] + t * y_strides[2] + (d0 + o_j).to(tl.int64) * y_strides[3]
    tl.store(p_y, (acc * scale).to(y.dtype.element_ty), mask=m_r)
