"""Keys and values that lie densely: row n of head g of sequence b is x[b, g, n, :], by strides.

`scan.py` and the kernels are written against these names; `pages.py` has the same for pages. `keys` is what `head_of` makes: of
one head of one sequence.
"""

import triton
import triton.language as tl

from .rows import load_rows


@triton.jit
def head_of(k, k_strides, v, v_strides, b64, g):
    """Pointers to the head, each with its (row, channel) strides."""
    g64 = g.to(tl.int64)
    p_k = k + b64 * k_strides[0] + g64 * k_strides[1]
    p_v = v + b64 * v_strides[0] + g64 * v_strides[1]
    return p_k, (k_strides[2], k_strides[3]), p_v, (v_strides[2], v_strides[3])


@triton.jit
def load_keys(keys, n, span, DTYPE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """k[n, :] [N, BLOCK_D], to be multiplied in DTYPE. span = (begin, end), the rows that are read if MASKED."""
    return load_rows(keys[0], keys[1][0], keys[1][1], n, span[0], span[1], D, BLOCK_D, MASKED)


@triton.jit
def load_values(keys, n, span, DTYPE: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, MASKED: tl.constexpr):
    """v[n, :] [N, BLOCK_DV]."""
    return load_rows(keys[2], keys[3][0], keys[3][1], n, span[0], span[1], DV, BLOCK_DV, MASKED)


@triton.jit
def key_scales(s, keys, n, span, MASKED: tl.constexpr):
    """s [M, N], the products with what `load_keys` gave, as products with k."""
    return s


@triton.jit
def value_scales(p, keys, n, span, MASKED: tl.constexpr):
    """p [M, N], weights of v, as weights of what `load_values` gave."""
    return p
