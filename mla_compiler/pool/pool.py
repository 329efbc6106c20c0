"""KVPool: sequences of keys and values over the pages of one arena.

    pool = KVPool(layers=32, kv_heads=8, k_dim=128, dtype=torch.bfloat16, device="cuda", fraction=0.8)
    a = pool.allocate();  pool.append(a, k, v);  b = pool.fork(a);  pool.release(a)
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as List
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from ..errors import PoolExhausted
from . import eviction
from .arena import Arena
from .fences import Fence, fence_maker
from .geometry import Geometry, exactly, pages_bought
from .ledger import Ledger
from .plot import draw
from .sequences import Sequence, Tables, tables
from .shelf import Shelf
from .stats import PoolStats, measure

_LIVING: weakref.WeakSet[KVPool] = weakref.WeakSet()


def memory() -> list[dict[str, Any]]:
    """The figures of every pool there is: `pool`, which it is, and those of PoolStats."""
    found = [{"pool": str(pool.geometry), **asdict(pool.stats())} for pool in _LIVING]
    return sorted(found, key=lambda row: -row["reserved"])


class KVPool:
    """One arena of pages of `page` tokens, sized by one of `nbytes`, `tokens`, `fraction` (of the memory free now).

    A page spans `layers` layers; keys and values may differ in their head dims. `format` is how they lie in memory (`formats`):
    "plain", "fp8", "int8", "k8v4", "k6v4", "int4". `preallocate=False` takes the memory as it is needed, up to the size;
    `bounds=True` keeps the least and greatest of the keys of each page, by which `flashmla.sparsity="pages=..."` chooses pages.
    `grow=True` lets the pool double beyond it. `host_tokens` may wait in host memory: what is `idle`, when there is no room
    otherwise, and what one evicts; whatever uses such a sequence brings it back.
    Any thread may call; no call waits for the device. A sequence that several streams use is ordered between them by the
    caller, but for its release, which is safe from any.
    """

    def __init__(
        self, layers: int, kv_heads: int, k_dim: int, v_dim: int | None = None, *, dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu", page: int = 64, nbytes: int | None = None, tokens: int | None = None,
        fraction: float | None = None, preallocate: bool = True, grow: bool = False, format: str = "plain",
        host_tokens: int = 0, bounds: bool = False, fence: Callable[[], Fence | None] | None = None,
    ) -> None:
        v_dim = k_dim if v_dim is None else v_dim
        self.geometry = Geometry(layers, kv_heads, k_dim, v_dim, dtype, exactly(device), page, format, bounds)
        size = pages_bought(self.geometry, nbytes, tokens, fraction)
        self._limit = None if grow else size
        self._lock = threading.RLock()
        self._abandoned: deque[Sequence] = deque()
        fence = fence or fence_maker(self.geometry.device)
        self.ledger = Ledger(self.geometry, size if preallocate else 0, fence)
        self.arena = Arena(self.geometry, self.ledger.pages.count)
        if host_tokens:
            self.ledger.shelf = Shelf(self.arena, self.geometry.pages_for(host_tokens), fence)
        _LIVING.add(self)

    @property
    def most_pages(self) -> int | None:
        """Pages that the arena may ever have; None: it grows."""
        return self._limit

    def allocate(self) -> Sequence:
        """An empty sequence; it holds no page until something is appended."""
        with self._lock:
            return self.ledger.enter(Sequence())

    def extend(self, sequences: List[Sequence], tokens: int, may_grow: bool = True) -> None:
        """Room for `tokens` more in each; a last page that others hold is copied first. The new tokens are to be written.

        `may_grow=False` keeps the arena where it is, for code that has its address. Raises PoolExhausted, and then nothing
        has changed.
        """
        with self._lock, record_function("flashmla::pool.extend"):
            self._bring(sequences, tokens, may_grow)
            self._here(sequences)
            self.ledger.extend(sequences, tokens, self.arena.copy)

    def append(self, sequence: Sequence, k: torch.Tensor, v: torch.Tensor) -> None:
        """k [layers, H, T, k_dim] and v [layers, H, T, v_dim] behind what is there. Raises PoolExhausted, changing nothing."""
        tokens = k.shape[-2]
        self.geometry.check(k, v, self.geometry.layers, tokens)
        with self._lock, record_function("flashmla::pool.append"):
            self.extend([sequence], tokens)
            table = tables(self.geometry, [sequence])
            for layer, store in enumerate(self.arena.stores):
                store.append(table.pages, table.before(tokens), k[layer][None], v[layer][None])

    def write(self, layer: int, table: torch.Tensor, lengths: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """k [B, H, T, k_dim] and v [B, H, T, v_dim] behind the first lengths[b] tokens of each row of a table [B, N]."""
        self.geometry.check(k, v, len(lengths), k.shape[2])
        with self._lock, record_function("flashmla::pool.write"):
            self.arena.stores[layer].append(table, lengths, k, v)

    def read(self, layer: int, table: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of k [B, H, stop - start, k_dim] and v, tokens counted from the first page of a table [B, N]."""
        with self._lock, record_function("flashmla::pool.read"):
            return self.arena.stores[layer].read(table, start, stop)

    def view(self, layer: int, table: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of k [B, H, N * page, k_dim] and v of all that a table [B, N] tells of; zero from lengths[b] on."""
        with self._lock, record_function("flashmla::pool.view"):
            return self.arena.stores[layer].view(table, lengths)

    def gather(self, sequence: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of all that the sequence remembers: k [layers, H, length - start, k_dim] and v."""
        with self._lock, record_function("flashmla::pool.read"):
            table, origin = self.tables([sequence]), sequence.start // self.geometry.page * self.geometry.page
            bounds = sequence.start - origin, sequence.length - origin
            read = [store.read(table.pages, *bounds) for store in self.arena.stores]
        return torch.cat([k for k, _ in read]), torch.cat([v for _, v in read])

    def tables(self, sequences: List[Sequence]) -> Tables:
        """Block tables and lengths on the device, as they are now."""
        with self._lock:
            self._bring(sequences)
            self._here(sequences)
            return tables(self.geometry, sequences)

    def idle(self, sequences: List[Sequence]) -> None:
        """Until they are used again these may be evicted, the first of them first, when there is no room otherwise."""
        with self._lock:
            self.ledger.check(sequences)
            self.ledger.idle.update(dict.fromkeys(sequences))

    def evict(self, sequences: List[Sequence]) -> int:
        """What they alone hold goes to the host, behind what the current stream has been given; how many pages.

        Raises PoolError without `host_tokens`, PoolExhausted where the host has no room; then nothing has changed.
        """
        with self._lock:
            self.ledger.check(sequences)
            return eviction.evict(self.ledger, sequences)

    def prefetch(self, sequences: List[Sequence]) -> None:
        """What is on the host begins to come back, beside the current stream. Raises PoolExhausted, changing nothing."""
        with self._lock:
            self._bring(sequences)

    def check_turns(self, turns: list[list[Sequence]], tokens: int) -> None:
        """Raises PoolExhausted unless sets of sequences that are here one at a time can all grow by `tokens`."""
        with self._lock:
            self._sweep()
            eviction.check_turns(self.ledger, turns, tokens)

    def fork(self, sequence: Sequence) -> Sequence:
        """A second sequence of the same tokens: no data moves until one of them appends."""
        with self._lock:
            return self.ledger.share(sequence, sequence.length)

    def share(self, sequence: Sequence, tokens: int) -> Sequence:
        """A new sequence of the first `tokens` tokens, in the same pages."""
        with self._lock:
            return self.ledger.share(sequence, tokens)

    def truncate(self, sequence: Sequence, tokens: int) -> None:
        """Only the first `tokens` tokens stay."""
        with self._lock:
            self.ledger.truncate(sequence, tokens)

    def forget(self, sequence: Sequence, before: int) -> None:
        """Tokens before this position are never read again: pages wholly behind it go."""
        with self._lock:
            self.ledger.forget(sequence, before)

    def release(self, sequence: Sequence) -> None:
        """The sequence ends. Its pages are free once nobody else holds them and what is enqueued now on this stream has run."""
        with self._lock, record_function("flashmla::pool.release"):
            self.ledger.release(sequence)

    def abandon(self, sequences: Iterable[Sequence]) -> None:
        """Released at the next call of `extend` or `stats`: for finalizers, which may run anywhere."""
        self._abandoned.extend(sequences)

    def stats(self) -> PoolStats:
        with self._lock:
            self._sweep()
            self.ledger.pages.reap()
            return measure(self.geometry, self.ledger)

    def _bring(self, sequences: List[Sequence], tokens: int = 0, may_grow: bool = True) -> None:
        """Their pages are here or on their way, and there is room for `tokens` more in each, or PoolExhausted and no change."""
        self._sweep()
        need = self.ledger.need(sequences, tokens)
        if not eviction.make_room(self.ledger, need, sequences) and may_grow:
            self._grow_for(need)
        self.ledger.pages.reap()
        self.ledger.pages.check(need)
        eviction.bring(self.ledger, sequences)

    def _here(self, sequences: List[Sequence]) -> None:
        eviction.arrived(sequences)
        for sequence in sequences:
            self.ledger.idle.pop(sequence, None)

    def plot(self, path: str | Path) -> None:
        """The arena as a PNG, a square for each page. Needs matplotlib."""
        with self._lock:
            draw(self.geometry, self.ledger, Path(path), str(self.stats()))

    def _sweep(self) -> None:
        while self._abandoned:
            sequence = self._abandoned.popleft()
            if not sequence.released:
                self.ledger.release(sequence)

    def _grow_for(self, need: int) -> None:
        """A larger arena, if that is allowed and `need` pages are not to be had otherwise."""
        pages = self.ledger.pages
        least = pages.count + need - pages.supply
        if need <= pages.supply or (self._limit is not None and least > self._limit):
            return
        count = max(least, 2 * pages.count)
        count = count if self._limit is None else min(count, self._limit)
        shelf = self.ledger.shelf
        try:
            if shelf is not None:
                shelf.settle()
            self.arena.grow(count)
            if shelf is not None:
                shelf.settle()
        except torch.OutOfMemoryError as error:
            raise PoolExhausted.of(need, pages.supply, pages.count) from error
        pages.add(count - pages.count)
