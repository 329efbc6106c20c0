"""k[n, :] = packed[page, g, row, :] * scales[page, g, row]        what the Hopper decode kernel multiplies, of quantised pages

Takes the places of functions of `pages.py` and `hopper.py`. packed: descriptors of the stores [P, G, PAGE, .], int8 or e4m3,
and of their scales [P, G, 1, PAGE] float32, in tiles of BLOCK_N keys. They come by TMA into rings of STAGES; two warpgroups,
one for K and one for V, turn them into numbers of q's dtype in rings of WIDE tiles, which `consumer.py` reads, and sees no
pages. A number is rounded once, as `pool/formats.py` rounds it. Rows: 64 at most, of one warpgroup.
Traffic: D + DV + 8 bytes a key; shared memory is written 3 (D + DV) and read as much.

Barriers: of the packed rings `full` (1 arrival, by TMA) and `empty` (1, of who unpacks); of the wide ones `full` (1, of who
unpacks) and `empty` (1, of who multiplies).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from ..hopper.rings import flat, ring, space
from ..hopper.tiles import slot, uniform
from ..pages import FORMAT
from .balance import divide, keys_of_part, row_tiles
from .consumer import consume
from .early import asked_early
from .hopper import positions
from .pages import load

WIDE = gl.constexpr(2)


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
def above_2_23(x):
    """The bits of the float32 2^23 + 128 + x, of int8: a byte moved, where a conversion takes four times as long."""
    return gl.inline_asm_elementwise("""{
        .reg .b32 t;
        xor.b32 t, $4, 0x80808080;
        prmt.b32 $0, t, 0x4B000000, 0x7440;
        prmt.b32 $1, t, 0x4B000000, 0x7441;
        prmt.b32 $2, t, 0x4B000000, 0x7442;
        prmt.b32 $3, t, 0x4B000000, 0x7443;
        }""", "=r,=r,=r,=r,r", [x], dtype=gl.int32, is_pure=True, pack=4)


@gluon.jit
def numbers(x):
    """What x says in FORMAT, before its scale, in float32."""
    if FORMAT == "fp8":
        return x.to(gl.float8e4nv, bitcast=True).to(gl.float32)
    else:
        return above_2_23(x).to(gl.float32, bitcast=True) - 8388736.0


@gluon.jit
def unpack(packed, packed_bars, wide, bars, sizes, env, GROUP: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
           BLOCK_N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The tiles of K or of V of its part, as they come."""
    B, H, T, S, FEW = sizes
    W: gl.constexpr = wide.shape[4]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // W, W // 8], [4, 1], [1, 0])
    items = row_tiles(T, GROUP, BLOCK_M, BLOCK_T) * (H // GROUP)
    part = gl.program_id(0)
    line = divide(B, T, S, items, FEW, env, BLOCK_N, BLOCK_B, BLOCK_T)
    passed_over = asked_early(part, B, items, FEW) & (line[4] == 0)
    count = uniform(keys_of_part(line, part, items, B, FEW)[2] + passed_over.to(gl.int32))
    for use in range(count):
        at, phase = slot(use, STAGES)
        mbarrier.wait(packed_bars[0].index(at), phase)
        x = numbers(flat(packed[0], at).load(layout))
        scale = packed[1].index(at)._reinterpret(gl.float32, [BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        x = x * scale.load(gl.SliceLayout(1, layout))[:, None]
        mbarrier.arrive(packed_bars[1].index(at))
        to, phase = slot(use, WIDE)
        mbarrier.wait(bars[1].index(to), phase ^ 1)
        flat(wide, to).store(x.to(wide.dtype))
        fence_async_shared()
        mbarrier.arrive(bars[0].index(to))


@gluon.jit
def packed_places(descs, STAGES: gl.constexpr):
    """Rings of packed tiles and of their scales."""
    scales = gl.allocate_shared_memory(gl.float32, [STAGES, 1, 1, 1, descs[1].block_type.shape[3]], descs[1].layout)
    return space(descs[0], STAGES), scales


@gluon.jit
def wide_places(desc, dtype: gl.constexpr):
    """A ring of tiles of numbers."""
    ROWS: gl.constexpr = desc.block_type.shape[2]
    COLUMNS: gl.constexpr = desc.block_type.shape[3]
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, 1, ROWS, COLUMNS], dtype)
    return gl.allocate_shared_memory(dtype, [WIDE, 1, 1, ROWS, COLUMNS], layout)


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "FEW"])
def decode_hopper(q, q_strides, k, k_scales, v, v_scales, table, table_strides, out, out_strides, workspace, counters, B, H, T,
                  S, FEW, operands, D: gl.constexpr, DV: gl.constexpr, GROUP: gl.constexpr, BLOCK_M: gl.constexpr,
                  BLOCK_N: gl.constexpr, STAGES: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr,
                  BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    env = operands
    kind: gl.constexpr = q.dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, k.block_type.shape[3]], kind)
    b_q = gl.allocate_shared_memory(kind, [1, 64, k.block_type.shape[3]], layout)
    standing = positions()
    packed = (packed_places((k, k_scales), STAGES), packed_places((v, v_scales), STAGES), standing)
    wide = (wide_places(k, kind), wide_places(v, kind), standing)
    packed_bars = (ring(STAGES, 1), ring(STAGES, 1))
    bars = (ring(WIDE, 1), ring(WIDE, 1))
    fence_async_shared()
    sizes = (B, H, T, S, FEW)
    tensors = (q, q_strides, out, out_strides, workspace, counters)
    gl.warp_specialize([
        (consume, (0, tensors, b_q, wide, bars, sizes, env, D, DV, GROUP, WIDE, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T, BLOCK_R,
                   ROWS)),
        (unpack, (packed[0], packed_bars[0], wide[0], bars[0], sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T)),
        (unpack, (packed[1], packed_bars[1], wide[1], bars[1], sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T)),
        (load, ((k, k_scales), (v, v_scales), (table, table_strides), packed, packed_bars, sizes, env, GROUP, STAGES, BLOCK_M,
                BLOCK_N, BLOCK_B, BLOCK_T)),
    ], [4, 4, 1], [112, 112, 56])
