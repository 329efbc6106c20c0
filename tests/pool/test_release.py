"""Stream order, sizes, growth and figures of a pool."""

import pickle

import pytest
import torch

from mla_compiler import KVPool, PoolError, PoolExhausted
from mla_compiler.pool.plot import states
from mla_compiler.pool.stats import read_tokens

from .model import FakeFence


class Streams:
    """Makes fences of the stream that is current."""

    def __init__(self):
        self.current, self.made = 0, []

    def __call__(self):
        self.made.append(FakeFence(self.current))
        return self.made[-1]


def filled(pool, tokens):
    sequence = pool.allocate()
    pool.append(sequence, torch.ones(1, 1, tokens, 1), torch.ones(1, 1, tokens, 1))
    return sequence


def test_a_page_is_free_when_its_readers_are_done():
    streams = Streams()
    pool = KVPool(1, 1, 1, tokens=12, page=4, fence=streams)
    pool.release(filled(pool, 4))
    assert pool.stats().pending == pool.geometry.page_bytes and len(pool.ledger.pages.free) == 2
    filled(pool, 8)  # the free pages are taken first
    assert not streams.made[0].waited
    streams.made[0].reached = True
    assert pool.stats().pending == 0 and len(pool.ledger.pages.free) == 1


def test_a_pending_page_is_taken_only_behind_its_readers():
    """With nothing else left the stream that takes it waits; the host goes on."""
    streams = Streams()
    pool = KVPool(1, 1, 1, tokens=4, page=4, fence=streams)
    pool.release(filled(pool, 4))
    filled(pool, 1)
    assert streams.made[0].waited and not streams.made[0].reached


def test_readers_on_every_stream_are_waited_for():
    """A page that two shared is free only when both have read, in whichever order they let go."""
    streams = Streams()
    pool = KVPool(1, 1, 1, tokens=4, page=4, fence=streams)
    one = filled(pool, 4)
    other = pool.fork(one)
    pool.release(one)
    streams.current = 1
    pool.release(other)
    streams.made[1].reached = True
    assert pool.stats().pending == 4 * 2 * 4
    streams.made[0].reached = True
    assert pool.stats().pending == 0


