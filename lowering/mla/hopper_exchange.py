"""out[b,h,i,:] = sum_j e^a_j latent[b,j] / sum_j e^a_j   a_j = score(q_latent[b,h,i].latent[b,j] + q_rope[b,h,i].rope[b,j])

The kernel of `kernel.py` for Hopper: two warpgroups multiply and exchange weights
(`exchange.py`), one warp loads latents by TMA.
Shapes, parts and lse: as `kernel.py`. q_latent, q_rope, out: unit stride in the last dim; latent, rope: descriptors of
[B, S, .] or [PAGES, 64, .] in tiles of BLOCK_N x HALF, HALF = BLOCK_R / 2, and BLOCK_N x BLOCK_P; BLOCK_N = BLOCK_P = 64.
Grid: (SPLITS * ceil(H * T / 64) * B,), fixed by shapes. Traffic and FLOPs: as `kernel.py`.
Barriers. Use n of a slot has phase n % 2: who reads waits for full at the phase, who writes for empty at the other, which a
new barrier lets pass.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .exchange import common, even, odd, pieces
from .line import plan_of, segment_of
from .warpgroups import PAGE


@gluon.jit
def load(descs, pages, pages_strides, rings, bars, sizes, env, N: gl.constexpr, HALF: gl.constexpr, IN_PAGES: gl.constexpr,
         LINE: gl.constexpr, BLOCK_T: gl.constexpr):
    """The producer: tiles of latents, the last first, piece by piece."""
    d_latent, d_rope = descs
    plan = plan_of(sizes, env, N, LINE, BLOCK_T)
    evens = plan[4] * 0
    odds = evens
    for item in range(plan[4], plan[5]):
        _item, _part, _parts, _holder, _begin, _last, first, count = segment_of(item, plan, sizes, env, N, LINE, BLOCK_T)
        for t in range(count):
            at = t % 2
            phase = (gl.where(at == 0, evens, odds) + t // 2) % 2 ^ 1
            j0 = first + (count - 1 - t) * N
            block = item
            row = j0
            if IN_PAGES:
                p_page = pages + gl.cast(item, gl.int64) * pages_strides[0] + (j0 // PAGE).to(gl.int64) * pages_strides[1]
                block = gl.load(p_page)
                row = j0 % PAGE
            for piece in gl.static_range(3):
                bar = bars[0].index(2 * piece + at)
                mbarrier.wait(bars[1].index(2 * piece + at), phase)
                if piece == 1:
                    mbarrier.expect(bar, d_rope.block_type.nbytes)
                    tma.async_copy_global_to_shared(d_rope, [block, row, 0], bar, rings[1].index(at))
                else:
                    mbarrier.expect(bar, d_latent.block_type.nbytes)
                    tma.async_copy_global_to_shared(d_latent, [block, row, piece // 2 * HALF], bar, rings[piece].index(at))
        evens += (count + 1) // 2
        odds += count // 2


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "SPLITS"])
def mla_exchange(q_latent, q_latent_strides, q_rope, q_rope_strides, latent, rope, pages, pages_strides, out, out_strides,
                 workspace, counters, B, H, T, S, SPLITS,
                 operands, R: gl.constexpr, P: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr,
                 IN_PAGES: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_ROWS: gl.constexpr):
    env = operands
    rings = pieces(BLOCK_N, HALF, BLOCK_P, latent.dtype)
    queries, bars, b_p, small = common(latent.dtype, BLOCK_N, HALF, BLOCK_P, 1)
    sizes = (B, H, T, S, S, SPLITS, SPLITS, SPLITS)
    tensors = (q_latent, q_latent_strides, q_rope, q_rope_strides)
    to = (out, out_strides, workspace, counters)
    gl.warp_specialize([
        (even, (tensors, (), queries, rings, bars, b_p, small, sizes, env, to, R, P, BLOCK_B, BLOCK_T, BLOCK_ROWS)),
        (odd, (tensors, (), queries, rings, bars, b_p, small, sizes, env, to, R, P, BLOCK_B, BLOCK_T, BLOCK_ROWS)),
        (load, ((latent, rope), pages, pages_strides, rings, bars, sizes, env, BLOCK_N, HALF, IN_PAGES, BLOCK_B, BLOCK_T)),
    ], [4, 1], [240, 24])
