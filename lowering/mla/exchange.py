"""The two warpgroups that multiply, and exchange their weights: one computes those of even tiles, the other of odd tiles

After FlashMLA's second schedule (DeepSeek, 2025). Each owns 256 columns of the sums and half of the scores; the weights of
a tile go to the other through shared memory, with the maximum they were taken from, so that one running maximum serves both.
A pair of tiles, down the page; products stand in capitals:

    even, left columns                        odd, right columns
    SCORES 0                                  sums of the pair before
    weights 0 -> odd                          SCORES 1, begun after scores 0
    VALUES 0 (weights in registers)           VALUES 0 (from shared memory); weights 1 meanwhile -> even
    VALUES 1 (from shared memory)             VALUES 1 (weights in registers)

The scores of one run under the softmax of the other. Tiles come from the last key to the first, two slots of BLOCK_N keys;
a slot's left columns, rope and right columns are filled and freed each for itself: left columns of tile 0 are on their way
again while three products still run. The weights of odd tiles lie where the queries' rope part was, which stays in registers.
An item begins with what `rows.py` tells of it and its queries, and ends with `finish.py`; tiles of the next are on their way
then.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma_wait

from ..hopper.rescale import LAG, rescaled
from ..hopper.softmax import weigh
from .finish import finish
from .memory import hear
from .rows import told
from .steps import begin_values, bounds_of, give, masked, scores, tokens_of

TURN = gl.constexpr(2)
WEIGHTS = gl.constexpr(3)
TAKEN = gl.constexpr(5)
"""Barriers between warps, besides those of `memory.py`: scores of even tiles done; weights of w there, and taken.
They lie apart from those of pieces, full and empty at 2 * piece + slot for left, rope and right: where a warpgroup waits and
arrives in one array, Triton has all its threads meet in between."""


@gluon.jit
def even(source, queries, rings, bars, b_p, small, message, sizes, env, to, R: gl.constexpr, BLOCK_H: gl.constexpr):
    """Scores and weights of tiles 0, 2, ...; sums of the left columns."""
    N: gl.constexpr = rings[0].shape[2]
    HALF: gl.constexpr = rings[0].shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    o_n = gl.arange(0, N, gl.SliceLayout(0, s_layout))
    evens = gl.program_id(0) * 0                                    # tiles so far: the use of each slot
    odds = evens
    turn = evens
    more = evens + 1
    while more > 0:
        place, first, begin, last, count = hear(message, bars, turn)
        rows, bounds = bounds_of(place, last, message, sizes, env, BLOCK_H, s_layout)
        more = told(message, 11)
        m = gl.full([64], float("-inf"), gl.float32, s_rows)
        l = gl.zeros([64], gl.float32, s_rows)
        acc = gl.zeros([64, HALF], gl.float32, o_layout)
        b_r = b_p[1].load(gl.DotOperandLayout(0, s_layout, 2))                                 # [64, P]
        mbarrier.arrive(bars[2].index(TAKEN + 1), pred=count > 1)
        for u in range((count + 1) // 2):
            z = u >> 24
            phase = (evens + u) % 2
            j0 = first + (count - 1 - 2 * u) * N
            token = tokens_of(source, place, j0 + o_n, last)
            s = scores(queries, b_r, rings, bars, 0, z, phase)
            mbarrier.arrive(bars[2].index(TURN), pred=2 * u + 1 < count)
            mbarrier.arrive(bars[1].index(2))
            a = masked(s, token, sizes, rows, bounds, j0, last, env)
            weights, m, shrink = weigh(a, gl.max(a, 1), m, LAG)
            p = weights.to(rings[0].dtype)
            mbarrier.wait(bars[2].index(TAKEN), phase ^ 1)
            give(0, b_p, small, bars, p, m, shrink)
            acc = rescaled(acc, shrink)
            p_registers = gl.convert_layout(p, gl.DotOperandLayout(0, o_layout, 2))
            o = begin_values(p_registers, rings, 0, bars, 0, z, phase, j0, (begin, last), acc)
            l = l * shrink + gl.sum(weights, 1)
            acc = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(bars[1].index(0))
            if 2 * u + 1 < count:
                phase = (odds + u) % 2
                mbarrier.wait(bars[2].index(WEIGHTS + 1), phase)
                m = small.index(2).load(s_rows)
                l = l * small.index(3).load(s_rows)
                acc = rescaled(acc, small.index(3).load(o_rows))
                o = begin_values(b_p[1], rings, 0, bars, 1, z, phase, j0 - N, (begin, last), acc)
                acc = warpgroup_mma_wait(0, [o])
                mbarrier.arrive(bars[2].index(TAKEN + 1), pred=2 * u + 3 < count)
                mbarrier.arrive(bars[1].index(1))
        evens += (count + 1) // 2
        odds += count // 2
        finish(0, acc, m, l, place, message, queries, small, bars, turn, sizes, env, to, R, BLOCK_H)
        turn += 1


@gluon.jit
def odd(source, queries, rings, bars, b_p, small, message, sizes, env, to, R: gl.constexpr, BLOCK_H: gl.constexpr):
    """Scores and weights of tiles 1, 3, ...; sums of the right columns."""
    N: gl.constexpr = rings[2].shape[2]
    HALF: gl.constexpr = rings[2].shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    o_n = gl.arange(0, N, gl.SliceLayout(0, s_layout))
    evens = gl.program_id(0) * 0
    odds = evens
    turn = evens
    more = evens + 1
    while more > 0:
        place, first, begin, last, count = hear(message, bars, turn)
        rows, bounds = bounds_of(place, last, message, sizes, env, BLOCK_H, s_layout)
        more = told(message, 11)
        m = gl.full([64], float("-inf"), gl.float32, s_rows)
        l = gl.zeros([64], gl.float32, s_rows)
        acc = gl.zeros([64, HALF], gl.float32, o_layout)
        b_r = b_p[1].load(gl.DotOperandLayout(0, s_layout, 2))                                 # [64, P]
        for u in range(count // 2):
            z = u >> 24
            phase = (odds + u) % 2
            phase_0 = (evens + u) % 2
            j0 = first + (count - 2 - 2 * u) * N
            token = tokens_of(source, place, j0 + o_n, last)
            mbarrier.wait(bars[2].index(TURN), phase)
            s = scores(queries, b_r, rings, bars, 1, z, phase)
            mbarrier.arrive(bars[1].index(3))
            a = masked(s, token, sizes, rows, bounds, j0, last, env)
            mbarrier.wait(bars[2].index(WEIGHTS), phase_0)
            m = small.index(0).load(s_rows)
            l = l * small.index(1).load(s_rows)
            acc = rescaled(acc, small.index(1).load(o_rows))
            o = begin_values(b_p[0], rings, 2, bars, 0, z, phase_0, j0 + N, (begin, last), acc)
            weights, m, shrink = weigh(a, gl.max(a, 1), m, LAG)
            p = weights.to(rings[2].dtype)
            mbarrier.wait(bars[2].index(TAKEN + 1), phase)
            give(1, b_p, small, bars, p, m, shrink)
            acc = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(bars[2].index(TAKEN))
            mbarrier.arrive(bars[1].index(4))
            acc = rescaled(acc, shrink)
            p_registers = gl.convert_layout(p, gl.DotOperandLayout(0, o_layout, 2))
            o = begin_values(p_registers, rings, 2, bars, 1, z, phase, j0, (begin, last), acc)
            l = l * shrink + gl.sum(weights, 1)
            acc = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(bars[1].index(5))
        if count % 2 == 1:
            phase_0 = (evens + count // 2) % 2
            mbarrier.wait(bars[2].index(WEIGHTS), phase_0)
            m = small.index(0).load(s_rows)
            l = l * small.index(1).load(s_rows)
            acc = rescaled(acc, small.index(1).load(o_rows))
            o = begin_values(b_p[0], rings, 2, bars, 0, count >> 24, phase_0, first, (begin, last), acc)
            acc = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(bars[2].index(TAKEN))
            mbarrier.arrive(bars[1].index(4))
        evens += (count + 1) // 2
        odds += count // 2
        finish(1, acc, m, l, place, message, queries, small, bars, turn, sizes, env, to, R, BLOCK_H)
        turn += 1
