"""out[b,h,i,:] = sum_j exp(a_j) latent[b,j] / sum_j exp(a_j)    a_j = score(q_latent[b,h,i].latent[b,j] + q_rope[b,h,i].rope[b,j])

The kernel of `kernel.py` for Hopper, after FlashMLA (DeepSeek, 2025): 64 rows x 512 float32 sums are half of the registers, so
two warpgroups own 256 columns each. The first leads: it alone computes scores and weights, keeps its weights in registers, and
sends them, with the factor by which old sums shrink, to the second through shared memory. One warp loads latents by TMA
into a ring of STAGES tiles, once for both products and both warpgroups. The scores of a tile are begun before the sums of
the tile before it, and its weights are computed while those are running.
Shapes, parts and lse: as `kernel.py`. q_latent, q_rope, out: unit stride in the last dim; latent, rope: descriptors of
[B, S, .] or [PAGES, 64, .] in tiles of BLOCK_N x HALF, HALF = BLOCK_R / 2, and BLOCK_N x BLOCK_P.
Grid: (SPLITS * ceil(H * T / 64) * B,), fixed by shapes. Traffic and FLOPs: as `kernel.py`.

Barriers. A ring of latents has two per slot: `full` (1 arrival, by TMA) and `empty` (one of each warpgroup); messages have
`full` (by the leader) and `empty` (by the follower). Use n of a ring is slot n % SLOTS, in phase n // SLOTS % 2: who reads waits
for full at the phase, who writes for empty at the other, which a new barrier lets pass. `ready`: the right half of q is there.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..hooks import HAS_LO, HAS_SINK, sink
from ..hopper.softmax import join_sink, weigh
from ..hopper.tiles import hull, least, most, slot
from .warpgroups import (
    PAGE,
    ROWS,
    barriers,
    clean,
    fill_queries,
    flat,
    part_of,
    rows_of,
    store_half,
)


@gluon.jit
def load(descs, pages, pages_strides, rings, bars, sizes, env, STAGES: gl.constexpr, BLOCK_N: gl.constexpr,
         HALF: gl.constexpr, IN_PAGES: gl.constexpr):
    """The producer: tiles of latents, the last first."""
    d_latent, d_rope = descs
    left, right, rope = rings
    full, empty = bars
    b = gl.program_id(0) // ((sizes[0] * sizes[1] + ROWS - 1) // ROWS) // sizes[3]
    begin, last, first, count = part_of(sizes, env, BLOCK_N)
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


@gluon.jit
def scores(queries, rings, at, BLOCK_N: gl.constexpr):
    """s [64, N] = q_latent latentT + q_rope ropeT, begun but not awaited."""
    left, right, rope = rings
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    s = gl.zeros([64, BLOCK_N], gl.float32, layout)
    s = warpgroup_mma(queries[0], flat(left, at).permute([1, 0]), s, use_acc=False, is_async=True)
    s = warpgroup_mma(queries[2], flat(rope, at).permute([1, 0]), s, is_async=True)
    return warpgroup_mma(queries[1], flat(right, at).permute([1, 0]), s, is_async=True)


@gluon.jit
def send(messages, n, p, shrink, SLOTS: gl.constexpr):
    """Weights p [64, N] of the n-th tile, and the factor [64] for the sums before it, to the follower."""
    b_p, b_shrink, full, empty = messages
    at, phase = slot(n, SLOTS)
    mbarrier.wait(empty.index(at), phase ^ 1)
    b_p.index(at).store(p)
    b_shrink.index(at).store(shrink)
    fence_async_shared()
    mbarrier.arrive(full.index(at))


@gluon.jit
def lead(tensors, queries, rings, bars, ready, messages, sizes, env, to, R: gl.constexpr, P: gl.constexpr,
         STAGES: gl.constexpr, SLOTS: gl.constexpr, BLOCK_N: gl.constexpr, IN_PARTS: gl.constexpr):
    """Scores, weights, and the sums of the left columns."""
    q_latent, q_latent_strides, q_rope, q_rope_strides = tensors
    left = rings[0]
    full, empty = bars
    H, T, S, SPLITS = sizes
    HALF: gl.constexpr = left.shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    kind: gl.constexpr = left.dtype
    begin, last, first, count = part_of(sizes, env, BLOCK_N)
    top = first + (count - 1) * BLOCK_N
    b, part, h, i, m_row = rows_of(sizes, s_layout)
    at = (b, h, i)
    lo, hi = hull(b, h, i, S, env)
    hi = gl.minimum(hi, last)
    # tiles by distance from the last one: [1, upper) under the hull as mask, [upper, lower) not, [lower, count) again
    upper = gl.minimum(gl.maximum(count - gl.maximum(least(hi) - first, 0) // BLOCK_N, 1), count)
    lower = count
    if HAS_LO:
        lower = gl.maximum(count - (gl.maximum(most(lo) - first, 0) + BLOCK_N - 1) // BLOCK_N, upper)
    m = gl.full([64], float("-inf"), gl.float32, s_rows)
    l = gl.zeros([64], gl.float32, s_rows)
    acc = gl.zeros([64, HALF], gl.float32, o_layout)
    fill_queries(queries[0], q_latent, q_latent_strides, sizes, 0, R)
    fill_queries(queries[2], q_rope, q_rope_strides, sizes, 0, P)
    mbarrier.wait(ready, 0)

    mbarrier.wait(full.index(0), 0)
    s = warpgroup_mma_wait(0, [scores(queries, rings, 0, BLOCK_N)])
    clean(left, 0, top, begin, last)
    weights, m, l, shrink = weigh(s, m, l, top, lo, hi, at, env, BLOCK_N, True)
    for region in gl.static_range(3 if HAS_LO else 2):
        for t in range(1 if region == 0 else upper if region == 1 else lower,
                       upper if region == 0 else lower if region == 1 else count):
            p = weights.to(kind)
            send(messages, t - 1, p, shrink, SLOTS)
            k_at, phase = slot(t, STAGES)
            v_at = (t - 1) % STAGES
            mbarrier.wait(full.index(k_at), phase)
            s_next = scores(queries, rings, k_at, BLOCK_N)
            o_next = warpgroup_mma(gl.convert_layout(p, p_layout), flat(left, v_at), acc, is_async=True)
            s = warpgroup_mma_wait(1, [s_next])
            weights, m, l, shrink = weigh(s, m, l, top - t * BLOCK_N, lo, hi, at, env, BLOCK_N, region != 1)
            acc = warpgroup_mma_wait(0, [o_next])
            mbarrier.arrive(empty.index(v_at))
            acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
            if HAS_LO and region != 1:
                clean(left, k_at, top - t * BLOCK_N, begin, last)
    p = weights.to(kind)
    send(messages, count - 1, p, shrink, SLOTS)
    v_at = (count - 1) % STAGES
    acc = warpgroup_mma_wait(0, [warpgroup_mma(gl.convert_layout(p, p_layout), flat(left, v_at), acc, is_async=True)])

    if HAS_SINK:
        a = gl.max(sink(b, h, i, env) + gl.zeros([64, 1], gl.float32, s_layout), 1)
        m, l, shrink = join_sink(m, l, gl.where(part == 0, a, float("-inf")))
        acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
        scale = shrink / gl.where(l == 0.0, 1.0, l)
    else:
        scale = 1.0 / gl.where(l == 0.0, 1.0, l)
    send(messages, count, p, scale, SLOTS)
    if HAS_SINK:
        scale = 1.0 / gl.where(l == 0.0, 1.0, l)
    store_half(to, acc * gl.convert_layout(scale, o_rows)[:, None], sizes, 0, R, IN_PARTS)
    if IN_PARTS:
        o_row = gl.expand_dims(m + gl.log2(l), 1)
        gl.store(to[2] + ((part.to(gl.int64) * to[3] + b) * H + h) * T + i, o_row, mask=m_row)


@gluon.jit
def follow(tensors, queries, rings, bars, ready, messages, sizes, env, to, R: gl.constexpr, P: gl.constexpr,
           STAGES: gl.constexpr, SLOTS: gl.constexpr, BLOCK_N: gl.constexpr, IN_PARTS: gl.constexpr):
    """The sums of the right columns, by the leader's weights."""
    b_p, b_shrink, p_full, p_empty = messages
    right = rings[1]
    full, empty = bars
    HALF: gl.constexpr = right.shape[3]
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    fill_queries(queries[1], tensors[0], tensors[1], sizes, HALF, R)
    mbarrier.arrive(ready)
    begin, last, first, count = part_of(sizes, env, BLOCK_N)
    acc = gl.zeros([64, HALF], gl.float32, o_layout)
    for t in range(count):
        p_at, p_phase = slot(t, SLOTS)
        v_at, v_phase = slot(t, STAGES)
        mbarrier.wait(full.index(v_at), v_phase)
        clean(right, v_at, first + (count - 1 - t) * BLOCK_N, begin, last)
        mbarrier.wait(p_full.index(p_at), p_phase)
        acc = acc * b_shrink.index(p_at).load(o_rows)[:, None]
        acc = warpgroup_mma_wait(0, [warpgroup_mma(b_p.index(p_at), flat(right, v_at), acc, is_async=True)])
        mbarrier.arrive(p_empty.index(p_at))
        mbarrier.arrive(empty.index(v_at))
    p_at, p_phase = slot(count, SLOTS)
    mbarrier.wait(p_full.index(p_at), p_phase)
    store_half(to, acc * b_shrink.index(p_at).load(o_rows)[:, None], sizes, HALF, R, IN_PARTS)


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "SPLITS"])
def mla_hopper(q_latent, q_latent_strides, q_rope, q_rope_strides, latent, rope, pages, pages_strides, out, out_strides,
               lse, B, H, T, S, SPLITS,
               operands, R: gl.constexpr, P: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr,
               STAGES: gl.constexpr, SLOTS: gl.constexpr, IN_PAGES: gl.constexpr, IN_PARTS: gl.constexpr):
    env = operands
    kind: gl.constexpr = latent.dtype
    half_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, HALF], kind)
    rope_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, BLOCK_P], kind)
    p_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, BLOCK_N], kind)
    queries = (
        gl.allocate_shared_memory(kind, [64, HALF], half_layout), gl.allocate_shared_memory(kind, [64, HALF], half_layout),
        gl.allocate_shared_memory(kind, [64, BLOCK_P], rope_layout),
    )
    rings = (
        gl.allocate_shared_memory(kind, [STAGES, 1, BLOCK_N, HALF], latent.layout),
        gl.allocate_shared_memory(kind, [STAGES, 1, BLOCK_N, HALF], latent.layout),
        gl.allocate_shared_memory(kind, [STAGES, 1, BLOCK_N, BLOCK_P], rope.layout),
    )
    bars = barriers(STAGES, 1, 2)
    p_bars = barriers(SLOTS, 1, 1)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    b_p = gl.allocate_shared_memory(kind, [SLOTS, 64, BLOCK_N], p_layout)
    b_shrink = gl.allocate_shared_memory(gl.float32, [SLOTS, 64], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    messages = (b_p, b_shrink, p_bars[0], p_bars[1])
    fence_async_shared()
    sizes = (H, T, S, SPLITS)
    tensors = (q_latent, q_latent_strides, q_rope, q_rope_strides)
    to = (out, out_strides, lse, B)
    gl.warp_specialize([
        (lead, (tensors, queries, rings, bars, ready, messages, sizes, env, to, R, P, STAGES, SLOTS, BLOCK_N, IN_PARTS)),
        (follow, (tensors, queries, rings, bars, ready, messages, sizes, env, to, R, P, STAGES, SLOTS, BLOCK_N, IN_PARTS)),
        (load, ((latent, rope), pages, pages_strides, rings, bars, sizes, env, STAGES, BLOCK_N, HALF, IN_PAGES)),
    ], [4, 1], [240, 24])
