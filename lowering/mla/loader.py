"""The warp that loads latents of 16 bits by TMA, of `hopper_exchange.py` and `hopper_narrow.py`"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language.extra.cuda import gdc_launch_dependents

from .copies import copy_piece, page_of
from .line import likely_item, note_cuts, plan_of
from .memory import EARLY, ask, ask_again, begin
from .rows import PAGE, place_of
from .task import task_of


@gluon.jit
def load(descs, pages, pages_strides, queries, rings, bars, message, sizes, env, cuts, IN_PAGES: gl.constexpr,
         BLOCK_H: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The warp that loads: tiles of latents, the last first, piece by piece; after the first two, the item's queries.

    Those that the first item is likely to have come before all else, while the plan is made: no scores without them, and all
    blocks ask at once.
    """
    N: gl.constexpr = rings[0].shape[2]
    gdc_launch_dependents()                                         # the merge may take its place on idle processors
    likely = likely_item(sizes, BLOCK_B, BLOCK_H)
    ask((descs[2], descs[3]), queries, bars[2].index(EARLY), place_of(likely, sizes, BLOCK_H))
    plan = plan_of(sizes, env, N, BLOCK_B, BLOCK_T, BLOCK_H)
    evens = plan[4] * 0
    odds = evens
    ask_again((descs[2], descs[3]), queries, bars, plan[4], likely, sizes, BLOCK_H)
    for item in range(plan[4], plan[5]):
        segment, _live, numbers = task_of(item, plan, sizes, env, N, BLOCK_B, BLOCK_T, BLOCK_H)
        first, count = segment[5], segment[6]
        block = page_of(pages, pages_strides, item, first + (count - 1) * N, count > 0, IN_PAGES)
        for t in range(count):
            slot = t % 2
            phase = (gl.where(slot == 0, evens, odds) + t // 2) % 2 ^ 1
            j0 = first + (count - 1 - t) * N
            after = page_of(pages, pages_strides, item, j0 - N, t + 1 < count, IN_PAGES)
            row = j0
            if IN_PAGES:
                row = j0 % PAGE
            for piece in gl.static_range(3):
                copy_piece(piece, (descs[0], descs[1]), (block, row), rings, bars, slot, phase)
            if t == gl.minimum(count - 1, 1):
                begin((descs[2], descs[3]), queries, message, bars, item - plan[4], numbers)
            block = after
        note_cuts(cuts, item, segment, sizes, BLOCK_B, BLOCK_H)
        evens += (count + 1) // 2
        odds += count // 2
