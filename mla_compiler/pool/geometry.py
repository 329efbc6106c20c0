"""What a page is made of, and how many pages a size in bytes, tokens or free memory buys."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..errors import PoolError
from .formats import PAIRS, Format


@dataclass(frozen=True)
class Geometry:
    """A page: `page` tokens of `layers` layers, each k [kv_heads, page, k_dim] and v [kv_heads, page, v_dim], in `format`.
    `bounds`: with the least and greatest of its keys (`bounds`), [kv_heads, 2, k_dim].

    `dtype` is that of the keys and values that go in and come out.
    """

    layers: int
    kv_heads: int
    k_dim: int
    v_dim: int
    dtype: torch.dtype
    device: torch.device
    page: int = 64
    format: str = "plain"
    bounds: bool = False

    def __post_init__(self) -> None:
        if self.format not in PAIRS:
            raise PoolError(f"a pool's format is one of {', '.join(PAIRS)}; found {self.format!r}")
        for name in ("layers", "kv_heads", "k_dim", "v_dim", "page"):
            if getattr(self, name) < 1:
                raise PoolError(f"a pool's {name} is at least 1; found {getattr(self, name)}")
        for stored, dim in zip(self.stored, (self.k_dim, self.v_dim), strict=True):
            if not stored.fits(dim):
                raise PoolError(f"{stored.name} fills bytes with {stored.bits} bits a channel; found {dim} channels")

    @property
    def stored(self) -> tuple[Format, Format]:
        """Of keys and of values."""
        return PAIRS[self.format]

    def __str__(self) -> str:
        """`32 layers, 8 x 128, bfloat16, pages of 64 in int8`."""
        dims = f"{self.k_dim}" if self.k_dim == self.v_dim else f"({self.k_dim}, {self.v_dim})"
        kind = "" if self.format == "plain" else f" in {self.format}"
        dtype = str(self.dtype).removeprefix("torch.")
        bounded = " with bounds" if self.bounds else ""
        return f"{self.layers} layers, {self.kv_heads} x {dims}, {dtype}, pages of {self.page}{kind}{bounded}"

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers of a page, scales among them."""
        k, v = self.stored
        row = k.row_bytes(self.k_dim, self.dtype, keys=True) + v.row_bytes(self.v_dim, self.dtype, keys=False)
        return self.layers * self.kv_heads * row

    @property
    def page_bytes(self) -> int:
        bounds = self.layers * self.kv_heads * 2 * self.k_dim * self.dtype.itemsize if self.bounds else 0
        return self.page * self.token_bytes + bounds

    def pages_for(self, tokens: int) -> int:
        """The pages that hold this many tokens of one sequence."""
        return -(-tokens // self.page)

    def check(self, k: torch.Tensor, v: torch.Tensor, batch: int, tokens: int) -> None:
        """Raises PoolError unless k is [batch, H, tokens, k_dim], v [batch, H, tokens, v_dim], of this dtype and device."""
        for name, x, dim in (("k", k, self.k_dim), ("v", v, self.v_dim)):
            wanted = [batch, self.kv_heads, tokens, dim], self.dtype, self.device
            found = list(x.shape), x.dtype, x.device
            if wanted != found:
                raise PoolError(f"the pool takes {name} {wanted}; found {found}")


def pages_bought(geometry: Geometry, nbytes: int | None, tokens: int | None, fraction: float | None) -> int:
    """Pages in `nbytes`, pages that hold `tokens`, or pages in a fraction (0, 1] of the device's free memory now.

    Raises PoolError unless exactly one is given and it buys a page.
    """
    if sum(size is not None for size in (nbytes, tokens, fraction)) != 1:
        raise PoolError("a pool has one size", "give one of nbytes=, tokens=, fraction= (of the memory free now)")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise PoolError(f"fraction is above 0 and at most 1; found {fraction}")
        nbytes = int(fraction * free_bytes(geometry.device))
    count = geometry.pages_for(tokens) if tokens is not None else (nbytes or 0) // geometry.page_bytes
    if count < 1:
        raise PoolError(f"that size buys no page; a page of {geometry.page} tokens takes {geometry.page_bytes} bytes")
    return count


def exactly(device: torch.device | str) -> torch.device:
    """The device with its number, as tensors on it give it."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody holds now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
