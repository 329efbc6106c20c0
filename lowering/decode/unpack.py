"""k[n, :] = codes[n, :] * scales[n]        what the Hopper decode kernel multiplies of quantised pages, 64 rows at most

Two warpgroups, one for K and one for V, turn the tiles of the packed rings (`packed.py`) into numbers of q's dtype in rings of
WIDE tiles, which `consumer.py` reads, and sees no pages. A number is rounded once, as `pool/formats.py` rounds it.
Traffic: D + DV + 8 bytes a key; shared memory is written 3 (D + DV) and read as much.

Barriers: of the wide rings `full` (1 arrival, of who unpacks) and `empty` (1, of who multiplies).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from ..hopper.rings import flat, ring
from ..hopper.tiles import slot, uniform
from ..pages import FORMAT
from .balance import divide, keys_of_part, row_tiles
from .consumer import consume
from .early import asked_early
from .pages import load

WIDE = gl.constexpr(2)


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
def wide_places(desc, dtype: gl.constexpr):
    """A ring of tiles of numbers."""
    ROWS: gl.constexpr = desc.block_type.shape[2]
    COLUMNS: gl.constexpr = desc.block_type.shape[3]
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, 1, ROWS, COLUMNS], dtype)
    return gl.allocate_shared_memory(dtype, [WIDE, 1, 1, ROWS, COLUMNS], layout)


@gluon.jit
def attend_unpacked(k, v, table, tensors, packed, packed_bars, sizes, env, D: gl.constexpr, DV: gl.constexpr,
                    GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
                    BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    """The roles: a warpgroup that multiplies, two that unpack, a warp that loads."""
    kind: gl.constexpr = tensors[0].dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, k[0].block_type.shape[3]], kind)
    b_q = gl.allocate_shared_memory(kind, [1, 64, k[0].block_type.shape[3]], layout)
    wide = (wide_places(k[0], kind), wide_places(v[0], kind), packed[2])
    bars = (ring(WIDE, 1), ring(WIDE, 1))
    fence_async_shared()
    gl.warp_specialize([
        (consume, (0, tensors, b_q, wide, bars, sizes, env, D, DV, GROUP, WIDE, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T, BLOCK_R,
                   ROWS)),
        (unpack, (packed[0], packed_bars[0], wide[0], bars[0], sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T)),
        (unpack, (packed[1], packed_bars[1], wide[1], bars[1], sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T)),
        (load, (k, v, table, packed, packed_bars, sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T)),
    ], [4, 4, 1], [112, 112, 56])
