"""s = q_latent latentT + q_rope ropeT,   o += p latent        one row tile against one tile of latents, loaded once

What the dense kernel (`mla/kernel.py`) and that of chosen tokens (`tokens/kernel.py`) share. A latent tile [N, R] is both the
wide part of K and all of V: one load feeds both products, so a key costs (R + P) * itemsize bytes for all H heads.
"""

import triton
import triton.language as tl

from ..hooks import score
from ..scan import dot

PAGE = tl.constexpr(64)
GROUP = tl.constexpr(128)


@triton.jit
def load_keys(x, x_strides, block, row, m_n, D: tl.constexpr, BLOCK_D: tl.constexpr, EVEN: tl.constexpr):
    """x[block, row, :] [N, BLOCK_D] for row [N] and block, one or [N], int64; 0 and not read where not m_n [N]. Rows begin at
    multiples of EVEN elements."""
    start = block * x_strides[0] + row * x_strides[1]
    if EVEN > 1:
        start = tl.multiple_of(start, EVEN)
    return load_vectors((x + start)[:, None], x_strides[2], m_n, D, BLOCK_D)


@triton.jit
def load_tile(x, x_strides, block, row, m_n, N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, EVEN: tl.constexpr):
    """x[block, row + n, :] [N, BLOCK_D] for n < N; one 64-bit address a tile, which moves, and offsets in it, which stay."""
    start = block * x_strides[0] + row * x_strides[1]
    offset = tl.arange(0, N)[:, None] * x_strides[1]
    if EVEN > 1:
        start = tl.multiple_of(start, EVEN)
        offset = tl.multiple_of(offset, [EVEN, EVEN])
    return load_vectors(x + start + offset, x_strides[2], m_n, D, BLOCK_D)


@triton.jit
def load_vectors(p, s_d, m_n, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[N, BLOCK_D] from p [N, 1]."""
    o_d = tl.arange(0, BLOCK_D)[None, :]
    if D < BLOCK_D:
        return tl.load(p + o_d * s_d, mask=m_n[:, None] & (o_d < D), other=0.0)
    else:
        return tl.load(p + o_d * s_d, mask=m_n[:, None], other=0.0)


@triton.jit
def dequantize(b_codes, b_scale, dtype: tl.constexpr, FP8: tl.constexpr):
    """e4m3 codes [N, R] times the scales [N, R / GROUP], rounded to `dtype`. FP8 == 1: the bits of a float16, 2^8 less."""
    if FP8 == 2:
        x = b_codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        bits = b_codes.to(tl.uint16)
        x = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    grouped = tl.reshape(x, [b_scale.shape[0], b_scale.shape[1], GROUP]) * b_scale[:, :, None]
    return tl.reshape(grouped, [b_codes.shape[0], b_codes.shape[1]]).to(dtype)


@triton.jit
def place(pages, pages_strides, b, j, IN_PAGES: tl.constexpr):
    """Where key j lies, one or [N]: its first index, sequence or page, and its second. int64."""
    if IN_PAGES:
        page = tl.load(pages + b.to(tl.int64) * pages_strides[0] + (j // PAGE).to(tl.int64) * pages_strides[1])
        return page.to(tl.int64), (j % PAGE).to(tl.int64)
    else:
        return b.to(tl.int64), j.to(tl.int64)


@triton.jit
def visit(acc, m, l, b_q, b_r, b_latent, b_rope, visible, j, at, env, UPCAST: tl.constexpr):
    """acc [M, R], m [M], l [M] after keys j [N], of which `visible` [M, N] count; b_q [M, R], b_r [M, P], at = (b, h, i)."""
    b, h, i = at
    s = tl.zeros([b_q.shape[0], j.shape[0]], tl.float32)
    s = dot(b_q, tl.trans(b_latent), s, UPCAST)
    s = dot(b_r, tl.trans(b_rope), s, UPCAST)                                                  # [M, N]
    a = tl.where(visible, score(s, b, h, i, j[None, :], env), float("-inf"))                   # [M, N]
    m_new = tl.maximum(m, tl.max(a, 1))                                                        # [M]
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(a - shift[:, None])                                                            # [M, N]
    shrink = tl.exp2(m - shift)                                                                # [M]
    acc = dot(p, b_latent, acc * shrink[:, None], UPCAST)                                      # [M, R]
    return acc, m_new, l * shrink + tl.sum(p, 1)


@triton.jit
def store_rows(out, out_strides, lse, acc, m, l, part, B, H, T, b64, h, i, m_row, R: tl.constexpr, IN_PARTS: tl.constexpr):
    """Rows h, i [M, 1] where m_row: the result, or of part `part` the normalised sum and its log2-sum-exp."""
    o_d = tl.arange(0, acc.shape[1])[None, :]
    h64 = h.to(tl.int64)
    o = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    if IN_PARTS:
        at = ((part.to(tl.int64) * B + b64) * H + h64) * T + i                                 # [M, 1]
        tl.store(out + at * R + o_d, o, mask=m_row & (o_d < R))
        tl.store(lse + at, tl.reshape(m + tl.log2(l), [acc.shape[0], 1]), mask=m_row)
    else:
        p_out = out + b64 * out_strides[0] + h64 * out_strides[1] + i.to(tl.int64) * out_strides[2]
        tl.store(p_out + o_d.to(tl.int64) * out_strides[3], o.to(out.dtype.element_ty), mask=m_row & (o_d < R))
