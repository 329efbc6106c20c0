"""out[b,h,i,:] = sum_t e^a_j latent[b,j] / sum_t e^a_j    j = tokens[b,i,t]: only the keys a query has chosen

The kernel of `kernel.py` for Hopper: the two warpgroups of `mla/exchange.py`, and a third that gathers. TMA has no list of
rows: it copies latents row by row, 16 bytes a thread, and each piece of a tile announces itself when the copies of all
threads have come; who reads it shows it to the tensor cores. What is no key is 0.
Shapes: q_latent, q_rope and out as `mla/hopper_exchange.py`, with BLOCK_H = 64; latent, rope, tokens, pages as `kernel.py`,
unit stride in the last dim of latent and rope. Parts, cuts, grid: as `mla/hopper_exchange.py`.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier
from triton.language.extra.cuda import gdc_launch_dependents

from ..mla.exchange import even, odd
from ..mla.line import likely_item, note_cuts, plan_of
from ..mla.memory import EARLY, ask, ask_again, begin, common, pieces
from ..mla.rows import PAGE, flat, place_of, token_at
from ..mla.task import task_of


@gluon.jit
def keys_at(item, source, keys, sizes, place, last, begin, end, IN_PAGES: gl.constexpr):
    """Of positions [N] of an item's tokens: whether each is a key, and where its latent and rope rows begin. int64."""
    chosen, chosen_strides, pages, pages_strides = source
    _latent, latent_strides, _rope, rope_strides = keys
    T = sizes[2]
    b = item // T
    token = token_at(chosen, chosen_strides, b, item % T, place, last)
    m_key = (token >= begin) & (token < end)
    j = gl.where(m_key, token, 0).to(gl.int64)
    if IN_PAGES:
        p_page = pages + b.to(gl.int64) * pages_strides[0] + j // PAGE * pages_strides[1]
        block = gl.load(p_page, mask=m_key, other=0).to(gl.int64)
        row = j % PAGE
    else:
        block = j * 0 + b
        row = j
    return m_key, block * latent_strides[0] + row * latent_strides[1], block * rope_strides[0] + row * rope_strides[1]


@gluon.jit
def copy_rows(buf, x, at, m_key, c0: gl.constexpr, D: gl.constexpr, layout: gl.constexpr):
    """Columns c0 .. c0 + W, those below D, of rows beginning at `at` [N], into buf [N, W]; 0 where not m_key [N]."""
    o_d = c0 + gl.arange(0, buf.shape[1], gl.SliceLayout(0, layout))
    mask = m_key[:, None] & (o_d < D)[None, :]
    async_copy.async_copy_global_to_shared(buf, x + at[:, None] + o_d[None, :], mask=mask)


@gluon.jit
def gather(source, keys, descs, queries, rings, bars, message, sizes, env, cuts, R: gl.constexpr, P: gl.constexpr,
           IN_PAGES: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_B: gl.constexpr):
    """The warpgroup that loads: tiles of chosen latents, the last first, piece by piece; queries as in `mla/`."""
    N: gl.constexpr = rings[0].shape[2]
    HALF: gl.constexpr = rings[0].shape[3]
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HALF, HALF // 8], [4, 1], [1, 0])
    narrow: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    o_wide = gl.arange(0, N, gl.SliceLayout(1, wide))
    o_narrow = gl.arange(0, N, gl.SliceLayout(1, narrow))
    gdc_launch_dependents()                                         # the merge may take its place on idle processors
    likely = likely_item(sizes, BLOCK_B, BLOCK_H)
    ask(descs, queries, bars[2].index(EARLY), place_of(likely, sizes, BLOCK_H))
    plan = plan_of(sizes, env, N, BLOCK_B, 1, BLOCK_H)
    evens = plan[4] * 0
    odds = evens
    ask_again(descs, queries, bars, plan[4], likely, sizes, BLOCK_H)
    for item in range(plan[4], plan[5]):
        segment, live, numbers = task_of(item, plan, sizes, env, N, BLOCK_B, 1, BLOCK_H)
        last, first, count = segment[4], segment[5], segment[6]
        for t in range(count):
            at = t % 2
            phase = (gl.where(at == 0, evens, odds) + t // 2) % 2 ^ 1
            j0 = first + (count - 1 - t) * N
            m_wide, at_wide, _unused = keys_at(item, source, keys, sizes, j0 + o_wide, last, live[0], live[1], IN_PAGES)
            m_narrow, _unused, at_narrow = keys_at(item, source, keys, sizes, j0 + o_narrow, last, live[0], live[1], IN_PAGES)
            for piece in gl.static_range(3):
                mbarrier.wait(bars[1].index(2 * piece + at), phase)
                if piece == 1:
                    copy_rows(flat(rings[1], at), keys[2], at_narrow, m_narrow, 0, P, narrow)
                else:
                    copy_rows(flat(rings[piece], at), keys[0], at_wide, m_wide, piece // 2 * HALF, R, wide)
                async_copy.mbarrier_arrive(bars[0].index(2 * piece + at), increment_count=False)
            if t == gl.minimum(count - 1, 1):
                begin(descs, queries, message, bars, item - plan[4], numbers)
        note_cuts(cuts, item, segment, sizes, BLOCK_B, BLOCK_H)
        evens += (count + 1) // 2
        odds += count // 2
    async_copy.wait_group(0)


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "K", "SPLITS", "EACH", "STEP"])
def tokens_exchange(q_latent, q_rope, latent, latent_strides, rope, rope_strides, chosen, chosen_strides, pages, pages_strides,
                    out, workspace, lse, cuts, B, H, T, S, K, SPLITS, EACH, STEP,
                    operands, R: gl.constexpr, P: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr,
                    BLOCK_P: gl.constexpr, BLOCK_H: gl.constexpr, IN_PAGES: gl.constexpr, BLOCK_B: gl.constexpr):
    env = operands
    kind: gl.constexpr = latent.dtype.element_ty
    rings = pieces(kind, BLOCK_N, HALF, BLOCK_P)
    queries, bars, b_p, small, message = common(kind, BLOCK_N, HALF, BLOCK_P, BLOCK_H, 128)
    sizes = (B, H, T, S, K, SPLITS, EACH, STEP)
    keys = (latent, latent_strides, rope, rope_strides)
    source = (chosen, chosen_strides, pages, pages_strides)
    to = (out, workspace, lse, cuts)
    gl.warp_specialize([
        (even, (source, queries, rings, bars, b_p, small, message, sizes, env, to, R, BLOCK_H)),
        (odd, (source, queries, rings, bars, b_p, small, message, sizes, env, to, R, BLOCK_H)),
        (gather, (source, keys, (q_latent, q_rope), queries, rings, bars, message, sizes, env, cuts, R, P, IN_PAGES, BLOCK_H,
                  BLOCK_B)),
    ], [4, 4], [216, 72])
