"""p = 2^(a - m), m = max(m, max_j a), l = l 2^(m' - m) + sum_j p       a tile of the online softmax, decode on Hopper

NaN and +inf logits make their row NaN, as in SDPA. A mask in memory is read where not all of a tile is seen.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hooks import HAS_LO, HAS_RESIDUE, HAS_TILE, residue, score, tile_class
from ..hopper.softmax import SCALE, weigh
from ..hopper.tiles import uniform

SUMMARY_TILE = gl.constexpr(64)


@gluon.jit
def class_of(b, j0, env, BLOCK_N: gl.constexpr):
    """2 if the residue shows all of keys j0 .. j0 + BLOCK_N: the least class of the tiles that they touch, 0 past the end.

    The positions of a step lie in one tile: there are 64 at most.
    """
    found = j0 * 0 + 1
    if HAS_TILE:
        found = uniform(tile_class(b, j0 * 0, j0 * 0, j0 + BLOCK_N - 1, env))
        for n in gl.static_range((BLOCK_N + SUMMARY_TILE - 1) // SUMMARY_TILE):
            found = gl.minimum(found, uniform(tile_class(b, j0 * 0, j0 * 0, j0 + n * SUMMARY_TILE, env)))
    return found


@gluon.jit
def masked(a, j, lo, hi, at, env):
    """a [.., M, N], -inf where it is not seen; j [.., 1, N]; lo, hi [.., M, 1]; at = (b, h, i)."""
    a = gl.where(j < hi, a, float("-inf"))
    if HAS_LO:
        a = gl.where(j >= lo, a, float("-inf"))
    if HAS_RESIDUE:
        a = gl.where(residue(at[0], at[1], at[2], j, env), a, float("-inf"))
    return a


@gluon.jit
def weigh_scores(s, m, l, j0, lo, hi, at, env, BLOCK_N: gl.constexpr, MASKED: gl.constexpr):
    """p [M, N], m [M], l [M], and by what the sums so far shrink [M]; s [M, N], lo and hi [M, 1], at = (b, h, i)."""
    b, h, i = at
    j = (j0 + gl.arange(0, BLOCK_N, gl.SliceLayout(0, s.type.layout)))[None, :]                # [1, N]
    a = s
    if SCALE == 0.0:
        a = score(s, b, h, i, j, env)                                                          # [M, N]
    if MASKED:
        a = masked(a, j, lo, hi, at, env)
    p, m, shrink = weigh(a, gl.max(a, 1), m)
    return p, m, l * shrink + gl.sum(p, 1), shrink
