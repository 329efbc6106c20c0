"""Pages that wait on the host: what goes, what stays, in which order, and PooledCaches whose layers lie there."""

import pytest
import torch
import transformers as hf

from mla_compiler import KVPool, PooledCache, PoolError, PoolExhausted

from .model import PAGE, Checked
from .test_cache import MODELS, WAYS, generated, prompt
from .test_release import Streams


def on_device(pool, *sequences):
    return [sum(page >= 0 for page in sequence.pages) for sequence in sequences]


def checked(pages=4, host=8, **options):
    return Checked(tokens=PAGE * pages, host_tokens=PAGE * host, **options)


def filled(subject, tokens):
    sequence = subject.allocate()
    subject.append(sequence, tokens)
    return sequence


def test_the_longest_idle_goes_first_and_comes_back_when_it_is_used():
    subject = checked()
    first, second, busy = (filled(subject, PAGE) for _ in range(3))
    subject.pool.idle([first])
    subject.pool.idle([second])
    subject.append(busy, 2 * PAGE)
    assert on_device(subject.pool, first, second, busy) == [0, 1, 3]
    assert subject.pool.stats().evicted == subject.pool.geometry.page_bytes == subject.pool.stats().idle
    subject.check_contents(first)  # comes back in the place of the second
    assert on_device(subject.pool, first, second, busy) == [1, 0, 3]
    for sequence in (first, busy, second):
        subject.pool.idle([sequence])
        subject.check_contents(sequence)


def test_nothing_goes_where_it_would_not_suffice():
    subject = checked(pages=3, host=1)
    idle, busy = filled(subject, 2 * PAGE), filled(subject, PAGE)
    subject.pool.idle([idle])
    with pytest.raises(PoolExhausted, match="1 pages needed, 0 of its 3"):
        subject.pool.extend([busy], 1)
    with pytest.raises(PoolExhausted, match=r"no room on the host: 2 pages to evict, 1 of its 1"):
        subject.pool.evict([idle])
    assert on_device(subject.pool, idle, busy) == [2, 1]
    with pytest.raises(PoolError, match="host_tokens="):
        Checked().pool.evict([])


def test_what_others_hold_stays_and_what_a_set_holds_goes_once():
    subject = checked()
    root = filled(subject, PAGE + 1)
    fork = subject.share(root, PAGE)
    assert subject.pool.evict([root]) == 1
    assert on_device(subject.pool, root, fork) == [1, 1]
    assert subject.pool.evict([root, fork]) == 1
    assert on_device(subject.pool, root, fork) == [0, 0] and subject.pool.ledger.shelf.slots.held == 2
    subject.poison()
    subject.append(fork, 2)
    subject.append(root, 2)
    subject.check_pages()
    subject.check_contents(root)
    subject.check_contents(fork)


def test_a_page_that_was_not_written_goes_without_a_copy():
    subject = checked()
    sequence = filled(subject, 2 * PAGE + 1)
    shelf, moved = subject.pool.ledger.shelf, []
    copy = shelf._copy
    shelf._copy = lambda pages, slots, to_host: (moved.append((len(pages), to_host)), copy(pages, slots, to_host))
    subject.pool.evict([sequence])
    subject.append(sequence, 1)
    subject.pool.evict([sequence])
    assert moved == [(3, True), (3, False), (1, True)]
    subject.poison()
    subject.check_contents(sequence)


def test_evicted_pages_are_free_when_they_have_been_read():
    streams = Streams()
    pool = KVPool(1, 1, 1, tokens=8, page=4, fence=streams, host_tokens=8)
    sequence = pool.allocate()
    x = torch.ones(1, 1, 8, 1)
    pool.append(sequence, x, x)
    pool.evict([sequence])
    assert pool.stats().pending == pool.stats().evicted == 2 * pool.geometry.page_bytes
    streams.made[-1].reached = True
    assert pool.stats().pending == 0
    streams.current = "side"
    pool.prefetch([sequence])
    streams.current = 0
    arriving = streams.made[-1]
    assert not arriving.waited
    pool.tables([sequence])
    assert arriving.waited
    pool.release(sequence)  # its pages are in use until they have arrived
    streams.made[-1].reached = True
    assert pool.stats().pending == 2 * pool.geometry.page_bytes
    arriving.reached = True
    assert pool.stats().pending == 0


def test_a_growing_pool_evicts_first():
    subject = checked(pages=2, grow=True)
    idle, busy = filled(subject, PAGE), filled(subject, PAGE)
    subject.pool.idle([idle])
    subject.append(busy, 1)
    assert subject.pool.ledger.pages.count == 2
    subject.append(busy, PAGE)
    assert subject.pool.ledger.pages.count == 4
    subject.check_contents(idle)
    subject.check_contents(busy)


@pytest.mark.parametrize("format", ["plain", "int4", "k6v4"])
def test_every_tensor_of_a_page_moves(format):
    pool = KVPool(2, 2, 32, tokens=16, page=4, host_tokens=16, format=format)
    sequence = pool.allocate()
    pool.append(sequence, torch.randn(2, 2, 14, 32), torch.randn(2, 2, 14, 32))
    before = pool.gather(sequence)
    pool.evict([sequence])
    for store in pool.arena.stores:
        for x in store.tensors():
            x.zero_()
    assert all(torch.equal(x, y) for x, y in zip(pool.gather(sequence), before, strict=True))


