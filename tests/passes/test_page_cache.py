"""Keys and values that are gathered through a block table are read in their pages, and every other gather says why not."""

import pytest
import torch

from mla_compiler.pool.formats import PAIRS
from mla_compiler.pool.ops import _append
from tests.pipeline.graphs import piped, sdpa, text, traced
from tests.pipeline.test_rewrites import repeated

POOL = torch.ops.flashmla
COUNT, KV_HEADS, PAGE, DIM = 9, 2, 4, 8


def inputs(queries=1, batch=2, dtype=torch.float32):
    """q, new k and v, the pages of both, a table whose last page nobody has yet, lengths before the new tokens."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, heads, queries, DIM, dtype=dtype) for heads in (4, KV_HEADS, KV_HEADS))
    pages = [torch.randn(COUNT, KV_HEADS, PAGE, DIM, dtype=dtype) for _ in "kv"]
    table = torch.tensor([[1, 8, 3, -1], [2, 0, 5, -1]], dtype=torch.int32)[:batch]
    return q, k, v, *pages, table, torch.tensor([6, 9], dtype=torch.int32)[:batch]


def append(pages, table, lengths, x):
    """`pool_append`, made of what functionalisation leaves of it."""
    pages = pages.clone()
    _append(pages, table, lengths, x)
    return pages


def view(pages, table, lengths):
    return POOL.pool_view(pages, None, table, lengths, "plain", pages.dtype)


def mask_of(lengths, queries, capacity):
    """Row b's query i sees lengths[b] + i + 1 keys."""
    i, j = torch.arange(queries), torch.arange(capacity)
    return (j <= lengths[:, None, None] + i[:, None])[:, None]


def decode(q, k, v, pages_k, pages_v, table, lengths):
    keys, values = (view(append(p, table, lengths, x), table, lengths + q.shape[2]) for p, x in ((pages_k, k), (pages_v, v)))
    return sdpa(q, repeated(keys, 2), repeated(values, 2), mask_of(lengths, q.shape[2], keys.shape[2]))


def unmasked(q, k, v, pages_k, pages_v, table, lengths):
    """No mask says what is there: the lengths do."""
    return sdpa(q, view(pages_k, table, lengths), view(pages_v, table, lengths), enable_gqa=True)


def sliced(q, k, v, pages_k, pages_v, table, lengths):
    """Of sixteen keys that the table tells of, the first ten."""
    keys, values = (view(p, table, lengths)[:, :, :10] for p in (pages_k, pages_v))
    return sdpa(q, keys, values, enable_gqa=True)


def by_hand(q, k, v, pages_k, pages_v, table, lengths):
    keys, values = (repeated(view(p, table, lengths), 2) for p in (pages_k, pages_v))
    seen = mask_of(lengths - q.shape[2], q.shape[2], keys.shape[2])
    score = torch.where(seen, q @ keys.mT * 0.3, torch.finfo(q.dtype).min)
    return torch.softmax(score, -1) @ values


