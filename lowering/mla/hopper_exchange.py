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

from .exchange import even, odd
from .loader import load
from .memory import common, pieces


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
