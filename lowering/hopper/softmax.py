"""p = 2^(a - m), m = max(m, max_j a_j): the online softmax that the Hopper kernels share, and a key that joins alone

With SCALE, a = SCALE * s for a constant SCALE > 0: the maximum is taken of s and the scale joins the subtraction in one
fused multiply-add. Otherwise a is the spec's score. NaN and +inf logits make their row NaN, as in SDPA.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

SCALE = gl.constexpr(0.0)


@gluon.jit
def exp2(x):
    """Denormal results are 0."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def weigh(a, highest, m, LAG: gl.constexpr = 0.0, AXIS: gl.constexpr = -1):
    """p [.., N], the new maximum m [..], and by what the sums so far shrink [..]; a [.., N], highest [..] = max_j a_j.

    AXIS: that of the keys, where it is not the last. With SCALE, a and highest are of s. With LAG the maximum stays where it is
    too small by no more powers of two than that.
    """
    if SCALE != 0.0:
        highest = highest * SCALE
    m_new = gl.maximum(m, highest)
    if LAG != 0.0:
        m_new = gl.where(m_new - m <= LAG, m, m_new)
    shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    if SCALE != 0.0:
        a = a * SCALE
    return exp2(a - gl.expand_dims(shift, AXIS % len(a.shape))), m_new, exp2(m - shift)


@gluon.jit
def join_sink(m, l, a):
    """m, l with one more key of logit a [M], and by what the sums shrink."""
    m_new = gl.maximum(m, a)
    shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    shrink = exp2(m - shift)
    return m_new, l * shrink + exp2(a - shift), shrink
