"""out[b,h,i,:] = sum_j e^a_j latent[b,j] / sum_j e^a_j   a_j = score(q_latent[b,h,i].latent[b,j] + q_rope[b,h,i].rope[b,j])

The kernel of `kernel.py` for Hopper and at most BLOCK_M = 16 or 32 rows: keys are the rows of the products (`narrow.py`). One
warpgroup multiplies, one warp loads by TMA.
Shapes, parts, cuts, grid, barriers: as `hopper_exchange.py`, with boxes of BLOCK_M / BLOCK_H x BLOCK_H queries, one of them an
item. Traffic: as `kernel.py`. FLOPs: as there, of BLOCK_M rows.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared
from triton.language.extra.cuda import gdc_wait

from .loader import load
from .memory import barriers, pieces, room_for_queries
from .narrow import attend
from .rows import FIELDS


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "SPLITS"])
def mla_narrow(q_latent, q_rope, latent, rope, pages, pages_strides, out, workspace, lse, cuts, B, H, T, S, SPLITS,
               operands, R: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr,
               BLOCK_P: gl.constexpr, BLOCK_H: gl.constexpr, IN_PAGES: gl.constexpr, BLOCK_B: gl.constexpr,
               BLOCK_T: gl.constexpr):
    env = operands
    kind: gl.constexpr = latent.dtype
    rings = pieces(kind, BLOCK_N, HALF, BLOCK_P)
    queries = room_for_queries(kind, HALF, BLOCK_P, BLOCK_M, BLOCK_H)
    b_p = gl.allocate_shared_memory(
        kind, [BLOCK_M, BLOCK_N], gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_N], kind))
    message = gl.allocate_shared_memory(gl.int32, [FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    bars = barriers(1, 1)
    fence_async_shared()
    gdc_wait()                                                      # the block may be here before the kernel ahead has ended
    sizes = (B, H, T, S, S, SPLITS, SPLITS, SPLITS)
    descs = (latent, rope, q_latent, q_rope)
    to = (out, workspace, lse, cuts)
    gl.warp_specialize([
        (attend, (queries, rings, bars, b_p, message, sizes, env, to, BLOCK_H)),
        (load, (descs, pages, pages_strides, queries, rings, bars, message, sizes, env, cuts, IN_PAGES, BLOCK_H, BLOCK_B,
                BLOCK_T)),
    ], [1], [120])
