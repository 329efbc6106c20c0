"""The memory itself: k [layers, pages, page, kv_heads, k_dim] and v likewise, on one device."""

from __future__ import annotations

import torch

from .geometry import Geometry


class Arena:
    """Storage for `count` pages. Everything here is enqueued on the current stream; nothing waits for the device."""

    def __init__(self, geometry: Geometry, count: int) -> None:
        self.geometry = geometry
        self.k, self.v = self._empty(count)

    @torch.inference_mode(False)  # a pool first used under inference_mode serves others too
    def _empty(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = self.geometry
        return (
            torch.empty(g.layers, count, g.page, g.kv_heads, g.k_dim, dtype=g.dtype, device=g.device),
            torch.empty(g.layers, count, g.page, g.kv_heads, g.v_dim, dtype=g.dtype, device=g.device),
        )

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def grow(self, count: int) -> None:
        """Room for `count` pages, the present ones copied over. Both arenas stand for as long as the copy takes."""
        k, v = self._empty(count)
        k[:, : self.k.shape[1]].copy_(self.k)
        v[:, : self.v.shape[1]].copy_(self.v)
        self.k, self.v = k, v

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Whole pages, in every layer."""
        for store in (self.k, self.v):
            for source, target in zip(sources, targets, strict=True):
                store[:, target].copy_(store[:, source])

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """k [B, H, T, k_dim] and v [B, H, T, v_dim] into slots [B, T] of a layer. Nothing flows back through them."""
        self.k[layer].flatten(0, 1)[slots] = k.detach().transpose(1, 2)
        self.v[layer].flatten(0, 1)[slots] = v.detach().transpose(1, 2)

    def read(self, layer: int, pages: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of tokens [start, stop), counted from the first of pages [B, N]: [B, H, stop - start, k_dim] and v_dim."""
        g = self.geometry
        within = pages[:, start // g.page : g.pages_for(stop)]
        first = start // g.page * g.page
        k, v = (store[layer][within].flatten(1, 2)[:, start - first : stop - first] for store in (self.k, self.v))
        return k.transpose(1, 2), v.transpose(1, 2)
