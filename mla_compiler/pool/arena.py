"""The memory itself: for each layer k [P, kv_heads, page, k_dim], v likewise, the scales of both, and the bounds of keys;
on one device.

The tokens of one head of one page lie together: what a kernel loads at a time is one piece of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import formats
from .formats import Format
from .geometry import Geometry
from .ops import POOL


@dataclass(eq=False)
class Store:
    """One layer. The tensors have a fixed address, which a CUDA graph may write to, until the arena grows."""

    k: Tensor
    v: Tensor
    k_scales: Tensor | None
    v_scales: Tensor | None
    formats: tuple[str, str]
    dtype: torch.dtype
    groups: tuple[int, int]
    bounds: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [x for x in (self.k, self.v, self.k_scales, self.v_scales, self.bounds) if x is not None]

    def append(self, table: Tensor, lengths: Tensor, k: Tensor, v: Tensor) -> None:
        """k [B, H, T, k_dim] and v [B, H, T, v_dim] as tokens lengths[b] ... of each row. Nothing flows back through them."""
        planes = (self.k, self.v), (self.k_scales, self.v_scales), self.formats, self.groups
        for x, store, scales, format, group in zip((k, v), *planes, strict=True):
            bounds = self.bounds if store is self.k else None
            if scales is None:
                POOL.pool_append(store, table, lengths, x)
            else:
                values, scale = POOL.pool_quantize(x.detach(), format, group)
                POOL.pool_append(store, table, lengths, values)
                POOL.pool_append(scales, table, lengths, scale)
                x = x if bounds is None else formats.dequantize(values, scale, format, self.dtype)
            if bounds is not None:
                POOL.pool_bound(bounds, table, lengths, x, store.shape[2])

    def view(self, table: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, H, N * page, D] of every token, in order: `pool_view`."""
        return (
            POOL.pool_view(self.k, self.k_scales, table, lengths, self.formats[0], self.dtype, self.bounds),
            POOL.pool_view(self.v, self.v_scales, table, lengths, self.formats[1], self.dtype),
        )

    def read(self, table: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Copies of tokens [start, stop): k [B, H, stop - start, k_dim] and v."""
        page = self.k.shape[2]
        first, last = start // page, -(-stop // page)
        within = table[:, first:last].long()
        return (
            self._read(self.k, self.k_scales, self.formats[0], within, start - first * page, stop - first * page),
            self._read(self.v, self.v_scales, self.formats[1], within, start - first * page, stop - first * page),
        )

    def _read(self, store: Tensor, scales: Tensor | None, format: str, pages: Tensor, start: int, stop: int) -> Tensor:
        x = store[pages]                                                                     # [B, N, H, page, D]
        if scales is not None:
            x = formats.dequantize(x, scales[pages], format, self.dtype)
        return x.transpose(1, 2).flatten(2, 3)[:, :, start:stop]


class Arena:
    """Storage for `count` pages. Everything here is enqueued on the current stream; nothing waits for the device."""

    def __init__(self, geometry: Geometry, count: int) -> None:
        self.geometry = geometry
        self.stores = [self._store(count) for _ in range(geometry.layers)]

    @torch.inference_mode(False)  # a pool first used under inference_mode serves others too
    def _store(self, count: int) -> Store:
        g = self.geometry
        kinds = g.stored
        groups = kinds[0].group(g.k_dim, keys=True), kinds[1].group(g.v_dim, keys=False)
        (k, k_scales), (v, v_scales) = (
            self._plane(count, *one) for one in zip((g.k_dim, g.v_dim), kinds, groups, strict=True)
        )
        return Store(k, v, k_scales, v_scales, (kinds[0].name, kinds[1].name), g.dtype, groups, self._bounds(count))

    def _bounds(self, count: int) -> Tensor | None:
        g = self.geometry
        if not g.bounds:
            return None
        bounds = torch.empty(count, g.kv_heads, 2, g.k_dim, dtype=g.dtype, device=g.device)
        torch._dynamo.mark_static_address(bounds, guard=False)
        return bounds

    def _plane(self, count: int, dim: int, kind: Format, group: int) -> tuple[Tensor, Tensor | None]:
        g = self.geometry
        lead = count, g.kv_heads, g.page
        plane = torch.empty(*lead, kind.elements(dim), dtype=kind.storage or g.dtype, device=g.device)
        scales = torch.empty(*lead, dim // group, dtype=formats.scale_dtype(dim // group), device=g.device) if group else None
        for x in (plane, scales):
            if x is not None:
                torch._dynamo.mark_static_address(x, guard=False)
        return plane, scales

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for store in self.stores for x in store.tensors())

    def grow(self, count: int) -> None:
        """Room for `count` pages, the present ones copied over, a layer at a time."""
        for store in self.stores:
            larger = self._store(count)
            for new, old in zip(larger.tensors(), store.tensors(), strict=True):
                new[: len(old)].copy_(old)
            store.k, store.v, store.k_scales, store.v_scales = larger.k, larger.v, larger.k_scales, larger.v_scales
            store.bounds = larger.bounds

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Whole pages, in every layer."""
        if not sources:
            return
        on_gpu = self.geometry.device.type == "cuda"
        pairs = torch.tensor([sources, targets], pin_memory=on_gpu).to(self.geometry.device, non_blocking=True)
        for store in self.stores:
            for x in store.tensors():
                POOL.pool_copy(x, pairs[0], pairs[1])
