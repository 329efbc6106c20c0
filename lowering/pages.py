"""Keys and values in pages: row n of head g of sequence b is x[pages[b, n // PAGE], g, n % PAGE, :]. The names of `keys.py`.

A negative page counts from the last. FORMAT is how the numbers of keys lie (`mla_compiler.pool.formats`), VALUE_FORMAT those of
values: plain, fp8, int8, int6, int4, with a scale for each row, applied to the products and to the weights, not to the rows;
KEY_GROUP > 0: keys have a scale for so many channels, applied as they are loaded. HAS_E4M3: the machine converts fp8 itself.
Whoever launches turns queries and outputs for rotated numbers (`rotation`).
k = (store, scales, pages), k_strides = those of the store [P, G, PAGE, D], of the scales [P, G, PAGE, .], of the pages [B, N],
and P. v likewise. Traffic: (D + DV) * itemsize bytes a row and its scales; what `pages` says of a row comes from a cache.
"""

import triton
import triton.language as tl

FORMAT = tl.constexpr("plain")
PAGE = tl.constexpr(64)
VALUE_FORMAT = FORMAT
KEY_GROUP = tl.constexpr(0)
HAS_E4M3 = tl.constexpr(False)


@triton.jit
def head_of(k, k_strides, v, v_strides, b64, g):
    """Pointers to the head in page 0, of rows and of scales; the strides; the row of `pages`."""
    g64 = g.to(tl.int64)
    heads = (k[0] + g64 * k_strides[1], k[1] + g64 * k_strides[5], v[0] + g64 * v_strides[1], v[1] + g64 * v_strides[5])
    return heads, k_strides, v_strides, k[2] + b64 * k_strides[8]


@triton.jit
def place(keys, n, span, MASKED: tl.constexpr):
    """Of rows n [N]: the page, its row within the page, and whether it is read."""
    m_n = (n >= span[0]) & (n < span[1])
    p = keys[3] + (n // PAGE).to(tl.int64) * keys[1][9]
    if MASKED:
        page = tl.load(p, mask=m_n, other=0).to(tl.int64)
    else:
        page = tl.load(p).to(tl.int64)
    return tl.where(page < 0, page + keys[1][10], page), (n % PAGE).to(tl.int64), m_n


@triton.jit
def load_stored(p_x, page, row, m_n, strides, N_D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """x[page, row, :] [N, BLOCK_D] as it is stored."""
    o_d = tl.arange(0, BLOCK_D)
    p = p_x + (page * strides[0] + row * strides[2])[:, None] + o_d.to(tl.int64)[None, :] * strides[3]
    if MASKED:
        return tl.load(p, mask=m_n[:, None] & (o_d < N_D)[None, :], other=0)
    elif N_D < BLOCK_D:
        return tl.load(p, mask=(o_d < N_D)[None, :], other=0)
    else:
        return tl.load(p)


@triton.jit
def numbers(x, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """What x says in a format of whole bytes, before its scale."""
    if KIND == "fp8" and HAS_E4M3:
        return x.to(tl.float8e4nv, bitcast=True).to(DTYPE)
    elif KIND == "fp8":
        # e4m3 as the low bits of a float32, whose exponent is then 120 too small: subnormals come out right.
        bits = x.to(tl.int32)
        magnitude = ((bits & 127) << 20).to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
        return tl.where(bits > 127, -magnitude, magnitude).to(DTYPE)
    else:
        return x.to(DTYPE)


@triton.jit
def load_numbers(p_x, page, row, m_n, strides, KIND: tl.constexpr, DTYPE: tl.constexpr, N_D: tl.constexpr,
                 BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """[N, BLOCK_D] of DTYPE, in format KIND."""
    if KIND == "int4" or KIND == "int6":
        x = load_stored(p_x, page, row, m_n, strides, N_D // 2, BLOCK_D // 2, MASKED)
        codes = tl.interleave(x & 15, x >> 4)                                                  # [N, BLOCK_D]
        if KIND == "int4":
            return (codes.to(tl.int8) - 8).to(DTYPE)
        p_low = p_x + (N_D // 2) * strides[3]
        y = load_stored(p_low, page, row, m_n, strides, N_D // 4, BLOCK_D // 4, MASKED)        # four channels a byte
        low = tl.interleave(tl.interleave(y & 3, (y >> 4) & 3), tl.interleave((y >> 2) & 3, y >> 6))
        return (((codes << 2) | low).to(tl.int8) - 32).to(DTYPE)
    else:
        return numbers(load_stored(p_x, page, row, m_n, strides, N_D, BLOCK_D, MASKED), KIND, DTYPE)


@triton.jit
def load_scale(p_x, page, row, m_n, strides, MASKED: tl.constexpr):
    """The scale of each row [N] float32; `strides` are those of all: the scales' come fifth."""
    p = p_x + page * strides[4] + row * strides[6]
    if MASKED:
        return tl.load(p, mask=m_n, other=0.0).to(tl.float32)
    else:
        return tl.load(p).to(tl.float32)


@triton.jit
def load_keys(keys, n, span, DTYPE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """k[n, :] [N, BLOCK_D] of DTYPE, before the scale of the row."""
    page, row, m_n = place(keys, n, span, MASKED)
    if KEY_GROUP > 0:
        x = load_numbers(keys[0][0], page, row, m_n, keys[1], FORMAT, tl.float32, D, BLOCK_D, MASKED)
        o_g = tl.arange(0, BLOCK_D // KEY_GROUP)
        p = keys[0][1] + (page * keys[1][4] + row * keys[1][6])[:, None] + o_g.to(tl.int64)[None, :] * keys[1][7]
        scale = tl.load(p, mask=m_n[:, None] & (o_g < D // KEY_GROUP)[None, :], other=0.0).to(tl.float32)    # [N, groups]
        grouped = tl.reshape(x, [n.shape[0], BLOCK_D // KEY_GROUP, KEY_GROUP]) * scale[:, :, None]
        return tl.reshape(grouped, [n.shape[0], BLOCK_D]).to(DTYPE)
    else:
        return load_numbers(keys[0][0], page, row, m_n, keys[1], FORMAT, DTYPE, D, BLOCK_D, MASKED)


@triton.jit
def load_values(keys, n, span, DTYPE: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, MASKED: tl.constexpr):
    """v[n, :] [N, BLOCK_DV], before the scale of the row."""
    page, row, m_n = place(keys, n, span, MASKED)
    return load_numbers(keys[0][2], page, row, m_n, keys[2], VALUE_FORMAT, DTYPE, DV, BLOCK_DV, MASKED)


@triton.jit
def key_scales(s, keys, n, span, MASKED: tl.constexpr):
    """s [M, N], the products with what `load_keys` gave, as products with k."""
    if FORMAT != "plain" and KEY_GROUP == 0:
        page, row, m_n = place(keys, n, span, MASKED)
        s = s * load_scale(keys[0][1], page, row, m_n, keys[1], MASKED)[None, :]
    return s


@triton.jit
def value_scales(p, keys, n, span, MASKED: tl.constexpr):
    """p [M, N], weights of v, as weights of what `load_values` gave."""
    if VALUE_FORMAT != "plain":
        page, row, m_n = place(keys, n, span, MASKED)
        p = p * load_scale(keys[0][3], page, row, m_n, keys[2], MASKED)[None, :]
    return p
