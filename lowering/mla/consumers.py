"""The two warpgroups that multiply: one leads, with scores, weights and the left columns; one follows, with the right columns

Products in flight in the leader, while the follower sums the tile that the leader sent:

    scores t + 1, values t          both begun
    wait for all but one            scores t + 1 are there
    weights t + 1                   values t still running
    wait for all                    sums are there; this warpgroup is done with the slot of tile t
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..hooks import HAS_LO, HAS_SINK, sink
from ..hopper.softmax import join_sink
from ..hopper.tiles import hull, least, most, slot
from .warpgroups import CHOSEN, clean, fill_queries, flat, part_of, rows_of, store_half, token_at, weigh


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
def visible(source, sizes, place, at, lo, hi, last):
    """Keys [1, N] of positions `place` [N], and which of them each row sees [64, N]."""
    if CHOSEN:
        b, _h, i = at
        token = token_at(source[0], source[1], b, gl.max(gl.max(i, 1), 0), place, last)
        j = gl.where((token >= 0) & (token < sizes[2]), token, -1).to(gl.int32)[None, :]
        seen = (j >= 0) & (j < hi)
    else:
        j = place[None, :]
        seen = j < hi
    if HAS_LO:
        seen = seen & (j >= lo)
    return j, seen


@gluon.jit
def lead(tensors, source, queries, rings, bars, ready, messages, sizes, env, to, R: gl.constexpr, P: gl.constexpr,
         STAGES: gl.constexpr, SLOTS: gl.constexpr, BLOCK_N: gl.constexpr, IN_PARTS: gl.constexpr):
    """Scores, weights, and the sums of the left columns."""
    q_latent, q_latent_strides, q_rope, q_rope_strides = tensors
    left = rings[0]
    full, empty = bars
    H, T, S, _K, _SPLITS = sizes
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
    if not CHOSEN:
        hi = gl.minimum(hi, last)
    o_n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, s_layout))
    # tiles by distance from the last one: [1, upper) under the hull as mask, [upper, lower) not, [lower, count) again
    upper = count
    if not CHOSEN:
        upper = gl.minimum(gl.maximum(count - gl.maximum(least(hi) - first, 0) // BLOCK_N, 1), count)
    lower = count
    if HAS_LO and not CHOSEN:
        lower = gl.maximum(count - (gl.maximum(most(lo) - first, 0) + BLOCK_N - 1) // BLOCK_N, upper)
    m = gl.full([64], float("-inf"), gl.float32, s_rows)
    l = gl.zeros([64], gl.float32, s_rows)
    acc = gl.zeros([64, HALF], gl.float32, o_layout)
    fill_queries(queries[0], q_latent, q_latent_strides, sizes, 0, R)
    fill_queries(queries[2], q_rope, q_rope_strides, sizes, 0, P)
    mbarrier.wait(ready, 0)

    j, seen = visible(source, sizes, top + o_n, at, lo, hi, last)
    mbarrier.wait(full.index(0), 0)
    s = warpgroup_mma_wait(0, [scores(queries, rings, 0, BLOCK_N)])
    if not CHOSEN:
        clean(left, 0, top, begin, last)
    weights, m, l, shrink = weigh(s, m, l, j, seen, at, env, True)
    for region in gl.static_range(1 if CHOSEN else 3 if HAS_LO else 2):
        for t in range(1 if region == 0 else upper if region == 1 else lower,
                       upper if region == 0 else lower if region == 1 else count):
            p = weights.to(kind)
            j, seen = visible(source, sizes, top - t * BLOCK_N + o_n, at, lo, hi, last)
            send(messages, t - 1, p, shrink, SLOTS)
            k_at, phase = slot(t, STAGES)
            v_at = (t - 1) % STAGES
            mbarrier.wait(full.index(k_at), phase)
            s_next = scores(queries, rings, k_at, BLOCK_N)
            o_next = warpgroup_mma(gl.convert_layout(p, p_layout), flat(left, v_at), acc, is_async=True)
            s = warpgroup_mma_wait(1, [s_next])
            weights, m, l, shrink = weigh(s, m, l, j, seen, at, env, region != 1)
            acc = warpgroup_mma_wait(0, [o_next])
            mbarrier.arrive(empty.index(v_at))
            acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
            if HAS_LO and region != 1 and not CHOSEN:
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
def follow(tensors, source, queries, rings, bars, ready, messages, sizes, env, to, R: gl.constexpr, P: gl.constexpr,
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
        if not CHOSEN:
            clean(right, v_at, first + (count - 1 - t) * BLOCK_N, begin, last)
        mbarrier.wait(p_full.index(p_at), p_phase)
        acc = acc * b_shrink.index(p_at).load(o_rows)[:, None]
        acc = warpgroup_mma_wait(0, [warpgroup_mma(b_p.index(p_at), flat(right, v_at), acc, is_async=True)])
        mbarrier.arrive(p_empty.index(p_at))
        mbarrier.arrive(empty.index(v_at))
    p_at, p_phase = slot(count, SLOTS)
    mbarrier.wait(p_full.index(p_at), p_phase)
    store_half(to, acc * b_shrink.index(p_at).load(o_rows)[:, None], sizes, HALF, R, IN_PARTS)
