"""listed[b, g] = the pages of sequence b whose bounds promise the queries of KV head g most, `kept` of them, in ascending order

    promise(n) = max over rows of score(relu(q) . bounds[page n, g, 0] + relu(-q) . bounds[page n, g, 1])

which no q . k of the page exceeds (`pool/bounds.py`). The first page and the last ones are always among them (`kept.py`); of
pages that promise the same, to 22 bits, the later ones.

Shapes: q [B, H, T, D], any strides; bounds [P, G, 2, D] contiguous; pages [B, N], a negative one counts from the last; scores
[B * G, BLOCK_C] float32; listed [B, G, N] int64, page << 32 | number; counters [B * G] int32, 0 before and after.
Grid: (B * G * ceil(N / CHUNK),): a program writes the promises of CHUNK pages; the last of an item to come finds the cut and
lists what reaches it. The pages of a sequence are those of its hull, read from its lengths.
With EARLY a kernel that is launched to begin early may do so before this one has ended.
Traffic: 4 D bytes a page and head in 16 bits, 1 / PAGE of what its keys and values are; 8 N a list.
"""

import triton
import triton.language as tl

from ..hooks import score
from ..packed import load_packed
from ..pages import PAGE
from ..scan import dot, hull, tile_range
from .kept import pages_kept, pages_of, recent


