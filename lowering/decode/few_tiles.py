"""acc = sum_j p_j v_j of quantised tiles, for 16 rows: codes become numbers in the registers that the products read

They are written nowhere. A tile of 64 keys is shared out among four warps, 16 keys each, whose products are of 16 rows
(mma.sync); each has a softmax of its own. Even and odd channels are apart: what `ldmatrix` moves are pairs of codes. Scales
belong to scores and to weights, so that K and V are exact.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..hooks import HAS_LO, HAS_RESIDUE, score
from ..hopper.rings import flat
from ..hopper.softmax import SCALE, weigh
from ..hopper.tiles import least, most, slot, uniform
from ..pages import FORMAT
from .codes import numbers_of
from .consumer import first_key
from .few_join import FEW_ROWS, GROUPS, WARPS
from .weights import class_of, masked


@gluon.jit
def queries_of(b_q):
    """The even and the odd channels of b_q [16, D], left operands for each warp [4, 16, D / 2]."""
    C: gl.constexpr = b_q.shape[1] // 2
    layout: gl.constexpr = gl.DotOperandLayout(0, gl.NVMMADistributedLayout([2, 0], [4, 1, 1], [1, 16, 8]), 2)
    b_pairs = b_q._reinterpret(gl.int32, [FEW_ROWS, C], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    pairs = gl.expand_dims(b_pairs.load(gl.SliceLayout(0, layout)), 0).broadcast_to([WARPS, FEW_ROWS, C])
    return pairs.to(gl.int16).to(b_q.dtype, bitcast=True), (pairs >> 16).to(gl.int16).to(b_q.dtype, bitcast=True)


@gluon.jit
def pairs_of(codes, at):
    """Slot `at` of a ring of codes [STAGES, 1, 1, N, D], two to a number and a quarter for each warp: [4, N / 4, D / 2]."""
    N: gl.constexpr = codes.shape[3] // WARPS
    C: gl.constexpr = codes.shape[4] // 2
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([WARPS, N, C], gl.int16)
    return flat(codes, at)._reinterpret(gl.int16, [WARPS, N, C], layout)


@gluon.jit
def scales_of(scales, at, layout: gl.constexpr):
    """Slot `at` of a ring of scales [STAGES, 1, 1, 1, N], as those of columns [4, 1, N / 4]."""
    N: gl.constexpr = scales.shape[4] // WARPS
    view = scales.index(at)._reinterpret(gl.float32, [WARPS, N], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    return gl.expand_dims(view.load(gl.SliceLayout(1, layout)), 1)


@gluon.jit
def scores(q, k, at, layout: gl.constexpr):
    """q k [4, 16, N / 4] of a tile."""
    b_k = pairs_of(k[0], at).permute([0, 2, 1])
    N: gl.constexpr = b_k.shape[2]
    pairs = b_k.load(gl.DotOperandLayout(1, layout, 2))                                        # [4, D / 2, N / 4]
    s = gl.zeros([WARPS, FEW_ROWS, N], gl.float32, layout)
    s = mma_v2(q[0], numbers_of(pairs, False, q[0].dtype), s)
    s = mma_v2(q[1], numbers_of(pairs, True, q[1].dtype), s)
    return s * scales_of(k[1], at, layout)


@gluon.jit
def columns(j0, N: gl.constexpr, layout: gl.constexpr, DIM: gl.constexpr):
    """The keys of a tile [4, 1, N / 4], or, with DIM = 1, [4, N / 4, 1]."""
    w = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(3 - DIM, layout)))[:, None] * (N // WARPS)
    n = gl.arange(0, N // WARPS, gl.SliceLayout(0, gl.SliceLayout(3 - DIM, layout)))[None, :]
    return gl.expand_dims(j0 + w + n, 3 - DIM)


@gluon.jit
def weigh_few(s, m, l, j, lo, hi, at, env, MASKED: gl.constexpr):
    """As `weights.weigh_scores`, of s [4, 16, N / 4] and each warp's m, l [4, 16]; lo and hi [1, 16, 1]."""
    a = s
    if SCALE == 0.0:
        a = score(s, at[0], at[1], at[2], j, env)
    if MASKED:
        a = masked(a, j, lo, hi, at, env)
    p, m, shrink = weigh(a, gl.max(a, 2), m)
    return p, m, l * shrink + gl.sum(p, 2), shrink


