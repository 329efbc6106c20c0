"""acc = acc * shrink, by the warps that have a row whose maximum grew

Weights are relative to a maximum that may be too small by LAG powers of two (FlashAttention-4 has the same): it moves only when
a logit exceeds it by more, which after the first tiles is seldom (`softmax.weigh`). A warp whose 16 rows stay skips the
products: a branch that Gluon has no words for, since it is the warp's and not the warpgroup's.
"""

from triton.experimental import gluon
from triton.experimental.gluon import constexpr_function
from triton.experimental.gluon import language as gl

LAG = gl.constexpr(8.0)


@constexpr_function
def products(count):
    """PTX: `count` numbers, the sums, by as many factors. A thread's first and third are of its two rows."""
    sums = "".join(f"mov.f32 ${at}, ${count + at};\n" for at in range(count))
    scaled = "".join(f"mul.rn.f32 ${at}, ${at}, ${2 * count + at};\n" for at in range(count))
    return (
        "{\n.reg .pred p, q;\n" + sums
        + f"setp.neu.f32 p, ${2 * count}, 0f3F800000;\n"
        + f"setp.neu.or.f32 p, ${2 * count + 2}, 0f3F800000, p;\n"
        + "vote.sync.any.pred q, p, 0xFFFFFFFF;\n@!q bra STAYS;\n" + scaled + "STAYS:\n}")


@constexpr_function
def constraints(count):
    """Constraints of `count` floats made of twice as many."""
    return ",".join(["=f"] * count + ["f"] * (2 * count))


@gluon.jit
def rescaled(acc, shrink):
    """acc [64, DV] times shrink [64]."""
    COUNT: gl.constexpr = acc.shape[1] // 2
    by = gl.convert_layout(gl.expand_dims(shrink, 1).broadcast_to(acc.shape), acc.type.layout)
    return gl.inline_asm_elementwise(
        products(COUNT), constraints(COUNT), [acc, by], dtype=gl.float32, is_pure=False, pack=COUNT)
