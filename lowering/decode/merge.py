"""out = sum_p 2^(lse_p - LSE) parts_p,   LSE = m + log2 sum_p 2^(lse_p - m),   m = max_p lse_p

Exact: any division of the keys into parts gives the same answer. A row that no part saw is 0. Parts are joined in the
order of their keys, whichever program comes last: the same bits every time.
Workspace: parts [SLOTS, BLOCK_M, DV], each normalised, then lse [SLOTS, BLOCK_M] in units of log2, -inf where the part saw
no key; float32. SLOTS = PER * programs: a program writes at most two parts of a balanced line, the end of an item that an
earlier program began (slot 2w) and the beginning of one (2w + 1); one of its own else.
"""

import triton
import triton.language as tl

CHUNK_ELEMENTS = tl.constexpr(8192)


@triton.jit
def slot_of(program, part, PER: tl.constexpr):
    """Where `program` keeps its part: `part` is counted from the beginning of the item."""
    return (program * PER + tl.where(part == 0, PER - 1, 0)).to(tl.int64)


@triton.jit
def store_rows(out, out_strides, x, b64, h, i, mask, DV: tl.constexpr):
    """out[b, h, i, :] = x [M, BLOCK_DV] for rows h, i [M, 1] where mask [M, 1]."""
    o_d = tl.arange(0, x.shape[1])[None, :]
    p = out + b64 * out_strides[0] + h.to(tl.int64) * out_strides[1] + i.to(tl.int64) * out_strides[2]
    tl.store(p + o_d.to(tl.int64) * out_strides[3], x.to(out.dtype.element_ty), mask=mask & (o_d < DV))


@triton.jit
def store_part(workspace, slot, x, lse, mask, DV: tl.constexpr, PER: tl.constexpr):
    """x [M, BLOCK_DV] and lse [M] into a slot, where mask [M, 1]."""
    M: tl.constexpr = x.shape[0]
    o_d = tl.arange(0, x.shape[1])[None, :]
    at = slot * M + tl.arange(0, M)[:, None]                                                 # [M, 1]
    tl.store(workspace + at * DV + o_d, x, mask=mask & (o_d < DV))
    p_lse = workspace + tl.num_programs(0).to(tl.int64) * (PER * M * DV)
    tl.store(p_lse + at, tl.reshape(lse, [M, 1]), mask=mask)


@triton.jit
def merge(workspace, holder, parts, r0, rows, DV: tl.constexpr, BLOCK_DV: tl.constexpr, M: tl.constexpr, R: tl.constexpr,
          PER: tl.constexpr):
    """Rows r0 .. r0 + R of an item of `rows` rows, from the parts of programs holder, holder + 1, ...: [R, BLOCK_DV]."""
    CHUNK: tl.constexpr = 16 if 16 * R * BLOCK_DV <= CHUNK_ELEMENTS else CHUNK_ELEMENTS // (R * BLOCK_DV)
    o_r = (r0 + tl.arange(0, R))[None, :]
    o_d = tl.arange(0, BLOCK_DV)[None, None, :]
    p_lse = workspace + tl.num_programs(0).to(tl.int64) * (PER * M * DV)
    acc = tl.zeros([R, BLOCK_DV], tl.float32)
    m = tl.full([R], float("-inf"), tl.float32)
    total = tl.zeros([R], tl.float32)
    for p0 in tl.range(0, parts, CHUNK, num_stages=1):
        p = p0 + tl.arange(0, CHUNK)[:, None]
        m_p = (p < parts) & (o_r < rows)                                                     # [CHUNK, R]
        at = slot_of(holder + p, p, PER) * M + o_r                                           # [CHUNK, R]
        # Past the first-level cache: another processor wrote them in this launch.
        b_lse = tl.load(p_lse + at, mask=m_p, other=float("-inf"), cache_modifier=".cg")
        b_part = tl.load(workspace + at[:, :, None] * DV + o_d, mask=m_p[:, :, None] & (o_d < DV), other=0.0,
                         cache_modifier=".cg")                                               # [CHUNK, R, DV]
        m_new = tl.maximum(m, tl.max(b_lse, 0))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        w = tl.exp2(b_lse - shift[None, :])                                                  # [CHUNK, R]
        shrink = tl.exp2(m - shift)
        acc = acc * shrink[:, None] + tl.sum(w[:, :, None] * b_part, 0)
        total = total * shrink + tl.sum(w, 0)
        m = m_new
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]
