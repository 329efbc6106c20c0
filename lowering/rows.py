"""Rows of a matrix in memory, some of which are not there."""

import triton
import triton.language as tl


@triton.jit
def load_rows(p_x, s_n, s_d, n, begin, end, N_D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """x[n, :] [N, BLOCK_D]: rows outside [begin, end) if MASKED, and columns from N_D on, are 0 and not read."""
    o_d = tl.arange(0, BLOCK_D)
    p = p_x + n.to(tl.int64)[:, None] * s_n + o_d.to(tl.int64)[None, :] * s_d
    if MASKED:
        m_n = (n >= begin) & (n < end)
        return tl.load(p, mask=m_n[:, None] & (o_d < N_D)[None, :], other=0.0)
    elif N_D < BLOCK_D:
        return tl.load(p, mask=(o_d < N_D)[None, :], other=0.0)
    else:
        return tl.load(p)
