"""acc += p_t v_t of the tiles t that a row may need: one step of a consumer of the Hopper kernel with a threshold

As `hopper/step.py`, whose places these take, but the vote on a tile comes before its weights. A warpgroup leaves a tile out
where each of its 64 rows does, by the rule of `scan.py`: no exponentials, no product; if the others leave it out too, no values
from memory. What is carried from step to step is the logits of a tile and whether it is needed:

    needed      weights t, while its values come | scores t + 1, values t: begun | vote on t + 1 beside the values
    not needed  scores t + 1 | vote on t + 1

So a vote waits for nothing but the scores, and the next scores never wait for a vote's values. Both forms of a step are there,
for a product in flight ends in the branch it began in. Scores begun before the weights would have no registers: 64 a thread
for them, 64 for what is weighed and 64 for the sums, and ptxas awaits every instruction of a product then.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..hopper.products import scores
from ..hopper.rescale import LAG, rescaled
from ..hopper.rings import flat
from ..hopper.softmax import SCALE, exp2
from ..hopper.tiles import slot
from ..hopper.weigh import pack, thread_sums, unpack
from .vote import vote


@gluon.jit
def begin(wg: gl.constexpr, bufs, bars, n, use):
    """Scores [64, N] of a use of the ring of k: begun."""
    QUERIES: gl.constexpr = bars[0][0].shape[0]
    at, phase = slot(use, bars[1][0].shape[0])
    mbarrier.wait(bars[1][0].index(at), phase)
    return scores(bufs[0], bufs[1], slot(n, QUERIES)[0] * (bufs[0][0].shape[0] // QUERIES) + wg, at)


@gluon.jit
def raised(highest, m, l, acc):
    """What weights are relative to [64]; m [64] with the greatest logits of a tile; l [64, 4] and acc [64, DV] in its terms."""
    if SCALE != 0.0:
        highest = highest * SCALE
    new = gl.maximum(m, highest)
    new = gl.where(new - m <= LAG, m, new)
    shift = gl.where(new == float("-inf"), 0.0, new)
    shrink = exp2(m - shift)
    l = l * gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout))[:, None]
    return shift, new, l, rescaled(acc, gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout)))


@gluon.jit
def held(x):
    """x, not to be worked out later than here: else ptxas keeps what sums are made of beside the next products, and awaits
    each of their instructions for want of registers. A shuffle of each thread with itself is what it does not move."""
    return gl.inline_asm_elementwise("shfl.sync.bfly.b32 $0, $1, 0, 31, 0xFFFFFFFF;", "=f,f", [x], dtype=gl.float32,
                                     is_pure=False, pack=1)


@gluon.jit
def weights(a, shift, l, layout: gl.constexpr, kind: gl.constexpr):
    """2^(a - shift) [64, N] as the left operand of a product; l [64, 4] with them."""
    if SCALE != 0.0:
        a = a * SCALE
    p = exp2(a - shift[:, None])
    l = l + held(thread_sums(p))
    return unpack(pack(p, kind), kind, layout), l


@gluon.jit
def step(wg: gl.constexpr, bufs, bars, n, use, j0, rows, before, sums, acc, least, env, MASKED: gl.constexpr):
    """The vote on use `use` of the ring of k and, if it is needed, what the use before adds to the sums m, l and y, and to acc.

    before: logits [64, N] of that, their greatest [64], whether it is needed; rows = (b, h, i), lo, hi.
    """
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    k_at, _ = slot(use, bars[1][0].shape[0])
    v_at, v_phase = slot(use - 1, bars[2][0].shape[0])
    a, highest, pending = before
    m, l, y = sums
    if pending > 0:
        shift, m, l, acc = raised(highest, m, l, acc)
        p, l = weights(a, shift, l, gl.DotOperandLayout(0, acc.type.layout, 2), bufs[2][0].dtype)
        s_next = begin(wg, bufs, bars, n, use)
        mbarrier.wait(bars[2][0].index(v_at), v_phase)
        o_next = warpgroup_mma(p, flat(bufs[2][0], v_at), acc, is_async=True)
        s = warpgroup_mma_wait(1, [s_next])                                                    # [64, N]
        mbarrier.arrive(bars[1][1].index(k_at))
        a, highest, needed, y = vote(wg, bars, use, s, j0, rows, y, least, env, BLOCK_N, MASKED)
        acc = warpgroup_mma_wait(0, [o_next])                                                  # [64, DV]
    else:
        s = warpgroup_mma_wait(0, [begin(wg, bufs, bars, n, use)])
        mbarrier.arrive(bars[1][1].index(k_at))
        a, highest, needed, y = vote(wg, bars, use, s, j0, rows, y, least, env, BLOCK_N, MASKED)
        mbarrier.wait(bars[2][0].index(v_at), v_phase)
    mbarrier.arrive(bars[2][1].index(v_at))
    return (a, highest, needed), (m, l, y), acc


@gluon.jit
def last_values(bufs, bars, use, before, sums, acc):
    """m, l and acc with what the last use of an item adds, if that is needed."""
    at, phase = slot(use, bars[2][0].shape[0])
    a, highest, pending = before
    m, l, _y = sums
    if pending > 0:
        shift, m, l, acc = raised(highest, m, l, acc)
        p, l = weights(a, shift, l, gl.DotOperandLayout(0, acc.type.layout, 2), bufs[2][0].dtype)
        mbarrier.wait(bars[2][0].index(at), phase)
        acc = warpgroup_mma_wait(0, [warpgroup_mma(p, flat(bufs[2][0], at), acc, is_async=True)])
    else:
        mbarrier.wait(bars[2][0].index(at), phase)
    mbarrier.arrive(bars[2][1].index(at))
    return m, l, acc
