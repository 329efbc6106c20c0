"""PooledCache: a transformers Cache whose keys and values lie in the pages of a KVPool.

    cache = PooledCache(model.config, tokens=65536)              # or pool=KVPool(...), shared by many
    model.generate(**inputs, past_key_values=cache)

Needs transformers, and is the only part of the package, with `layers`, that imports it.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from ..errors import PoolError
from .groups import Group
from .layers import PooledLayer
from .pool import KVPool
from .sequences import Sequence


def windows(config: Any) -> list[int | None]:
    """The sliding window of each layer that caches, in tokens; None: it sees everything. Raises PoolError for other layers."""
    found: list[int | None] = []
    for number, layer in enumerate(DynamicCache(config=config).layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise PoolError(f"a pool holds full and sliding attention; layer {number} caches as {type(layer).__name__}")
        found.append(getattr(layer, "sliding_window", None))
    return found


class PooledCache(Cache):
    """Keys and values of one batch, in `pool`, or in a new pool of the size given, made for what the first update brings.

    Layers that see equally far share block tables, as many at a time as a page spans. The pages go back with `release()`, or
    when nothing refers to the cache any more. A copy (`copy.deepcopy`) is a fork: it goes on from the same pages.
    """

    def __init__(self, config: Any, pool: KVPool | None = None, **size: Any) -> None:
        if (pool is None) == (not size):
            mend = "pool=KVPool(...), or one of tokens=, nbytes=, fraction="
            raise PoolError("a cache is given a pool, or the size of a new one", mend)
        self._build(windows(config), pool, size)

    def _build(self, seen: list[int | None], pool: KVPool | None, size: dict[str, Any]) -> None:
        super().__init__(layers=[PooledLayer(self, window) for window in seen])
        self.windows = seen
        self.pool = pool
        self.length = 0
        self.record_past = False
        self.groups: list[Group] = []
        self._size = size

    def begin(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Room in every layer for the tokens of k [B, H, T, D]. Raises PoolExhausted, and then nothing has changed."""
        pool, (batch, _, tokens, _) = self.open(k, v), k.shape
        pool.geometry.check(k, v, batch, tokens)
        if len(self.groups[0].sequences) != batch:
            raise PoolError(f"the cache holds {len(self.groups[0].sequences)} sequences; found a batch of {batch}")
        pool.extend([sequence for group in self.groups for sequence in group.sequences], tokens)
        self.length += tokens
        for group in self.groups:
            group.step(tokens)

    def open(self, k: torch.Tensor, v: torch.Tensor) -> KVPool:
        """The pool, with an empty sequence for each row of k [B, H, T, D] and each group, unless they are there."""
        if self.pool is None:
            layers = math.gcd(*(self.windows.count(window) for window in set(self.windows)))
            size = self._size
            if "tokens" in size:  # those of the batch, which has pages of its own in each group
                size = {**size, "tokens": size["tokens"] * (len(self.windows) // layers)}
            self.pool = KVPool(layers, k.shape[1], k.shape[3], v.shape[3], dtype=k.dtype, device=k.device, **size)
        if not self.groups:
            self.pool.geometry.check(k, v, *k.shape[::2][:2])
            self._join(self.pool, [[self.pool.allocate() for _ in k] for _ in self._spans(self.pool)])
        return self.pool

    def _spans(self, pool: KVPool) -> list[list[int]]:
        """The numbers of the layers in each group: of one window, and as many as a page spans."""
        span, spans = pool.geometry.layers, []
        for window in dict.fromkeys(self.windows):
            numbers = [number for number, other in enumerate(self.windows) if other == window]
            spans += [numbers[first : first + span] for first in range(0, len(numbers), span)]
        return spans

    def _join(self, pool: KVPool, rows: list[list[Sequence]], written: int = 0) -> None:
        for numbers, sequences in zip(self._spans(pool), rows, strict=True):
            group = Group(pool, self.windows[numbers[0]], len(numbers), sequences)
            weakref.finalize(self, pool.abandon, group.sequences).atexit = False
            self.groups.append(group)
            for within, number in enumerate(numbers):
                self.layers[number].join(group, within, written)

    def fork(self) -> PooledCache:
        """A second cache of the same tokens; a page is copied when one of the two writes in it."""
        other = PooledCache.__new__(PooledCache)
        other._build(self.windows, self.pool, self._size)
        other.length, other.record_past = self.length, self.record_past
        if self.pool is not None and self.groups:
            other._join(self.pool, [group.fork() for group in self.groups], self.length)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> PooledCache:
        return self.fork()

    def crop(self, tokens_to_remove: int) -> None:
        """The last -tokens_to_remove tokens go, and what lies behind the windows."""
        tokens_to_remove = int(tokens_to_remove)  # some transformers count in a tensor
        if tokens_to_remove > 0:
            raise PoolError("crop takes minus the number of tokens to remove", f"crop(-{tokens_to_remove})")
        if not self.groups:
            return
        for group in self.groups:
            group.check_crop(-tokens_to_remove)
        self.length += tokens_to_remove
        for group in self.groups:
            group.crop(self.length)
        for layer in self.layers:
            layer.written = self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes row beam_idx[i]. The host reads beam_idx, so it waits for the beams to be chosen."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        for group in self.groups:
            group.select(torch.arange(len(group.sequences))[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        for group in self.groups:
            group.select([row for row in range(len(group.sequences)) for _ in range(repeats)])

    def activate_past_recording(self) -> None:
        """Tokens behind a window stay until the next `crop`, which may go back to them."""
        self.record_past = True

    def is_recording_past(self, layer_idx: int) -> bool:
        return self.record_past

    def release(self) -> None:
        """All pages go back to the pool; the cache is as new."""
        for group in self.groups:
            group.select([])
        self.groups, self.length = [], 0
        for layer in self.layers:
            layer.leave()

    def reset(self) -> None:
        self.release()
