"""listed[program] = the tiles with the greatest scores: so many, or so many that their scores are a share of the sum; or those
whose score is no less than a value

The cut is found bit by bit: scores are not negative, and the bits of such floats are ordered as they are. Tiles at the cut
stay, all of them. They are listed from the last backwards.

Shapes: scores [P, CAPACITY] float32, -1 where there is none; listed [P, CAPACITY]; counts [P] int32.
Grid: (P,). Traffic: 4 CAPACITY bytes a program and the list.
"""

import triton
import triton.language as tl


@triton.jit
def cut_of(b_s, value, MASS: tl.constexpr):
    """The bits of the greatest score [C] that enough of them reach."""
    there = b_s >= 0
    weight = tl.where(there, b_s if MASS else 1.0, 0.0)
    wanted = value * tl.sum(weight)
    bits = b_s.to(tl.int32, bitcast=True)
    cut = tl.zeros([], tl.int32)
    for n in tl.static_range(0, 31):
        higher = cut | (1 << (30 - n))
        cut = tl.where(tl.sum(tl.where(there & (bits >= higher), weight, 0.0)) >= wanted, higher, cut)
    return cut


@triton.jit(do_not_specialize=["CAPACITY"])
def rank(scores, listed, counts, value, CAPACITY, BLOCK_C: tl.constexpr, MEASURE: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    tile = CAPACITY - 1 - tl.arange(0, BLOCK_C)                                                # [C]
    b_s = tl.load(scores + pid * CAPACITY + tile, mask=tile >= 0, other=-1.0)
    there = b_s >= 0
    if MEASURE == "share":
        stays = (there & (b_s >= value)).to(tl.int32)
    else:
        cut = cut_of(b_s, value, MEASURE == "mass")
        stays = (there & ((b_s.to(tl.int32, bitcast=True) >= cut) | (value >= 1))).to(tl.int32)
    place = pid * CAPACITY + tl.cumsum(stays) - stays
    tl.store(listed + place, tile.to(listed.dtype.element_ty), mask=stays > 0)
    tl.store(counts + pid, tl.sum(stays))
