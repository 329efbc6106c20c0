"""p = 2^(a - m), m = max(m, max_j a), l = l 2^(m' - m) + sum_j p       a tile of the online softmax, decode on Hopper

NaN and +inf logits make their row NaN, as in SDPA.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hooks import HAS_LO, score
from ..hopper.softmax import SCALE, weigh


@gluon.jit
def weigh_scores(s, m, l, j0, lo, hi, at, env, BLOCK_N: gl.constexpr, MASKED: gl.constexpr):
    """p [M, N], m [M], l [M], and by what the sums so far shrink [M]; s [M, N], lo and hi [M, 1], at = (b, h, i)."""
    b, h, i = at
    j = (j0 + gl.arange(0, BLOCK_N, gl.SliceLayout(0, s.type.layout)))[None, :]                # [1, N]
    a = s
    if SCALE == 0.0:
        a = score(s, b, h, i, j, env)                                                          # [M, N]
    if MASKED:
        a = gl.where(j < hi, a, float("-inf"))
        if HAS_LO:
            a = gl.where(j >= lo, a, float("-inf"))
    p, m, shrink = weigh(a, gl.max(a, 1), m)
    return p, m, l * shrink + gl.sum(p, 1), shrink
