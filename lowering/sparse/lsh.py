"""promise(rows, box) = score(|q| |k| cos(pi d / 64))        d: in how many bits the signatures of q and k differ

q and k are the mean query of BOX rows and the mean key of a box, the key centred by the mean of all keys; a signature is the
signs of their products with 64 random directions. Two directions at angle t differ in each bit with probability t / pi, so
that pi d / 64 estimates t. `estimate` with these in the place of its own.

Shapes: words [B, H, X, 2] int32, norms [B, H, X] float32, of queries and of keys, X = ceil(length / BOX).
"""

import triton
import triton.language as tl

from ..hooks import score


@triton.jit
def ones(word):
    """How many bits are set in a uint32."""
    pairs = word - ((word >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def cosine(differ):
    """cos(pi d / 64) of d in 0 .. 64 bits, as the sine of what is left to a right angle, to 6e-8."""
    y = 1.5707963267948966 - differ.to(tl.float32) * 0.04908738521234052
    z = y * y
    return y * (1 - z / 6 * (1 - z / 20 * (1 - z / 42 * (1 - z / 72 * (1 - z / 110)))))


@triton.jit
def load_words(words, at, mask):
    """The two words of signatures `at`."""
    return (tl.load(words + 2 * at, mask=mask, other=0).to(tl.uint32, bitcast=True),
            tl.load(words + 2 * at + 1, mask=mask, other=0).to(tl.uint32, bitcast=True))


@triton.jit
def rows_of(q, q_strides, words, norms, b, h, H, T, row, lo, hi, D: tl.constexpr, BLOCK_D: tl.constexpr, BOX: tl.constexpr):
    """Signatures and norms of the boxes of rows, one of their rows each, and what any of them sees [M / BOX, 1]."""
    R: tl.constexpr = row.shape[0] // BOX
    boxes = tl.cdiv(T, BOX)
    x = tl.min(row) // BOX + tl.arange(0, R)                                                   # [R]
    at = (b * H + h).to(tl.int64) * boxes + tl.minimum(x, boxes - 1)
    m_row = row[:, None] < T
    lo = tl.min(tl.reshape(tl.where(m_row, lo, 2**31 - 1), [R, BOX]), 1)[:, None]
    hi = tl.max(tl.reshape(tl.where(m_row, hi, 0), [R, BOX]), 1)[:, None]
    first, second = load_words(words, at, x < boxes)
    norm = tl.load(norms + at, mask=x < boxes, other=0.0)
    return ((first, second, norm), 0), tl.minimum(x * BOX + BOX // 2, T - 1)[:, None], lo, hi


@triton.jit
def keys_of(first, second, kv_head, X, D: tl.constexpr):
    """Where the signatures and norms of one KV head begin."""
    return first + kv_head.to(tl.int64) * X * 2, second + kv_head.to(tl.int64) * X


@triton.jit
def promises(rows, unused, x, live, lo, hi, at, keys, X, env, D: tl.constexpr, BOX: tl.constexpr, UPCAST: tl.constexpr):
    """[R, N] in units of log2, for every box x [N] of keys; -inf where not live or where no row of the box sees any."""
    b, h, i = at
    m_x = live & (x >= 0) & (x < X)
    q0, q1, q_norm = rows
    k0, k1 = load_words(keys[0], x.to(tl.int64), m_x)
    k_norm = tl.load(keys[1] + x, mask=m_x, other=0.0)
    differ = ones(q0[:, None] ^ k0[None, :]) + ones(q1[:, None] ^ k1[None, :])                 # [R, N]
    s = q_norm[:, None] * k_norm[None, :] * cosine(differ)
    j = (x * BOX)[None, :]
    a = score(s, b, h, i, j + BOX // 2, env)
    return tl.where(m_x[None, :] & (j < hi) & (j + BOX > lo), a, float("-inf"))