@pytest.mark.parametrize("offload", [2, 5])
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_layers_on_the_host(way, offload):
    """Five layers of two windows; of those on the host one is in the arena at a time."""
    model, inputs = MODELS["gemma"](), prompt(MODELS["gemma"](), padded=True)
    pool = KVPool(1, 2, 8, tokens=2048, page=4, host_tokens=4096)
    cache = PooledCache(model.config, pool=pool, offload=offload)
    found = generated(model, cache, inputs, **WAYS[way])
    assert torch.equal(found, generated(model, hf.DynamicCache(config=model.config), inputs, **WAYS[way]))
    away = [all(page < 0 for sequence in group.sequences for page in sequence.pages) for group in cache.groups]
    assert 0 < sum(away) <= offload and pool.stats().evicted
    cache.release()
    assert pool.stats().held == pool.stats().evicted == 0


def test_a_layer_comes_back_while_those_before_it_run():
    """Enqueued when the one before it in turn has been read, and waited for only when its own turn comes."""
    streams = Streams()
    pool = KVPool(1, 2, 8, tokens=256, page=4, fence=streams, host_tokens=256)
    cache = PooledCache(MODELS["llama"]().config, pool=pool, offload=2)
    k = torch.randn(1, 2, 5, 8)
    for layer in range(3):
        cache.update(k, k, layer)
    (first,), (second,) = (group.sequences for group in cache.groups[1:])
    coming = first.arriving
    assert [group.offloaded for group in cache.groups] == [False, True, True] and on_device(pool, first, second) == [2, 0]
    cache.update(k, k, 0)
    assert first.arriving is coming and not coming.waited
    cache.update(k, k, 1)
    assert coming.waited and on_device(pool, first, second) == [0, 2]
    assert second.arriving is not None and not second.arriving.waited
    read = cache.update(k, k, 2)
    assert all(torch.equal(x, torch.cat([k, k], 2)) for x in read)


def test_a_layer_that_leaves_is_pending_behind_its_reader_alone():
    """Many pages with the same readers, and one that another stream has read too: each waits for its own."""
    streams = Streams()
    pool = KVPool(1, 1, 1, tokens=12, page=4, fence=streams)
    x = torch.ones(1, 1, 12, 1)
    sequence = pool.allocate()
    pool.append(sequence, x, x)
    streams.current = 1
    pool.release(pool.share(sequence, 4))
    streams.current = 0
    pool.release(sequence)
    by_other, by_this = streams.made[-2:]
    by_this.reached = True
    assert pool.stats().pending == pool.geometry.page_bytes * 3  # the first of them waits, and the order stays
    by_other.reached = True
    assert pool.stats().pending == 0


def test_more_layers_than_the_arena_holds():
    model, inputs = MODELS["llama"](), prompt(MODELS["llama"]())
    pages = 2 * 8  # of two rows of 30 tokens, for one layer of three
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    pool = KVPool(1, 2, 8, tokens=4 * pages, page=4, host_tokens=4 * pages * 3)
    with pytest.raises(PoolExhausted):
        generated(model, PooledCache(model.config, pool=pool), inputs, do_sample=False)
    cache = PooledCache(model.config, pool=pool, offload=3)
    assert torch.equal(generated(model, cache, inputs, do_sample=False), expected)
    before = cache.get_seq_length()
    with torch.no_grad(), pytest.raises(PoolExhausted):
        model(inputs["input_ids"], past_key_values=cache)
    assert cache.get_seq_length() == before


def test_a_cache_that_is_idle_makes_room_and_goes_on():
    model, inputs = MODELS["llama"](), prompt(MODELS["llama"]())
    expected = generated(model, hf.DynamicCache(config=model.config), inputs, do_sample=False)
    pool = KVPool(3, 2, 8, tokens=4 * 20, page=4, host_tokens=4 * 20)
    first, second = (PooledCache(model.config, pool=pool) for _ in range(2))
    with torch.no_grad():
        model(inputs["input_ids"][:, :-1], past_key_values=first)
    first.idle()
    assert torch.equal(generated(model, second, inputs, do_sample=False), expected)
    assert pool.stats().evicted
    second.evict()
    first.prefetch()
    assert torch.equal(generated(model, first, inputs, do_sample=False), expected)


def test_what_cannot_be_offloaded(monkeypatch):
    model, inputs = MODELS["llama"](), prompt(MODELS["llama"]())
    with pytest.raises(PoolError, match="layers that have pages of their own; found 1 of 1"):
        generated(model, PooledCache(model.config, tokens=512, host_tokens=512, offload=1), inputs)
    pool = KVPool(1, 2, 8, tokens=1024, page=4, host_tokens=1024)
    cache = PooledCache(model.config, pool=pool, offload=1)
    cache.early_initialization(2, 1, 1, torch.float32, "cpu")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(PoolError, match="moves its pages between layers"):
        cache.update(*torch.zeros(2, 2, 2, 1, 8), 0)
