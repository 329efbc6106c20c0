"""One layer of a PooledCache, as transformers asks it: how long it is, what it shows, what it takes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin

from ..errors import PoolError
from .groups import Group

if TYPE_CHECKING:
    from .cache import PooledCache


class PooledLayer(CacheLayerMixin):
    """Layer `within` of a group. Its batch is changed through the cache, which changes all layers of a group at once."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, cache: PooledCache, window: int | None) -> None:
        super().__init__()
        self._cache = weakref.ref(cache)
        self.sliding_window = window
        self.is_sliding = window is not None
        self.leave()

    def join(self, group: Group, within: int, written: int) -> None:
        self.group: Group | None = group
        self.within = within
        self.written = written
        self.is_initialized = True

    def leave(self) -> None:
        self.group, self.within, self.written, self.is_initialized = None, 0, 0, False

    @property
    def cache(self) -> PooledCache:
        cache = self._cache()
        if cache is None:
            raise PoolError("the PooledCache of this layer is gone")
        return cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.cache.open(key_states, value_states)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new k [B, H, T, D] and v go into the pool; out come copies of what the new queries may see, [B, H, S, D]."""
        cache = self.cache
        if self.written == cache.length:
            cache.begin(key_states, value_states)
        if self.group is None:
            raise PoolError("this layer has left its cache")
        read = self.group.update(self.within, key_states, value_states, cache.record_past)
        self.written += key_states.shape[2]
        return read

    def get_seq_length(self) -> int:
        return self.written

    def get_max_length(self) -> int:
        return -1 if self.sliding_window is None else self.sliding_window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys `update` will return, and the position of the first."""
        first = 0 if self.sliding_window is None else max(self.written - self.sliding_window + 1, 0)
        return self.written + query_length - first, first