def test_writing_in_a_page_waits_for_those_who_let_go_of_it():
    streams = Streams()
    pool = KVPool(1, 1, 1, tokens=8, page=4, fence=streams)
    one = filled(pool, 3)
    other = pool.fork(one)
    pool.release(one)
    pool.truncate(other, 1)
    assert not streams.made[0].waited
    pool.append(other, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert streams.made[0].waited


def test_a_copied_tail_is_pending_until_the_copy_has_read_it():
    streams = Streams()
    pool = KVPool(1, 1, 1, tokens=8, page=4, fence=streams)
    one = filled(pool, 3)
    other = pool.fork(one)
    pool.append(other, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    streams.current = 1
    pool.release(one)
    assert pool.stats().pending and len(streams.made) == 2
    streams.made[1].reached = True
    assert pool.stats().pending
    streams.made[0].reached = True
    assert not pool.stats().pending


def test_exhaustion_names_need_and_supply():
    pool = KVPool(1, 1, 1, tokens=12, page=4)
    filled(pool, 5)
    with pytest.raises(PoolExhausted, match=r"no room: 3 pages needed, 1 of its 3 to be had\n.*grow=True") as caught:
        filled(pool, 9)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.need, again.supply, str(again)) == (3, 1, str(caught.value))
    assert isinstance(again, MemoryError)


def test_a_batch_grows_whole_or_not_at_all():
    pool = KVPool(1, 1, 1, tokens=12, page=4)
    rows = [filled(pool, 4), filled(pool, 4)]
    with pytest.raises(PoolExhausted):
        pool.extend(rows, 1)
    assert [len(row) for row in rows] == [4, 4] and len(pool.ledger.pages.free) == 1


@pytest.mark.parametrize(("size", "pages"), [({"tokens": 9}, 3), ({"nbytes": 100}, 3), ({"fraction": 1e-6}, None)])
def test_sizes(size, pages):
    pool = KVPool(1, 1, 1, page=4, **size)
    assert pool.stats().reserved == pool.arena.nbytes == pool.ledger.pages.count * 32
    assert pool.ledger.pages.count == pages or pages is None


@pytest.mark.parametrize("size", [{}, {"tokens": 4, "nbytes": 64}, {"nbytes": 31}, {"fraction": 1.5}, {"tokens": 0}])
def test_sizes_refused(size):
    with pytest.raises(PoolError):
        KVPool(1, 1, 1, page=4, **size)


def test_memory_taken_as_it_is_needed_and_beyond():
    pool = KVPool(1, 1, 1, tokens=12, page=4, preallocate=False)
    assert pool.arena.nbytes == 0
    one = filled(pool, 4)
    assert pool.ledger.pages.count == 1
    other = filled(pool, 8)
    assert pool.ledger.pages.count == 3
    with pytest.raises(PoolExhausted):
        filled(pool, 1)
    growing = KVPool(1, 1, 1, tokens=4, page=4, grow=True)
    rows = [filled(growing, n) for n in (4, 1, 9)]
    assert growing.ledger.pages.count == 5
    for owner, sequence in [(pool, one), (pool, other), *((growing, row) for row in rows)]:
        assert all(torch.equal(x, torch.ones_like(x)) for x in owner.gather(sequence))


def test_tables_say_where_each_token_lies():
    pool = KVPool(1, 1, 1, tokens=64, page=4)
    long, short = filled(pool, 11), filled(pool, 5)
    pool.forget(long, 6)
    table = pool.tables([long, short])
    assert table.pages.dtype == table.lengths.dtype == table.origins.dtype == torch.int32
    assert table.pages.tolist() == [long.pages, short.pages]
    assert (table.lengths.tolist(), table.origins.tolist()) == ([11, 5], [4, 0])
    pool.append(short, torch.ones(1, 1, 4, 1), torch.ones(1, 1, 4, 1))
    assert pool.tables([long, short]).pages.tolist() == [[*long.pages, -1], short.pages]


def test_figures():
    pool = KVPool(1, 1, 1, tokens=32, page=4)
    token = pool.geometry.token_bytes
    one = filled(pool, 10)
    other = pool.share(one, 6)
    pool.forget(one, 5)
    found = pool.stats()
    assert (found.reserved, found.held, found.shared, found.sequences) == (32 * token, 12 * token, 4 * token, 2)
    assert (found.live, found.wasted) == (10 * token, 2 * token)  # `other` still reads what `one` has forgotten
    pool.release(other)
    found = pool.stats()
    assert (found.held, found.live, found.high_water) == (8 * token, 5 * token, 12 * token)
    assert "1 sequences" in str(found) and "62.5% of what is held is live" in str(found)


def test_a_pool_made_under_inference_mode_serves_others():
    with torch.inference_mode():
        pool = KVPool(1, 1, 1, tokens=32)
        first = filled(pool, 3)
    x = torch.full((1, 1, 2, 1), 2.0, requires_grad=True)
    pool.append(first, x, x)
    k, v = pool.gather(first)
    assert k.flatten().tolist() == v.flatten().tolist() == [1, 1, 1, 2, 2] and not k.requires_grad


def test_operands_of_another_dtype_are_refused_and_nothing_has_changed():
    pool = KVPool(1, 1, 1, tokens=32)
    first, before = filled(pool, 3), pool.stats()
    x = torch.ones(1, 1, 2, 1)
    with pytest.raises(PoolError, match="the pool takes v"):
        pool.append(first, x, x.half())
    with pytest.raises(PoolError, match="another pool"):
        KVPool(1, 1, 1, tokens=32).append(first, x, x)
    assert pool.stats() == before


def test_ranges_in_a_trace():
    pool = KVPool(1, 1, 1, tokens=128, host_tokens=64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        sequence = filled(pool, 3)
        pool.evict([sequence])
        pool.gather(sequence)
        pool.release(sequence)
    found = {event.key for event in profile.key_averages()}
    assert {f"flashmla::pool.{name}" for name in ("append", "extend", "release", "evict", "bring", "read")} <= found


@pytest.mark.gpu
def test_pages_come_back_on_a_gpu():
    pool = KVPool(1, 1, 8, dtype=torch.bfloat16, device="cuda", tokens=1024)
    x = torch.ones(1, 1, 1000, 8, dtype=torch.bfloat16, device="cuda")
    for turn in range(8):
        sequence = pool.allocate()
        pool.append(sequence, x * turn, x * turn)
        assert torch.equal(pool.gather(sequence)[0], x * turn)
        pool.release(sequence)
    torch.cuda.synchronize()
    assert pool.stats().held == pool.stats().pending == 0


def test_a_plot_has_every_page_in_its_state(tmp_path):
    streams = Streams()
    pool = KVPool(1, 1, 1, tokens=24, page=4, fence=streams, host_tokens=8)
    one, gone, idle = filled(pool, 6), filled(pool, 2), filled(pool, 4)
    pool.share(one, 4)
    pool.release(gone)
    pool.idle([idle])
    assert states(pool.ledger) == ["shared", "held", "pending", "idle", "free", "free"]
    assert read_tokens(pool.geometry, pool.ledger) == [4, 2, 0, 4, 0, 0]
    pytest.importorskip("matplotlib")
    pool.plot(tmp_path / "arena.png")
    assert (tmp_path / "arena.png").read_bytes().startswith(b"\x89PNG")
