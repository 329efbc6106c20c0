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
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from ..errors import PoolError
from .batch import Batch
from .groups import Group
from .layers import PooledLayer
from .pool import KVPool


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
    `longest`: tokens of the longest sequence. With it `generate` compiles its steps as for a static cache (`compile_config`);
    `torch.compile` of the model needs it only beyond the model's own positions. `offload`: so many layers, evenly spread,
    lie on the host (the pool's `host_tokens`) and come back one ahead; in eager code, and in a pool of one layer a page.
    """

    def __init__(
        self, config: Any, pool: KVPool | None = None, longest: int | None = None, offload: int = 0, **size: Any
    ) -> None:
        if (pool is None) == (not size):
            mend = "pool=KVPool(...), or one of tokens=, nbytes=, fraction="
            raise PoolError("a cache is given a pool, or the size of a new one", mend)
        if longest is not None and longest < 1:
            raise PoolError(f"longest is at least 1 token; found {longest}")
        self.offload = offload
        text = config.get_text_config(decoder=True)
        self._build(windows(config), pool, longest, getattr(text, "max_position_embeddings", None), size)

    def _build(
        self, seen: list[int | None], pool: KVPool | None, longest: int | None, positions: int | None, size: dict[str, Any]
    ) -> None:
        self.longest = longest
        super().__init__(layers=[PooledLayer(self, number, window) for number, window in enumerate(seen)])
        self.windows = seen
        self.pool = pool
        self.batch: Batch | None = None
        self.record_past = False
        self._positions = positions
        self._size = size

    @property
    def groups(self) -> list[Group]:
        return [] if self.batch is None else self.batch.groups

    def open(self, k: Tensor, v: Tensor) -> KVPool:
        """The pool, with an empty sequence for each row of k [B, H, T, D] and each group, unless they are there."""
        if self.pool is None:
            layers = math.gcd(*(self.windows.count(window) for window in set(self.windows)))
            # Tokens are those of the batch, which has pages of its own in each group.
            times, counted = len(self.windows) // layers, ("tokens", "host_tokens")
            size = {name: given * times if name in counted else given for name, given in self._size.items()}
            self.pool = KVPool(layers, k.shape[1], k.shape[3], v.shape[3], dtype=k.dtype, device=k.device, **size)
        if self.batch is None:
            pool = self.pool
            pool.geometry.check(k, v, *k.shape[::2][:2])
            groups = [
                Group(pool, number, self.windows[layers[0]], layers, [pool.allocate() for _ in k])
                for number, layers in enumerate(self._spans(pool))
            ]
            self._offload(groups)
            self._join(Batch(pool, groups, self._columns(pool), self.longest))
        return self.pool

    def early_initialization(
        self, batch_size: int, num_heads: int | list[int], head_dim: int | list[int], dtype: torch.dtype, device: Any
    ) -> None:
        """As `open`, before any keys are there: a prompt that runs in compiled code needs it."""
        g = None if self.pool is None else self.pool.geometry
        heads, k_dim = (x if isinstance(x, int) else x[0] for x in (num_heads, head_dim))
        heads, k_dim, v_dim = (heads, k_dim, k_dim) if g is None else (g.kv_heads, g.k_dim, g.v_dim)
        k, v = (torch.empty(batch_size, heads, 0, dim, dtype=dtype, device=device) for dim in (k_dim, v_dim))
        self.open(k, v)

    def _offload(self, groups: list[Group]) -> None:
        count, of = self.offload, len(groups)
        if count and (of != len(self.windows) or not 0 < count <= of):
            raise PoolError(f"offload= counts layers that have pages of their own; found {count} of {of} sets of pages")
        for number, group in enumerate(groups):
            group.offloaded = (number + 1) * count // of > number * count // of

    def _columns(self, pool: KVPool) -> int:
        """Pages that a row of the tables tells of."""
        if self.longest is not None:
            return pool.geometry.pages_for(self.longest)
        most = pool.most_pages
        if self._positions is None:
            return most or pool.ledger.pages.count
        positions = pool.geometry.pages_for(self._positions)
        return positions if most is None else min(positions, most)

    def _spans(self, pool: KVPool) -> list[list[int]]:
        """The numbers of the layers in each group: of one window, and as many as a page spans."""
        span, spans = pool.geometry.layers, []
        for window in dict.fromkeys(self.windows):
            numbers = [number for number, other in enumerate(self.windows) if other == window]
            spans += [numbers[first : first + span] for first in range(0, len(numbers), span)]
        return spans

    def _join(self, batch: Batch) -> None:
        self.batch, batch.keep = batch, self.record_past
        for group in batch.groups:
            weakref.finalize(self, batch.pool.abandon, group.sequences).atexit = False
            for number in group.layers:
                self.layers[number].join(batch, group, number == len(self.layers) - 1)

    def fork(self) -> PooledCache:
        """A second cache of the same tokens; a page is copied when one of the two writes in it."""
        other = PooledCache.__new__(PooledCache)
        other._build(self.windows, self.pool, self.longest, self._positions, self._size)
        other.record_past, other.offload = self.record_past, self.offload
        if self.batch is not None:
            other._join(self.batch.fork())
        return other

    def idle(self) -> None:
        """Until it is used again the pool may move it to the host, when there is no room otherwise."""
        if self.batch is not None:
            self.batch.idle()

    def evict(self) -> None:
        """Its pages go to the host, as far as no other cache shares them; whatever uses it next brings it back."""
        if self.batch is not None:
            self.batch.evict()

    def prefetch(self) -> None:
        """What is on the host begins to come back, beside what the device is doing."""
        if self.batch is not None:
            self.batch.pool.prefetch(self.batch.sequences)

    def __deepcopy__(self, memo: dict[int, Any]) -> PooledCache:
        return self.fork()

    def crop(self, tokens_to_remove: int) -> None:
        """The last -tokens_to_remove tokens go, and what lies behind the windows."""
        tokens_to_remove = int(tokens_to_remove)  # some transformers count in a tensor
        if tokens_to_remove > 0:
            raise PoolError("crop takes minus the number of tokens to remove", f"crop(-{tokens_to_remove})")
        if self.batch is not None:
            self.batch.crop(-tokens_to_remove)
            for layer in self.layers:
                layer.empty = self.batch.length == 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes row beam_idx[i]. The host reads beam_idx, so it waits for the beams to be chosen."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.batch is not None:
            self.batch.select(torch.arange(self.batch.slate.batch)[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.batch is not None:
            self.batch.select([row for row in range(self.batch.slate.batch) for _ in range(repeats)])

    def activate_past_recording(self) -> None:
        """Tokens behind a window stay until the next `crop`, which may go back to them."""
        self.record_past = True
        if self.batch is not None:
            self.batch.keep = True

    def is_recording_past(self, layer_idx: int) -> bool:
        return self.record_past

    def release(self) -> None:
        """All pages go back to the pool; the cache is as new."""
        if self.batch is not None:
            self.batch.release()
        self.batch = None
        for layer in self.layers:
            layer.leave()

    def reset(self) -> None:
        self.release()
