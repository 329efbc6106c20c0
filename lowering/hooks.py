"""score = s, every key visible: the spec hooks of a kernel, here for plain attention.

`scan.py`, `prefill/kernel.py` and `decode/kernel.py` are written against these names; `codegen` puts the functions of
one AttentionSpec in their place. Arguments: `b`, `h` scalars or [M, 1], `i` [M, 1], `j` [1, N] int32; `s` [M, N] float32;
`env` the operands of the spec:
table pointers, their lengths and strides, and run-time numbers, in the order of `printed.operands`.
"""

import triton
import triton.language as tl

HAS_LO = tl.constexpr(False)
HAS_HI = tl.constexpr(False)
HAS_RESIDUE = tl.constexpr(False)
HAS_TILE = tl.constexpr(False)
HAS_SINK = tl.constexpr(False)


@triton.jit
def score(s, b, h, i, j, env):
    """log2(e) * logit."""
    return s * 1.4426950408889634


@triton.jit
def hull_lo(b, h, i, env):
    """First key that may be visible."""
    return 0


@triton.jit
def hull_hi(b, h, i, env):
    """One past the last key that may be visible."""
    return 0


@triton.jit
def residue(b, h, i, j, env):
    """Visibility within the hull."""
    return j >= 0


@triton.jit
def tile_class(b, h, i, j, env):
    """Of the residue in the tile of (i, j): 0 nowhere, 1 somewhere, 2 everywhere."""
    return j - j + 1


@triton.jit
def sink(b, h, i, env):
    """log2(e) * logit of the key that has no value."""
    return 0.0


@triton.jit
def tiles_listed(program, env):
    """A pointer to the numbers of the tiles that a program attends besides those at the edges, and how many there are."""
    return program, 0


@triton.jit
def kept_part(env):
    """Of 65536, how many of the pages of a sequence are attended."""
    return 65536


@triton.jit
def limit(env):
    """log2 of the ratio of weights below which a tile is left out."""
    return float("-inf")


@triton.jit
def account(env):
    """Where what is computed is noted: a pointer, KV heads or heads, tiles of rows and of keys, heads a KV head, queries."""
    return env, 1, 1, 1, 1, 1
