"""A KVPool beside a plain dict of tensors, with fences that pass when told: every step is checked."""

import torch

from mla_compiler import KVPool, PoolExhausted

LAYERS, HEADS, K_DIM, V_DIM, PAGE = 2, 1, 2, 1, 4


class FakeFence:
    """A point of a stream that the device reaches when `reached` is set; `waited` says that the pool ordered work behind it."""

    def __init__(self, stream=0):
        self.stream = stream
        self.reached = self.waited = False

    def passed(self):
        return self.reached

    def wait(self):
        self.waited = True


class Checked:
    """Every operation on the pool and on the dict; pages that are free or pending are poisoned, so nobody may read them."""

    def __init__(self, tokens=PAGE * 12, deferred=False, **options):
        self.fences = []
        fence = self.fence if deferred else None
        self.pool = KVPool(LAYERS, HEADS, K_DIM, V_DIM, tokens=tokens, page=PAGE, fence=fence, **options)
        self.truth = {}  # Sequence: (k, v) of all its tokens, forgotten ones too
        self.number = 0

    def fence(self):
        self.fences.append(FakeFence(len(self.fences) % 3))
        return self.fences[-1]

    def fresh(self, tokens):
        """Tokens that no other place holds."""
        first, self.number = self.number, self.number + tokens
        t = torch.arange(first, first + tokens, dtype=torch.float32)
        layer = torch.arange(LAYERS, dtype=torch.float32)[:, None, None, None] / 8
        k = t[None, None, :, None] + layer + torch.arange(K_DIM) / 64
        return k, -t[None, None, :, None].expand(LAYERS, HEADS, tokens, V_DIM) - layer

    def allocate(self):
        sequence = self.pool.allocate()
        self.truth[sequence] = self.fresh(0)
        return sequence

    def append(self, sequence, tokens):
        k, v = self.fresh(tokens)
        before = self.picture()
        try:
            self.pool.append(sequence, k, v)
        except PoolExhausted as error:
            assert error.need > error.supply and self.picture() == before
            return
        old = self.truth[sequence]
        self.truth[sequence] = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)

    def extend_all(self, sequences, tokens):
        """One atomic step of a batch, written through the tables."""
        new = [self.fresh(tokens) for _ in sequences]
        before = self.picture()
        try:
            self.pool.extend(sequences, tokens)
        except PoolExhausted as error:
            assert error.need > error.supply and self.picture() == before
            return
        table = self.pool.tables(sequences)
        for layer in range(LAYERS):
            k, v = (torch.stack([one[i][layer] for one in new]) for i in range(2))
            self.pool.write(layer, table.pages, table.before(tokens), k, v)
        for sequence, (k, v) in zip(sequences, new, strict=True):
            old = self.truth[sequence]
            self.truth[sequence] = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)

    def share(self, sequence, tokens):
        other = self.pool.share(sequence, tokens)
        self.truth[other] = tuple(x[:, :, :tokens] for x in self.truth[sequence])
        return other

    def truncate(self, sequence, tokens):
        self.pool.truncate(sequence, tokens)
        self.truth[sequence] = tuple(x[:, :, :tokens] for x in self.truth[sequence])
        self.poison()

    def forget(self, sequence, before):
        self.pool.forget(sequence, before)
        self.poison()

    def evict(self, sequences):
        before = self.picture()
        try:
            self.pool.evict(sequences)
        except PoolExhausted as error:
            assert error.need > error.supply and self.picture() == before
        self.poison()

    def prefetch(self, sequences):
        before = self.picture()
        try:
            self.pool.prefetch(sequences)
        except PoolExhausted as error:
            assert error.need > error.supply and self.picture() == before

    def release(self, sequence):
        self.pool.release(sequence)
        del self.truth[sequence]
        self.poison()

    def pass_fences(self, count):
        for fence in self.fences[:count]:
            fence.reached = True
        del self.fences[:count]

    def picture(self):
        """All the state that a failed operation must leave as it was."""
        pages, shelf = self.pool.ledger.pages, self.pool.ledger.shelf
        slots = None if shelf is None else list(shelf.slots.refs)
        sequences = {sequence: (sequence.start, sequence.length, tuple(sequence.pages)) for sequence in self.truth}
        return list(pages.refs), slots, sequences

    def poison(self):
        pages = self.pool.ledger.pages
        for page in [*pages.free, *(page for _, page in pages.pending)]:
            for store in self.pool.arena.stores:
                store.k[page] = store.v[page] = torch.nan
        shelf = self.pool.ledger.shelf
        for plane in [] if shelf is None else shelf._planes:
            for slot in [*shelf.slots.free, *(slot for _, slot in shelf.slots.pending)]:
                plane[slot] = torch.nan

    def check_pages(self):
        """No page or slot lost, none in two places, and as many holders as are counted."""
        entries, shelf = [page for sequence in self.truth for page in sequence.pages], self.pool.ledger.shelf
        check_holders(self.pool.ledger.pages, [page for page in entries if page >= 0])
        if shelf is not None:
            check_holders(shelf.slots, [~page for page in entries if page < 0] + list(shelf.copies.values()))
            for page, slot in shelf.copies.items():
                assert self.pool.ledger.pages.refs[page] and shelf.slots.refs[slot]

    def check_contents(self, sequence):
        """Read where it is, or brought back for it, which may find no room."""
        before = self.picture()
        try:
            k, v = self.pool.gather(sequence)
        except PoolExhausted as error:
            assert error.need > error.supply and self.picture() == before
            return
        assert torch.equal(k, self.truth[sequence][0][:, :, sequence.start :])
        assert torch.equal(v, self.truth[sequence][1][:, :, sequence.start :])


def check_holders(pages, entries):
    holders = [0] * pages.count
    for page in entries:
        holders[page] += 1
    assert holders == pages.refs
    elsewhere = sorted([*pages.free, *(page for _, page in pages.pending)])
    assert elsewhere == [page for page, refs in enumerate(pages.refs) if not refs]
