"""k[n, :] = packed[page, g, row, :] * scales[page, g, row]        the Hopper decode kernel over quantised pages

Takes the places of functions of `pages.py` and `hopper.py`. packed: descriptors of the stores [P, G, PAGE, .], int8 or e4m3,
and of their scales [P, G, 1, PAGE] float32, in tiles of BLOCK_N keys. They come by TMA into rings of STAGES. For 16 rows at
most they become numbers in the registers that multiply (`few.py`), for 64 in shared memory (`unpack.py`).

Barriers: of the rings `full` (1 arrival, by TMA) and `empty` (1, of who reads the tile).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ..hopper.rings import ring, space
from ..hopper.tiles import slot
from .early import await_others
from .few import attend_in_registers
from .few_join import FEW_ROWS
from .hopper import positions
from .unpack import attend_unpacked


@gluon.jit
def load_packed_tile(descs, rings, bars, use, page, head, row, STAGES: gl.constexpr):
    """Rows row .. row + N of a page, and their scales, into a slot of the packed rings, once what it held was read."""
    at, phase = slot(use, STAGES)
    mbarrier.wait(bars[1].index(at), phase ^ 1)
    bar = bars[0].index(at)
    mbarrier.expect(bar, descs[0].block_type.nbytes + descs[1].block_type.nbytes)
    tma.async_copy_global_to_shared(descs[0], [page, head, row, 0], bar, rings[0].index(at))
    tma.async_copy_global_to_shared(descs[1], [page, head, 0, row], bar, rings[1].index(at))


@gluon.jit
def pages_held(k):
    """How many pages there are."""
    return k[0].shape[0]


@gluon.jit
def load_tiles(k, v, rings, bars, use, page, head, row, STAGES: gl.constexpr):
    """K and V of the keys row .. row + BLOCK_N of a page."""
    load_packed_tile(k, rings[0], bars[0], use, page, head, row, STAGES)
    load_packed_tile(v, rings[1], bars[1], use, page, head, row, STAGES)


@gluon.jit
def packed_places(descs, STAGES: gl.constexpr):
    """Rings of packed tiles and of their scales."""
    scales = gl.allocate_shared_memory(gl.float32, [STAGES, 1, 1, 1, descs[1].block_type.shape[3]], descs[1].layout)
    return space(descs[0], STAGES), scales


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "FEW"])
def decode_hopper(q, q_strides, k, k_scales, v, v_scales, table, table_strides, out, out_strides, workspace, counters, B, H, T,
                  S, FEW, operands, D: gl.constexpr, DV: gl.constexpr, GROUP: gl.constexpr, BLOCK_M: gl.constexpr,
                  BLOCK_N: gl.constexpr, STAGES: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr,
                  BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    env = operands
    packed = (packed_places((k, k_scales), STAGES), packed_places((v, v_scales), STAGES), positions())
    bars = (ring(STAGES, 1), ring(STAGES, 1))
    await_others()
    sizes = (B, H, T, S, FEW)
    tensors = (q, q_strides, out, out_strides, workspace, counters)
    boxes = ((k, k_scales), (v, v_scales), (table, table_strides))
    if BLOCK_M == FEW_ROWS:
        attend_in_registers(*boxes, tensors, packed, bars, sizes, env, D, DV, GROUP, BLOCK_M, BLOCK_N, STAGES, BLOCK_B, BLOCK_T,
                            BLOCK_R, ROWS)
    else:
        attend_unpacked(*boxes, tensors, packed, bars, sizes, env, D, DV, GROUP, BLOCK_M, BLOCK_N, STAGES, BLOCK_B, BLOCK_T,
                        BLOCK_R, ROWS)