def targets(module):
    return {str(node.target) for node in module.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(("program", "symbolic"), [(decode, False), (decode, True), (by_hand, False)])
def test_pages_are_read_where_they_lie(program, queries, symbolic):
    given = inputs(queries)
    module = traced(program, *given, symbolic=symbolic)
    before = module(*given)
    (site,) = piped(module)
    assert (site.status, site.pages) == ("fused", "pages of 4")
    torch.testing.assert_close(module(*given), before)
    assert not any("pool_view" in name for name in targets(module)) and "flashmla.attend_paged.default" in targets(module)
    once = text(module)
    assert piped(module) == [] and text(module) == once


def test_in_pages_attention_stays_exact_and_keeps_no_account():
    (site,) = piped(traced(decode, *inputs(1)), sparsity="threshold=0.1", account=True)
    assert site.pages == "pages of 4" and "sparsity" not in site.spec and "site" not in site.spec
    assert site.sparsity.startswith("exact instead of threshold=0.1") and "in pages" in site.sparsity


def test_one_row_and_one_head():
    """Dimensions of one have no index in the graph."""
    q, k, v, pages_k, pages_v, table, lengths = inputs(batch=1)
    given = q, k[:, :1], v[:, :1], pages_k[:, :1].contiguous(), pages_v[:, :1].contiguous(), table, lengths

    def program(q, k, v, pages_k, pages_v, table, lengths):
        return sdpa(q, view(pages_k, table, lengths), view(pages_v, table, lengths), enable_gqa=True)

    module = traced(program, *given)
    (site,) = piped(module)
    assert site.pages == "pages of 4"
    keys, values = (view(x, table, lengths)[:, :, :6] for x in given[3:5])
    torch.testing.assert_close(module(*given), sdpa(q, keys, values, enable_gqa=True))


@pytest.mark.parametrize(("program", "most"), [(unmasked, 16), (sliced, 10)])
def test_keys_beyond_the_lengths_are_hidden(program, most):
    """As a ragged batch wants it: each row attends to its own tokens. NaN in every other slot does no harm."""
    given = inputs()
    module = traced(program, *given)
    (site,) = piped(module)
    assert site.pages == "pages of 4"
    q, _, _, pages_k, pages_v, table, lengths = given
    rows = []
    for b in range(2):
        n = min(int(lengths[b]), most)
        keys, values = (view(x, table, lengths)[b : b + 1, :, :n] for x in (pages_k, pages_v))
        rows.append(sdpa(q[b : b + 1], keys, values, enable_gqa=True))
    for x in (pages_k, pages_v):
        seen = torch.zeros(COUNT, PAGE, dtype=torch.bool)
        for b in range(2):
            for j in range(int(lengths[b])):
                seen[table[b, j // PAGE], j % PAGE] = True
        x.transpose(1, 2)[~seen] = torch.nan
    torch.testing.assert_close(module(*given), torch.cat(rows))


def quantised(format):
    def program(q, k_values, k_scales, v_values, v_scales, table, lengths):
        keys, values = (
            POOL.pool_view(x, scales, table, lengths, kind.name, q.dtype)
            for x, scales, kind in zip((k_values, v_values), (k_scales, v_scales), PAIRS[format], strict=True)
        )
        return sdpa(q, keys, values, mask_of(lengths - 1, 1, keys.shape[2]), enable_gqa=True)

    return program


@pytest.mark.parametrize("format", list(PAIRS)[1:])
def test_quantised_pages(format):
    q, _, _, pages_k, pages_v, table, lengths = inputs()
    keys, values = (POOL.pool_quantize(x, kind.name, DIM) for x, kind in zip((pages_k, pages_v), PAIRS[format], strict=True))
    given = q, *keys, *values, table, lengths
    module = traced(quantised(format), *given)
    before = module(*given)
    (site,) = piped(module)
    assert site.pages == f"{format} pages of 4"
    torch.testing.assert_close(module(*given), before)


def other_tables(q, k, v, pages_k, pages_v, table, lengths):
    return sdpa(q, view(pages_k, table, lengths), view(pages_v, table.flip(0), lengths), enable_gqa=True)


def other_lengths(q, k, v, pages_k, pages_v, table, lengths):
    return sdpa(q, view(pages_k, table, lengths), view(pages_v, table, lengths - 1), enable_gqa=True)


def other_values(q, k, v, pages_k, pages_v, table, lengths):
    keys = view(pages_k, table, lengths)
    return sdpa(q, keys, keys * 2, enable_gqa=True)


def part_of_heads(q, k, v, pages_k, pages_v, table, lengths):
    return sdpa(q[:, :1], view(pages_k, table, lengths)[:, 1:], view(pages_v, table, lengths)[:, 1:])


def part_of_channels(q, k, v, pages_k, pages_v, table, lengths):
    return sdpa(q[..., :4], view(pages_k, table, lengths)[..., :4], view(pages_v, table, lengths), enable_gqa=True)


LEFT = {
    "different pages": [other_tables, other_lengths], "is no gather": [other_values],
    "a part of pool_view": [part_of_heads, part_of_channels],
}


@pytest.mark.parametrize(("why", "program"), [(why, program) for why, programs in LEFT.items() for program in programs])
def test_what_is_not_proved_stays_gathered(why, program):
    given = inputs()
    module = traced(program, *given)
    before = module(*given)
    (site,) = piped(module)
    assert site.status == "fused" and site.pages.startswith("gathered: ") and why in site.pages
    torch.testing.assert_close(module(*given), before)


# ----------------------------------------------------------------------------------------- transformers' continuous batching


def continuous(q, k, v, cache_k, cache_v, write_index, read_index, mask):
    """What its cache does: k [1, H, T, D] into slots [slots, H, D], and all that the batch may see out of them."""
    keys, values = (
        cache.index_copy(0, write_index, x.squeeze(0).transpose(0, 1)).index_select(0, read_index)
        for cache, x in ((cache_k, k), (cache_v, v))
    )
    keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (keys, values))
    return sdpa(q, repeated(keys, 2), repeated(values, 2), mask)


def continuous_inputs(index=torch.int64):
    """Two requests, of 7 tokens with 3 new ones and of 4 with one new, in slots that lie anywhere."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, heads, 4, DIM) for heads in (4, KV_HEADS, KV_HEADS))
    caches = [torch.randn(30, KV_HEADS, DIM) for _ in "kv"]
    read = torch.randperm(30)[:11].to(index)
    write = torch.cat([read[4:7], read[10:]])
    request, position = torch.tensor([0] * 7 + [1] * 4), torch.cat([torch.arange(7), torch.arange(4)])
    own = torch.tensor([4, 5, 6, 10])
    mask = (request[own, None] == request) & (position <= position[own, None])
    return q, k, v, *caches, write, read, mask[None, None]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_slots_of_continuous_batching_are_pages_of_one_token(index, symbolic):
    given = continuous_inputs(index)
    module = traced(continuous, *given, symbolic=symbolic)
    before = module(*given)
    (site,) = piped(module)
    assert (site.status, site.pages) == ("fused", "pages of 1")
    torch.testing.assert_close(module(*given), before)
    assert not any("index_select" in name for name in targets(module))


def test_the_cache_of_transformers_itself():
    """Its `update`, which it keeps out of graphs itself, traced all the same: the gather is the one that is read."""
    allocators = pytest.importorskip("transformers.generation.continuous_batching.cache_allocators.full_attention")
    q, k, v, cache_k, cache_v, write, read, mask = continuous_inputs()

    class Slots:
        _kv_token_views = ((cache_k, cache_v),)

    def program(q, k, v, cache_k, cache_v, write, read, mask):
        slots = Slots()
        slots._kv_token_views = ((cache_k.clone(), cache_v.clone()),)
        keys, values = (x.squeeze(0).transpose(0, 1) for x in (k, v))
        update = allocators.FullAttentionCacheAllocator.update
        keys, values = (x.transpose(0, 1).unsqueeze(0) for x in update(slots, keys, values, 0, read, write))
        return sdpa(q, repeated(keys, 2), repeated(values, 2), mask)

    given = q, k, v, cache_k, cache_v, write, read, mask
    module = traced(program, *given)
    before = module(*given)
    (site,) = piped(module)
    assert (site.status, site.pages) == ("fused", "pages of 1")
    torch.testing.assert_close(module(*given), before)


def test_a_gather_over_a_batch_is_no_table():
    """[B, S, H, D] gathered along the keys of every row at once."""
    given = torch.randn(2, 4, 1, DIM), torch.randn(2, 12, 4, DIM), torch.randn(2, 12, 4, DIM), torch.tensor([3, 1, 5])

    def program(q, k, v, index):
        return sdpa(q, *(x.index_select(1, index).transpose(1, 2) for x in (k, v)))

    module = traced(program, *given)
    before = module(*given)
    (site,) = piped(module)
    assert site.pages.startswith("gathered: ") and "gathered: " in site.pages
    torch.testing.assert_close(module(*given), before)
