"""out[b,h,i,:] = sum_j e^a_j latent[b,j] / sum_j e^a_j   a_j = score(q_latent[b,h,i].latent[b,j] + q_rope[b,h,i].rope[b,j])

The kernel of `kernel.py` for Hopper, after FlashMLA (DeepSeek, 2025): 64 rows x 512 float32 sums are half of the registers, so
two warpgroups own 256 columns each. The first leads: it alone computes scores and weights, keeps its weights in registers, and
sends them, with the factor by which old sums shrink, to the second through shared memory. One warp loads latents by TMA
into a ring of STAGES tiles, once for both products and both warpgroups. The scores of a tile are begun before the sums of
the tile before it, and its weights are computed while those are running.
Shapes, parts and lse: as `kernel.py`. q_latent, q_rope, out: unit stride in the last dim; latent, rope: descriptors of
[B, S, .] or [PAGES, 64, .] in tiles of BLOCK_N x HALF, HALF = BLOCK_R / 2, and BLOCK_N x BLOCK_P.
Grid: (SPLITS * ceil(H * T / 64) * B,), fixed by shapes. Traffic and FLOPs: as `kernel.py`.

Barriers. A ring of latents has two per slot: `full` (1 arrival, by TMA) and `empty` (one of each warpgroup); messages have
`full` (by the leader) and `empty` (by the follower). Use n of a ring is slot n % SLOTS, in phase n // SLOTS % 2: who reads
waits for full at the phase, who writes for empty at the other, which a new barrier lets pass. `ready`: the right half of q
is there.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ..hopper.tiles import slot
from .consumers import follow, lead
from .warpgroups import PAGE, ROWS, part_of, space


@gluon.jit
def load(descs, pages, pages_strides, rings, bars, sizes, env, STAGES: gl.constexpr, BLOCK_N: gl.constexpr,
         HALF: gl.constexpr, IN_PAGES: gl.constexpr):
    """The producer: tiles of latents, the last first."""
    d_latent, d_rope = descs
    left, right, rope = rings
    full, empty = bars
    b = gl.program_id(0) // ((sizes[0] * sizes[1] + ROWS - 1) // ROWS) // sizes[4]
    _begin, _last, first, count = part_of(sizes, env, BLOCK_N)
    for t in range(count):
        at, phase = slot(t, STAGES)
        j0 = first + (count - 1 - t) * BLOCK_N
        block = b
        row = j0
        if IN_PAGES:
            block = gl.load(pages + b.to(gl.int64) * pages_strides[0] + (j0 // PAGE).to(gl.int64) * pages_strides[1])
            row = j0 % PAGE
        mbarrier.wait(empty.index(at), phase ^ 1)
        bar = full.index(at)
        mbarrier.expect(bar, 2 * d_latent.block_type.nbytes + d_rope.block_type.nbytes)
        tma.async_copy_global_to_shared(d_latent, [block, row, 0], bar, left.index(at))
        tma.async_copy_global_to_shared(d_rope, [block, row, 0], bar, rope.index(at))
        tma.async_copy_global_to_shared(d_latent, [block, row, HALF], bar, right.index(at))


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "SPLITS"])
def mla_hopper(q_latent, q_latent_strides, q_rope, q_rope_strides, latent, rope, pages, pages_strides, out, out_strides,
               lse, B, H, T, S, SPLITS,
               operands, R: gl.constexpr, P: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr,
               STAGES: gl.constexpr, SLOTS: gl.constexpr, IN_PAGES: gl.constexpr, IN_PARTS: gl.constexpr):
    env = operands
    queries, rings, bars, ready, messages = space(latent.dtype, BLOCK_N, HALF, BLOCK_P, STAGES, SLOTS)
    sizes = (H, T, S, S, SPLITS)
    tensors = (q_latent, q_latent_strides, q_rope, q_rope_strides)
    to = (out, out_strides, lse, B)
    gl.warp_specialize([
        (lead, (tensors, (), queries, rings, bars, ready, messages, sizes, env, to, R, P, STAGES, SLOTS, BLOCK_N, IN_PARTS)),
        (follow, (tensors, (), queries, rings, bars, ready, messages, sizes, env, to, R, P, STAGES, SLOTS, BLOCK_N, IN_PARTS)),
        (load, ((latent, rope), pages, pages_strides, rings, bars, sizes, env, STAGES, BLOCK_N, HALF, IN_PAGES)),
    ], [4, 1], [240, 24])
