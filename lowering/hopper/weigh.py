"""p = 2^(a - m), m = max(m, max_j a_j)       one tile of the online softmax, in registers

A thread holds N / 4 logits of each of two rows. Maxima are taken in four chains, so that few wait for the one before; sums
stay with the threads, four to a row, until the end.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hooks import HAS_LO, HAS_RESIDUE, residue, score
from .rescale import LAG
from .softmax import SCALE, weigh


@gluon.jit
def row_max(a):
    """Of a [M, N], [M]."""
    M: gl.constexpr = a.shape[0]
    N: gl.constexpr = a.shape[1]
    return gl.max(gl.max(gl.reshape(a, [M, 4, N // 4]), 1), 1)


@gluon.jit
def thread_sums(p):
    """Of a tile p [M, N] in a layout of matrices, [M, 4]: what each of the four threads of a row holds."""
    M: gl.constexpr = p.shape[0]
    N: gl.constexpr = p.shape[1]
    return gl.sum(gl.sum(gl.reshape(p, [M, N // 8, 4, 2]), 3), 1)


@gluon.jit
def pack(p, kind: gl.constexpr):
    """Weights p [M, N] in 16 bits, two to a number, [M, N / 2] int32: so a loop carries half of the registers.

    Not before the product that reads the weights before these has been awaited: ptxas would await each instruction of it.
    """
    M: gl.constexpr = p.shape[0]
    N: gl.constexpr = p.shape[1]
    convert: gl.constexpr = "cvt.rn.bf16x2.f32 $0, $2, $1;" if kind == gl.bfloat16 else "cvt.rn.f16x2.f32 $0, $2, $1;"
    even, odd = gl.split(gl.reshape(p, [M, N // 2, 2]))
    return gl.inline_asm_elementwise(convert, "=r,f,f", [even, odd], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def unpack(packed, kind: gl.constexpr, layout: gl.constexpr):
    """The weights [M, N] as the left operand of a product."""
    M: gl.constexpr = packed.shape[0]
    N: gl.constexpr = 2 * packed.shape[1]
    even = packed.to(gl.int16).to(kind, bitcast=True)
    odd = (packed >> 16).to(gl.int16).to(kind, bitcast=True)
    return gl.convert_layout(gl.reshape(gl.join(even, odd), [M, N]), layout)


@gluon.jit
def unless_negative(a, d):
    """a where d >= 0, else -inf, by the sign of d: compared, ptxas packs the predicates of a whole tile into bits and back."""
    select: gl.constexpr = """{
        .reg .b32 m, x;
        shr.s32 m, $2, 31;
        mov.b32 x, $1;
        lop3.b32 x, x, m, 0xFF800000, 0xB8;
        mov.b32 $0, x;
    }"""
    return gl.inline_asm_elementwise(select, "=f,f,r", [a, d], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def keys_of(j0, layout: gl.constexpr, BLOCK_N: gl.constexpr):
    """Keys [1, N] of a tile, as a thread's first and what lies between: bits 1 and 2 of a column say whose it is.

    The rest is constant, so that no loop keeps a register for every column.
    """
    o_n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))[None, :]
    return j0 + (o_n & 6), o_n & ~6


@gluon.jit
def look(j0, lo, hi, at, env, BLOCK_N: gl.constexpr):
    """Which keys of a tile the rows see, where the hull does not say: bit 2 k + e of [M, 4] for key 8 k + 2 thread + e.

    Asked before the scores are begun, while registers are free.
    """
    b, h, i = at
    layout: gl.constexpr = i.type.layout
    first, apart = keys_of(j0, layout, BLOCK_N)
    j = first + apart
    seen = residue(b, h, i, j, env) & (j < hi)
    if HAS_LO:
        seen = seen & (j >= lo)
    return thread_sums(gl.where(seen, 1 << (apart // 8 * 2 + apart % 2), 0))


@gluon.jit
def mask(a, j0, lo, hi, marks, BLOCK_N: gl.constexpr):
    """a [M, N] where row i sees key j0 + n, else -inf."""
    layout: gl.constexpr = a.type.layout
    first, apart = keys_of(j0, layout, BLOCK_N)
    if HAS_RESIDUE:
        M: gl.constexpr = a.shape[0]
        place = gl.reshape(31 - (apart // 8 * 2 + apart % 2) + (hi - hi), [M, BLOCK_N // 8, 4, 2])
        hidden = ~(gl.expand_dims(gl.expand_dims(marks, 1), 3) << place)
        return unless_negative(a, gl.convert_layout(gl.reshape(hidden, [M, BLOCK_N]), layout))
    else:
        hidden = hi - 1 - first - apart
        if HAS_LO:
            hidden = hidden | (first - lo + apart)
        return unless_negative(a, hidden)


@gluon.jit
def weigh_scores(s, m, j0, lo, hi, marks, at, env, BLOCK_N: gl.constexpr, MASKED: gl.constexpr):
    """p [M, N], m [M], and by what the sums so far shrink [M]; s [M, N], lo and hi [M, 1], at = (b, h, i)."""
    b, h, i = at
    a = s
    if SCALE == 0.0:
        layout: gl.constexpr = s.type.layout
        first, apart = keys_of(j0, layout, BLOCK_N)
        a = score(s, b, h, i, first + apart, env)                                              # [M, N]
    if MASKED:
        a = mask(a, j0, lo, hi, marks, BLOCK_N)
    return weigh(a, gl.convert_layout(row_max(a), m.type.layout), m, LAG)
