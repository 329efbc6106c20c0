"""numbers of q's dtype from the codes of quantised pages, two at a time, in registers

Codes come in pairs, an int16 for two channels: two pairs lie in a register, and of those the numbers of the even or of the odd
channels are wanted, which lie in one as well. All are exact: int8 and e4m3 are among the numbers of both dtypes. No code is
converted by itself, which takes four times as long.
"""

from triton.experimental import gluon
from triton.experimental.gluon import constexpr_function
from triton.experimental.gluon import language as gl

from ..pages import FORMAT


@constexpr_function
def from_int8(bfloat16, odd):
    """PTX. bfloat16: 2^7 + the low seven bits, less 2^7 or, of a negative code, 2^8; float16: 2^10 + 2^7 + code, less that."""
    take = "0x4341" if odd else "0x4240"
    if bfloat16:
        return f"""{{
            .reg .b32 x, a, s;
            prmt.b32 x, $1, 0x43434343, {take};
            and.b32 a, x, 0xFF7FFF7F;
            and.b32 s, x, 0xFF80FF80;
            sub.bf16x2 $0, a, s;
        }}"""
    return f"""{{
        .reg .b32 x, c;
        prmt.b32 x, $1, 0x64646464, {take};
        xor.b32 x, x, 0x00800080;
        mov.b32 c, 0x64806480;
        sub.f16x2 $0, x, c;
    }}"""


@constexpr_function
def from_e4m3(odd):
    """PTX, to float16."""
    take = "0x4431" if odd else "0x4420"
    return f"""{{
        .reg .b32 x;
        .reg .b16 h;
        prmt.b32 x, $1, 0, {take};
        cvt.u16.u32 h, x;
        cvt.rn.f16x2.e4m3x2 $0, h;
    }}"""


@gluon.jit
def numbers_of(pairs, ODD: gl.constexpr, kind: gl.constexpr):
    """The codes of every second channel as numbers of `kind`, before their scale."""
    if FORMAT == "fp8":
        x = gl.inline_asm_elementwise(from_e4m3(ODD), "=r,r", [pairs], dtype=gl.float16, is_pure=True, pack=2)
        return x.to(gl.float32).to(kind)
    else:
        text: gl.constexpr = from_int8(kind == gl.bfloat16, ODD)
        x = gl.inline_asm_elementwise(text, "=r,r", [pairs], dtype=gl.int16, is_pure=True, pack=2)
        return x.to(kind, bitcast=True)
