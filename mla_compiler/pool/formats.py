"""x[.., c]  ~  values[.., c] * scales[.., c // group]        how keys and values lie in pages

    plain   as they come, without scales
    fp8     e4m3
    int8    -127 .. 127
    int4    -8 .. 7, two channels a byte, the even one in the low half
    k8v4    keys in int8, values in int4: rounding of keys costs most, for softmax takes their products to the exponent

A scale stands for a token and head, or in int4 keys for 32 channels of it, and in wide heads for 64 of int8 keys and of
k8v4's values: single channels of keys are large in every token.
Scales of heads are float32, for a kernel copies no fewer than 4 bytes at a time; those of groups, several beside each other,
float16. The values are rounded against the scale as it is stored, so its own rounding costs nothing.
Values are kept in torch.int8 or torch.uint8, whatever they mean, because every operator moves those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_FP8: Final = torch.float8_e4m3fn


@dataclass(frozen=True)
class Format:
    """`storage` of the values, `packed` channels to an element; a scale for a head, or for `key_group` channels of keys, and
    `value_group` of values, that have more than `whole` of them."""

    name: str
    storage: torch.dtype | None
    packed: int = 1
    key_group: int = 0
    value_group: int = 0
    whole: int = 0

    def group(self, dim: int, keys: bool) -> int:
        """Channels of one scale, of `dim` in all; 0 without scales."""
        if self.storage is None:
            return 0
        group = self.key_group if keys else self.value_group
        return group if group and dim > self.whole and dim % group == 0 else dim

    def row_bytes(self, dim: int, dtype: torch.dtype, keys: bool) -> int:
        """Bytes of one token of one head, scales among them; `dtype` is that of the model."""
        if self.storage is None:
            return dim * dtype.itemsize
        groups = dim // self.group(dim, keys)
        return dim // self.packed + groups * scale_dtype(groups).itemsize


FORMATS: Final = {
    "plain": Format("plain", None), "fp8": Format("fp8", torch.uint8),
    "int8": Format("int8", torch.int8, key_group=64, whole=128),
    "int4": Format("int4", torch.uint8, packed=2, key_group=32),
}

PAIRS: Final = {name: (format, format) for name, format in FORMATS.items()} | {
    "k8v4": (FORMATS["int8"], Format("int4", torch.uint8, packed=2, value_group=64, whole=128)),
}
"""What a pool may be asked for, and the formats of its keys and of its values."""


def scale_dtype(groups: int) -> torch.dtype:
    """Of the scales of a row in so many groups of channels."""
    return torch.float32 if groups == 1 else torch.float16


def quantize(x: Tensor, format: str, group: int) -> tuple[Tensor, Tensor]:
    """x [..., D] -> values [..., D or D / 2] and scales [..., D / group]."""
    grouped = x.float().unflatten(-1, (-1, group))
    if format == "int4":
        least, most = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        extreme, ends_at = torch.where(most > -least, most, least), -8.0  # the number furthest from 0 becomes -8 exactly
    else:
        extreme, ends_at = grouped.abs().amax(-1, keepdim=True), 448.0 if format == "fp8" else 127.0
    scales = (extreme / ends_at).to(scale_dtype(grouped.shape[-2]))
    exact = scales.float()
    scaled = (grouped / torch.where(exact == 0, 1.0, exact)).flatten(-2)
    return _stored(scaled, format), scales.squeeze(-1)


def _stored(scaled: Tensor, format: str) -> Tensor:
    if format == "fp8":
        return scaled.clamp(-448.0, 448.0).to(_FP8).view(torch.uint8)
    if format == "int8":
        return scaled.round().clamp(-127.0, 127.0).to(torch.int8)
    nibbles = (scaled.round().clamp(-8.0, 7.0) + 8.0).to(torch.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def dequantize(values: Tensor, scales: Tensor, format: str, dtype: torch.dtype) -> Tensor:
    """What `quantize` made, as numbers of `dtype`; the product is taken in float32."""
    if format == "fp8":
        numbers = values.view(_FP8).float()
    elif format == "int8":
        numbers = values.float()
    else:
        numbers = torch.stack([values & 15, values >> 4], -1).flatten(-2).float() - 8.0
    group = numbers.shape[-1] // scales.shape[-1]
    return (numbers.unflatten(-1, (-1, group)) * scales.float().unsqueeze(-1)).flatten(-2).to(dtype)