@triton.jit
def promise(q, q_strides, p_bounds, m_n, number, b, g, T, S, env, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr):
    """The greatest promise to any row of pages `number` [CHUNK], whose bounds lie at p_bounds [CHUNK], where m_n."""
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_d = m_n[:, None] & (o_d < D)
    b_most = tl.load(p_bounds[:, None] + o_d, mask=m_d, other=0.0)                             # [CHUNK, D]
    b_least = tl.load(p_bounds[:, None] + (D + o_d), mask=m_d, other=0.0)
    best = tl.full([CHUNK], float("-inf"), tl.float32)
    j0 = (number * PAGE)[None, :]
    for r0 in tl.range(0, GROUP * T, BLOCK_M, num_stages=1):
        r = tl.minimum(r0 + tl.arange(0, BLOCK_M), GROUP * T - 1)[:, None]                     # [M, 1]
        h = g * GROUP + r // T
        i = r % T
        b_q = load_packed(q, q_strides, b.to(tl.int64), h, i, D, BLOCK_D).to(tl.float32)       # [M, D]
        s = tl.zeros([BLOCK_M, CHUNK], tl.float32)
        s = dot(tl.maximum(b_q, 0.0).to(b_most.dtype), tl.trans(b_most), s, UPCAST)
        s = dot(tl.maximum(-b_q, 0.0).to(b_most.dtype), tl.trans(b_least), s, UPCAST)          # [M, CHUNK]
        a = score(s, b, h, i, j0 + PAGE // 2, env)
        lo, hi = hull(b, h, i, S, env, BLOCK_M)
        a = tl.where((j0 < hi) & (j0 + PAGE > lo), tl.where(a == a, a, float("inf")), float("-inf"))
        best = tl.maximum(best, tl.max(a, 0))
    return best


@triton.jit
def ordered(s):
    """Whole numbers in [0, 2^30) that are ordered as s [C] is, to 22 bits."""
    bits = s.to(tl.int32, bitcast=True)
    magnitude = (bits & 2147483647) >> 2
    return tl.where(bits < 0, 536870911 - magnitude, 536870912 + magnitude)


@triton.jit
def cut_of(key, candidate, n, k, WIDE: tl.constexpr):
    """A number that k of the n candidates [C] reach, or, where some are equal, the greatest that k or more do; how many do.

    Thirds of what is left are counted together, from the least candidate to the greatest, until so many reach one as are asked
    for: in most lists long before its last bit is known.
    """
    low = tl.min(tl.where(candidate, key, 1073741824))
    high = tl.max(tl.where(candidate, key, -1)) + 1
    reached = n
    while (reached > k) & (high - low > 1):
        third = (high - low + 2) // 3
        one = low + third
        two = tl.minimum(one + third, high)
        if WIDE:
            counts = tl.sum((key >= one).to(tl.int64) + ((key >= two).to(tl.int64) << 32))
            of_two = (counts >> 32).to(tl.int32)
        else:
            counts = tl.sum((key >= one).to(tl.int32) + ((key >= two).to(tl.int32) << 16))
            of_two = counts >> 16
        of_one = (counts & (4294967295 if WIDE else 65535)).to(tl.int32)
        if of_two >= k:
            low, reached = two, of_two
        elif of_one >= k:
            low, high, reached = one, two, of_one
        else:
            high = one
    return low, reached


@triton.jit
def list_pages(p_pages, s_page, p_scores, p_listed, first, n, P, T, env, BLOCK_C: tl.constexpr):
    """Of one item, whose pages are the n from `first` on and whose scores are all there."""
    o_c = tl.arange(0, BLOCK_C)
    m_c = (o_c >= first) & (o_c < first + n)
    # Past the first-level cache: other processors wrote them in this launch. All of them, for masked reads are not wide.
    b_s = tl.load(p_scores + o_c, cache_modifier=".cg")                                        # [C]
    page = tl.load(p_pages + o_c.to(tl.int64) * s_page, mask=m_c, other=0)
    always = m_c & ((o_c == first) | (o_c >= first + n - recent(T)))
    some = tl.minimum(n, 1 + recent(T))
    candidate = m_c & (always == 0)
    key = tl.where(candidate, ordered(b_s), -1)
    k = pages_kept(n, T, env) - some
    cut, reached = cut_of(key, candidate, n - some, k, BLOCK_C > 32767)
    stays = (always | (key >= cut)).to(tl.int32)
    if reached > k:                                                                            # the later of equal ones
        tie = (key == cut).to(tl.int32)
        later = tl.sum(tie) - tl.cumsum(tie)
        stays = (always | (key > cut) | ((tie > 0) & (later < k - reached + tl.sum(tie)))).to(tl.int32)
    entry = (tl.where(page < 0, page + P, page).to(tl.int64) << 32) | o_c.to(tl.int64)
    tl.store(p_listed + tl.cumsum(stays) - stays, entry, mask=stays > 0)


@triton.jit(do_not_specialize=["H", "T", "S", "N", "P"])
def bounded(q, q_strides, bounds, pages, pages_strides, scores, listed, counters, H, T, S, N, P,
            operands, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
            BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, UPCAST: tl.constexpr, EARLY: tl.constexpr):
    env = operands
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()                       # who attends may take its place, and waits for the list
    parts = tl.cdiv(N, CHUNK)
    part = tl.program_id(0) % parts
    item = tl.program_id(0) // parts
    b = item // (H // GROUP)
    g = item % (H // GROUP)
    number = part * CHUNK + tl.arange(0, CHUNK)                                                # [CHUNK]
    p_pages = pages + b.to(tl.int64) * pages_strides[0]
    page = tl.load(p_pages + number.to(tl.int64) * pages_strides[1], mask=number < N, other=0).to(tl.int64)
    i = tl.minimum(tl.arange(0, BLOCK_T), T - 1)[:, None]
    lo, hi = hull(b, 0, i, S, env, BLOCK_T)
    begin, end = tile_range(lo, hi, S)
    first, n = pages_of(begin, end)
    if (part >= first // CHUNK) & (part * CHUNK < first + n):
        p_scores = scores + item.to(tl.int64) * BLOCK_C
        p_bounds = bounds + (tl.where(page < 0, page + P, page) * (H // GROUP) + g) * (2 * D)
        m_n = (number >= first) & (number < first + n)
        s = promise(q, q_strides, p_bounds, m_n, number, b, g, T, S, env, D, GROUP, BLOCK_M, BLOCK_D, CHUNK, UPCAST)
        tl.store(p_scores + number, s, mask=m_n)
        tl.debug_barrier()                                          # all threads have stored before one of them counts
        live = tl.cdiv(first + n, CHUNK) - first // CHUNK
        if tl.atomic_add(counters + item, 1, sem="acq_rel") == live - 1:
            tl.store(counters + item, 0)
            list_pages(p_pages, pages_strides[1], p_scores, listed + item.to(tl.int64) * N, first, n, P, T, env, BLOCK_C)
