"""out[b,h,i,:] = sum_t e^a_j latent[b,j] / sum_t e^a_j    j = tokens[b,i,t]: only the keys a query has chosen

The kernel of `kernel.py` for Hopper: the two warpgroups of `mla/exchange.py`, and a third that gathers. TMA has no list of
rows: it copies latents row by row, 16 bytes a thread, and each piece of a tile announces itself when the copies of all
threads have come; who reads it shows it to the tensor cores. What is no key is 0.
Shapes, grid (with 64 heads a block), parts and lse: as `kernel.py`; unit stride in the last dim of all but tokens and pages.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from ..mla.exchange import common, even, odd, pieces
from ..mla.line import live_of, plan_of, segment_of
from ..mla.warpgroups import PAGE, flat, token_at


@gluon.jit
def rows_at(item, source, keys, sizes, place, last, begin, end, IN_PAGES: gl.constexpr):
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
def gather(source, keys, rings, bars, sizes, env, R: gl.constexpr, P: gl.constexpr, N: gl.constexpr, HALF: gl.constexpr,
           BLOCK_P: gl.constexpr, IN_PAGES: gl.constexpr, LINE: gl.constexpr):
    """The producer: tiles of chosen latents, the last first, piece by piece."""
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HALF, HALF // 8], [4, 1], [1, 0])
    narrow: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BLOCK_P, BLOCK_P // 8], [4, 1], [1, 0])
    o_wide = gl.arange(0, N, gl.SliceLayout(1, wide))
    o_narrow = gl.arange(0, N, gl.SliceLayout(1, narrow))
    plan = plan_of(sizes, env, N, LINE, 1)
    evens = plan[4] * 0
    odds = evens
    for item in range(plan[4], plan[5]):
        begin, end = live_of(item, sizes, env)
        _item, _part, _parts, _holder, _begin, last, first, count = segment_of(item, plan, sizes, env, N, LINE, 1)
        for t in range(count):
            at = t % 2
            phase = (gl.where(at == 0, evens, odds) + t // 2) % 2 ^ 1
            place = first + (count - 1 - t) * N
            m_wide, at_wide, _unused = rows_at(item, source, keys, sizes, place + o_wide, last, begin, end, IN_PAGES)
            m_narrow, _unused, at_narrow = rows_at(item, source, keys, sizes, place + o_narrow, last, begin, end, IN_PAGES)
            for piece in gl.static_range(3):
                mbarrier.wait(bars[1].index(2 * piece + at), phase)
                if piece == 1:
                    copy_rows(flat(rings[1], at), keys[2], at_narrow, m_narrow, 0, P, narrow)
                else:
                    copy_rows(flat(rings[piece], at), keys[0], at_wide, m_wide, piece // 2 * HALF, R, wide)
                async_copy.mbarrier_arrive(bars[0].index(2 * piece + at), increment_count=False)
        evens += (count + 1) // 2
        odds += count // 2
    async_copy.wait_group(0)


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "K", "SPLITS", "EACH", "STEP"])
def tokens_exchange(q_latent, q_latent_strides, q_rope, q_rope_strides, latent, latent_strides, rope, rope_strides, chosen,
                    chosen_strides, pages, pages_strides, out, out_strides, workspace, counters, B, H, T, S, K, SPLITS,
                    EACH, STEP, operands, R: gl.constexpr, P: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr,
                    BLOCK_P: gl.constexpr, IN_PAGES: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_ROWS: gl.constexpr):
    env = operands
    kind: gl.constexpr = latent.dtype.element_ty
    rings = pieces(BLOCK_N, HALF, BLOCK_P, kind)
    queries, bars, b_p, small = common(kind, BLOCK_N, HALF, BLOCK_P, 128)
    sizes = (B, H, T, S, K, SPLITS, EACH, STEP)
    tensors = (q_latent, q_latent_strides, q_rope, q_rope_strides)
    keys = (latent, latent_strides, rope, rope_strides)
    source = (chosen, chosen_strides, pages, pages_strides)
    to = (out, out_strides, workspace, counters)
    gl.warp_specialize([
        (even, (tensors, source, queries, rings, bars, b_p, small, sizes, env, to, R, P, BLOCK_B, 1, BLOCK_ROWS)),
        (odd, (tensors, source, queries, rings, bars, b_p, small, sizes, env, to, R, P, BLOCK_B, 1, BLOCK_ROWS)),
        (gather, (source, keys, rings, bars, sizes, env, R, P, BLOCK_N, HALF, BLOCK_P, IN_PAGES, BLOCK_B)),
    ], [4, 4], [216, 72])
