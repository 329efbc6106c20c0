"""out[b,h,i,:] = sum_j e^a_j latent[b,j] / sum_j e^a_j   a_j = score(q_latent[b,h,i].latent[b,j] + q_rope[b,h,i].rope[b,j])

The kernel of `kernel.py` for Hopper: two warpgroups multiply and exchange weights (`exchange.py`), one warp loads by TMA.
Shapes: q_latent, out: descriptors of [B, T, H, R] in boxes of 64 / BLOCK_H x BLOCK_H x HALF, HALF = BLOCK_R / 2; q_rope of
[B, T, H, P]; latent, rope of [B, S, .] or [PAGES, 64, .] in tiles of BLOCK_N x HALF and BLOCK_N x BLOCK_P;
BLOCK_N = BLOCK_P = 64.
Parts and their log2-sum-exp: `finish.py`; cuts [items], where an item's parts are: `line.py`.
Grid: (blocks * lanes,), or (B * SPLITS * lanes,), fixed by shapes. Traffic and FLOPs: as `kernel.py`.
Barriers. Use n of a slot has phase n % 2: who reads waits for full at the phase, who writes for empty at the other, which a
new barrier lets pass.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language.extra.cuda import gdc_launch_dependents

from .copies import copy_piece, page_of
from .exchange import even, odd
from .line import note_cuts, plan_of
from .memory import ask, begin, common, pieces
from .rows import PAGE, place_of
from .task import task_of


@gluon.jit
def load(descs, pages, pages_strides, queries, rings, bars, message, sizes, env, cuts, IN_PAGES: gl.constexpr,
         BLOCK_H: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The warp that loads: tiles of latents, the last first, piece by piece; after the first two, the item's queries.

    Those of the first item come before all else: no scores without them, and all blocks ask at once.
    """
    N: gl.constexpr = rings[0].shape[2]
    gdc_launch_dependents()                                         # the merge may take its place on idle processors
    plan = plan_of(sizes, env, N, BLOCK_B, BLOCK_T, BLOCK_H)
    evens = plan[4] * 0
    odds = evens
    ask((descs[2], descs[3]), queries, bars, place_of(plan[4], sizes, BLOCK_H))
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


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "SPLITS"])
def mla_exchange(q_latent, q_rope, latent, rope, pages, pages_strides, out, workspace, lse, cuts, B, H, T, S, SPLITS,
                 operands, R: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr,
                 BLOCK_H: gl.constexpr, IN_PAGES: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    env = operands
    rings = pieces(latent.dtype, BLOCK_N, HALF, BLOCK_P)
    queries, bars, b_p, small, message = common(latent.dtype, BLOCK_N, HALF, BLOCK_P, BLOCK_H, 1)
    sizes = (B, H, T, S, S, SPLITS, SPLITS, SPLITS)
    descs = (latent, rope, q_latent, q_rope)
    to = (out, workspace, lse, cuts)
    gl.warp_specialize([
        (even, ((), queries, rings, bars, b_p, small, message, sizes, env, to, R, BLOCK_H)),
        (odd, ((), queries, rings, bars, b_p, small, message, sizes, env, to, R, BLOCK_H)),
        (load, (descs, pages, pages_strides, queries, rings, bars, message, sizes, env, cuts, IN_PAGES, BLOCK_H, BLOCK_B,
                BLOCK_T)),
    ], [4, 1], [232, 40])
