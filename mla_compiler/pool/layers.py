"""One layer of a PooledCache, as transformers asks it: how long it is, what it shows, what it takes.

Eager code sees k and v of exactly the tokens there are. Compiled code, and eager code where the cache was told how long it may
get, sees as many as the tables can tell of, at positions counted from 0, so that nothing it sees changes its shape: those that
are not there are masked, as in a static cache. Nothing else has been written where a layer is empty, so there both see
the new tokens alone, as they are.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ..errors import PoolError
from .batch import Batch
from .groups import Group
from .ops import POOL

if TYPE_CHECKING:
    from .cache import PooledCache


class PooledLayer(CacheLayerMixin):
    """Layer `number` of a cache. Its batch is changed through the cache, which changes all layers at once."""

    is_croppable = True

    def __init__(self, cache: PooledCache, number: int, window: int | None) -> None:
        super().__init__()
        self._cache = weakref.ref(cache)
        self.number = number
        self.sliding_window = window
        self.is_sliding = window is not None
        self.is_compileable = cache.longest is not None
        self.leave()

    def join(self, batch: Batch, group: Group, last: bool) -> None:
        """`last`: this is the last layer of the cache to write in a step of compiled code; layer 0 is the first."""
        self.batch: Batch | None = batch
        self.group: Group | None = group
        self.row = group.number
        self.store = batch.pool.arena.stores[group.layers.index(self.number)]
        self.last = last
        self.empty = batch.length == 0
        self.is_initialized = True

    def leave(self) -> None:
        self.batch, self.group, self.empty, self.is_initialized = None, None, True, False

    @torch.compiler.disable
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        cache = self._cache()
        if cache is None:
            raise PoolError("the PooledCache of this layer is gone")
        cache.open(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new k [B, H, T, D] and v go into the pool; out come those that the new queries may see, [B, H, S, D]."""
        if self.batch is None:
            self.lazy_initialization(key_states, value_states)
        batch = self.batch
        if batch is None:
            raise PoolError("this layer has left its cache")
        if torch.compiler.is_compiling():
            return self._traced(batch, key_states, value_states)
        return self._eager(batch, key_states, value_states)

    def _traced(self, batch: Batch, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Tensors and constants only: the host's numbers change in every step, and would be compiled anew."""
        slate, tokens = batch.slate, k.shape[2]
        if batch.offloaded:
            raise PoolError("an offloaded cache moves its pages between layers, which compiled code has no room for")
        if self.number == 0:
            POOL.pool_room(slate.handle, slate.tables, tokens)
        table = slate.tables[self.row]
        self.store.append(table, slate.lengths, k, v)
        read = (k, v) if self.empty else self.store.view(table, slate.lengths + tokens)
        if self.empty:
            self.empty = False
        if self.last:
            POOL.pool_advance(slate.lengths, tokens)
        return read

    def _eager(self, batch: Batch, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert self.group is not None
        if self.number not in batch.unwritten:
            batch.begin(k, v)
        if self.group.offloaded and self.number == self.group.layers[0]:
            batch.take_turn(self.group)
        within, table, length = self.group.layers.index(self.number), batch.slate.tables[self.row], batch.length
        batch.pool.write(within, table, batch.before, k, v)
        if self.empty:
            read = k, v
        elif self.is_compileable:
            read = batch.pool.view(within, table, batch.slate.lengths)
        else:
            read = batch.pool.read(within, table, self.group.first_seen(length - k.shape[2]), length)
        self.empty = False
        batch.wrote(self.group, self.number)
        return read

    def get_seq_length(self) -> int:
        """Tokens written; in compiled code a tensor, as of a static cache."""
        if self.batch is None or self.empty:
            return 0
        if torch.compiler.is_compiling():
            return self.batch.slate.lengths[0]  # type: ignore[return-value]
        return self.batch.length_of(self.number)

    def get_max_length(self) -> int:
        if self.is_compileable and self.batch is not None:
            return self.batch.capacity
        return -1 if self.sliding_window is None else self.sliding_window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys `update` will return, and the position of the first."""
        if self.batch is None or self.empty:
            return query_length, 0
        if self.is_compileable or torch.compiler.is_compiling():
            return self.batch.capacity, 0
        written = self.batch.length_of(self.number)
        first = 0 if self.sliding_window is None else max(written - self.sliding_window + 1, 0)
        return written + query_length - first, first
