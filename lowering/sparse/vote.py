"""Whether a warpgroup needs a tile of keys: the vote of the Hopper kernel with a threshold, by the rule of `scan.py`

    needed = any over 64 rows of best >= y + limit        best: the tile's greatest logit, y = log2 sum 2^best of those met
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hooks import limit, score
from ..hopper.softmax import SCALE, exp2
from ..hopper.weigh import keys_of, mask
from .told import tell

BUDGET = gl.constexpr(False)


@gluon.jit
def smallest(count, env, BLOCK_N: gl.constexpr):
    """log2 of the ratio of weights below which a tile of an item of `count` tiles goes."""
    least = limit(env)
    if BUDGET:
        least -= gl.log2((count * BLOCK_N).to(gl.float32))
    return least


@gluon.jit
def log2(x):
    """Of a number that is not small, within 2^-22: `gl.log2` is twenty instructions and a branch."""
    return gl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def met(y, best):
    """log2(2^y + 2^best) [M]."""
    top = gl.maximum(y, best)
    shift = gl.where(top == float("-inf"), 0.0, top)
    return top + log2(exp2(y - shift) + exp2(best - shift))


@gluon.jit
def thread_maxima(a):
    """Of a tile a [M, N] in a layout of matrices, [M, 4]: the greatest that each of the four threads of a row holds."""
    M: gl.constexpr = a.shape[0]
    N: gl.constexpr = a.shape[1]
    return gl.max(gl.max(gl.reshape(a, [M, N // 8, 4, 2]), 3), 1)


@gluon.jit
def vote(wg: gl.constexpr, bars, use, s, j0, rows, y, least, env, BLOCK_N: gl.constexpr, MASKED: gl.constexpr):
    """Logits [64, N] of a tile, or scores with SCALE; the greatest of each row [64]; if the tile is needed; y [64] with it.

    A row needs it where one of its threads does, so that no thread waits for the others of its row. Tells the loader.
    """
    at, lo, hi = rows
    b, h, i = at
    a = s
    if SCALE == 0.0:
        first, apart = keys_of(j0, s.type.layout, BLOCK_N)
        a = score(s, b, h, i, first + apart, env)                                              # [64, N]
    if MASKED:
        a = mask(a, j0, lo, hi, 0, BLOCK_N)
    own = thread_maxima(a)                                                                     # [64, 4]
    best = own * SCALE if SCALE != 0.0 else own
    ratio = gl.convert_layout(y + least, gl.SliceLayout(1, own.type.layout))[:, None]
    needed = tell(bars, wg, use, (best != float("-inf")) & ((best >= ratio) | (best != best)))
    highest = gl.convert_layout(gl.max(own, 1), y.type.layout)                                 # [64]
    return a, highest, needed, met(y, highest * SCALE if SCALE != 0.0 else highest)