@gluon.jit
def values_of(v, at, j0, span, layout: gl.constexpr):
    """Pairs of codes of v [4, N / 4, DV / 2], a right operand. Those of keys that no row sees have weight 0, but may be NaN."""
    N: gl.constexpr = v[0].shape[3]
    pairs = pairs_of(v[0], at).load(layout)
    if FORMAT == "fp8":
        j = columns(j0, N, layout, 1)
        seen = gl.where((j >= span[0]) & (j < span[1]), -1, 0).to(gl.int16)
        pairs = gl.inline_asm_elementwise("and.b32 $0, $1, $2;", "=r,r,r", [pairs, seen], dtype=gl.int16, is_pure=True, pack=2)
    return pairs


@gluon.jit
def attend_few(g: gl.constexpr, q, packed, bars, use, first, count, at, lo, hi, span, env, STAGES: gl.constexpr,
               BLOCK_N: gl.constexpr):
    """Sums of the even and the odd channels [4, 16, DV / 2] and m, l [4, 16] of every GROUPSth of `count` key tiles."""
    C: gl.constexpr = packed[1][0].shape[4] // 2
    layout: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [4, 1, 1], [1, 16, 8])
    rows: gl.constexpr = gl.SliceLayout(2, layout)
    m = gl.full([WARPS, FEW_ROWS], float("-inf"), gl.float32, rows)
    l = gl.zeros([WARPS, FEW_ROWS], gl.float32, rows)
    even = gl.zeros([WARPS, FEW_ROWS, C], gl.float32, layout)
    odd = gl.zeros([WARPS, FEW_ROWS, C], gl.float32, layout)
    inside = uniform(most(lo)) if HAS_LO else first
    beyond = uniform(least(hi))
    lo, hi = gl.expand_dims(lo, 0), gl.expand_dims(hi, 0)
    for t in range((g + GROUPS - use % GROUPS) % GROUPS, count, GROUPS):
        slot_at, phase = slot(use + t, STAGES)
        if HAS_RESIDUE:
            shown = class_of(at[0], first + t * BLOCK_N, env, BLOCK_N)
        mbarrier.wait(bars[0][0].index(slot_at), phase)
        j0 = first_key(packed, use + t, first + t * BLOCK_N)
        s = scores(q, packed[0], slot_at, layout)
        mbarrier.arrive(bars[0][1].index(slot_at))
        j = columns(j0, BLOCK_N, layout, 2)
        whole = (j0 >= inside) & (j0 + BLOCK_N <= beyond)
        if HAS_RESIDUE:
            whole = whole & (shown == 2)
        if whole:
            p, m, l, shrink = weigh_few(s, m, l, j, lo, hi, at, env, False)
        else:
            p, m, l, shrink = weigh_few(s, m, l, j, lo, hi, at, env, True)
        mbarrier.wait(bars[1][0].index(slot_at), phase)
        pairs = values_of(packed[1], slot_at, j0, span, gl.DotOperandLayout(1, layout, 2))
        p = p * scales_of(packed[1][1], slot_at, layout)
        mbarrier.arrive(bars[1][1].index(slot_at))
        if not whole:
            p = gl.where((j >= span[0]) & (j < span[1]), p, 0.0)                               # its scale may be NaN
        weights = gl.convert_layout(p.to(q[0].dtype), gl.DotOperandLayout(0, layout, 2))
        even = mma_v2(weights, numbers_of(pairs, False, q[0].dtype), even * shrink[:, :, None])
        odd = mma_v2(weights, numbers_of(pairs, True, q[0].dtype), odd * shrink[:, :, None])
    return even, odd, m, l
