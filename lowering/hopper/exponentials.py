"""2^x of a tile, every POLY-th by a polynomial on the units that multiply and add

For those that take exponentials do 16 a clock, and bind where the head dim is 64.

    2^x = 2^n 2^f,  n = round(x),  |f| <= 1/2     2^f = c0 + c1 f + c2 f^2 + c3 f^3, within 2^-13.7: bfloat16 keeps 2^-9
"""

from triton.experimental import gluon
from triton.experimental.gluon import constexpr_function
from triton.experimental.gluon import language as gl

from .softmax import exp2


@constexpr_function
def exponentials(poly):
    """PTX of `poly` exponentials, the last by the polynomial; -inf gives 0, NaN gives NaN."""
    plain = "".join(f"ex2.approx.ftz.f32 ${at}, ${poly + at};\n" for at in range(poly - 1))
    return "{\n.reg .f32 x, n, f, y;\n.reg .b32 e;\n" + plain + (
        f"max.NaN.f32 x, ${2 * poly - 1}, 0fC2FE0000;\n"                # -127, where 2^n is 0
        "add.rn.f32 n, x, 0f4B40007F;\n"                                # round(x) + 127 in the low bits
        "sub.rn.f32 f, n, 0f4B40007F;\n"
        "sub.rn.f32 f, x, f;\n"
        "fma.rn.f32 y, f, 0f3D61FBB0, 0f3E786F0D;\n"
        "fma.rn.f32 y, y, f, 0f3F31798D;\n"
        "fma.rn.f32 y, y, f, 0f3F7FFB49;\n"
        "mov.b32 e, n;\nshl.b32 e, e, 23;\nmov.b32 n, e;\n"
        f"mul.rn.f32 ${poly - 1}, y, n;\n}}")


@constexpr_function
def registers(count):
    """Constraints of `count` floats made of `count` floats."""
    return ",".join(["=f"] * count + ["f"] * count)


@gluon.jit
def power(x, POLY: gl.constexpr):
    """2^x; every POLY-th by the polynomial if POLY."""
    if POLY == 0:
        return exp2(x)
    else:
        return gl.inline_asm_elementwise(exponentials(POLY), registers(POLY), [x], dtype=gl.float32, is_pure=True, pack=POLY)
