"""Decode over a pool's pages, in random order, as kernels: against our own kernel over the same keys in one piece.

    page table[b, j // PAGE] holds key j of sequence b, every KV head of it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..pool.formats import PAIRS, Format, dequantize, quantize
from .attentions import DENSE, POOL, Attention, K
from .bars import Bar, Limit

PAGE = 64


@dataclass(frozen=True)
class Stored:
    """k [P, Hkv, PAGE, D] and v, as flashmla::attend_paged takes them, their scales, and the table [B, N]."""

    k: Tensor
    v: Tensor
    k_scales: Tensor | None
    v_scales: Tensor | None
    table: Tensor

    def bounds(self) -> Tensor:
        """The greatest of k and of -k [P, Hkv, 2, D]."""
        return torch.stack([self.k.amax(2), (-self.k).amax(2)], 2)


def stored(k: Tensor, v: Tensor, format: str) -> tuple[Stored, Tensor, Tensor]:
    """k, v [B, Hkv, S, .] in pages; and the numbers that these hold."""
    count = -(-k.shape[2] // PAGE)
    table = torch.randperm(len(k) * count, device=k.device).view(len(k), count)
    (k_values, k_scales, k), (v_values, v_scales, v) = (
        _encoded(x, kind, keys=x is k) for x, kind in zip((k, v), PAIRS[format], strict=True))
    k_scales, v_scales = (None if x is None else _in_pages(x, table) for x in (k_scales, v_scales))
    return Stored(_in_pages(k_values, table), _in_pages(v_values, table), k_scales, v_scales, table.int()), k, v


def _encoded(x: Tensor, kind: Format, keys: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """What lies in the pages, its scales, what they say; sequence by sequence, for the way there is in float32."""
    if kind.storage is None:
        return x, None, x
    group = kind.group(x.shape[3], keys)
    parts = [quantize(each, kind.name, group) for each in x]
    values, scales = (torch.stack(part) for part in zip(*parts, strict=True))
    return values, scales, torch.stack([dequantize(*part, kind.name, x.dtype) for part in parts])


def _in_pages(x: Tensor, table: Tensor) -> Tensor:
    """x [B, Hkv, S, D] as pages [P, Hkv, PAGE, D]."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, table.shape[1] * PAGE - x.shape[2]))
    found = x.new_empty((table.numel(), x.shape[1], PAGE, x.shape[3]))
    found[table.flatten()] = padded.unflatten(2, (-1, PAGE)).transpose(1, 2).flatten(0, 1)
    return found


def _step(batch: int, kilo: int, *bars: Bar | Limit, format: str = "plain") -> Attention:
    kind = "" if format == "plain" else f"{format} "
    return Attention(f"decode B={batch} {kilo}k, {kind}pages", POOL, batch, 1, kilo * K, bars=bars, format=format)


_EQUAL = Limit(DENSE, 0.98, least=True)
PAGED = (
    *(_step(batch, kilo, _EQUAL) for batch, kilo in ((1, 2), (1, 8), (1, 32), (1, 128), (16, 2), (16, 8), (16, 32), (64, 8))),
    _step(16, 32, Limit(DENSE, 1.7, least=True), format="int8"),
    *(_step(16, 32, format=format) for format in ("fp8", "k8v4", "k6v4", "int4")),
    _step(16, 8, format="int8"),
)
"""The eight points of decode, and what smaller pages save."""
