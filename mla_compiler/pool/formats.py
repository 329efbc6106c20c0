"""x[.., c]  ~  values[.., c] * scales[.., c // group]        how keys and values lie in pages

    plain   as they come, without scales
    fp8     e4m3
    int8    -127 .. 127
    int6    -32 .. 31, rotated: the upper four bits of all channels as in int4, then the lower two, four channels a byte
    int4    -8 .. 7, rotated; two channels a byte, the even one in the low half
    k8v4    keys in int8, values in int4: rounding of keys costs most, for softmax takes their products to the exponent
    k6v4    keys in int6, values in int4

Rotated: x H is kept in the place of x (`hadamard`): single channels of keys are large in every token and would set the step of
all; in x H they are spread over all.
A scale stands for a token and head, or in int4 and int6 keys for 32 channels of it, and in wide heads for 64 of int8 keys.
Scales of heads are float32, for a kernel copies no fewer than 4 bytes at a time; those of groups, several beside each other,
float16. The values are rounded against the scale as it is stored, so its own rounding costs nothing.
Values are kept in torch.int8 or torch.uint8, whatever they mean, because every operator moves those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .hadamard import rotate

_FP8: Final = torch.float8_e4m3fn


@dataclass(frozen=True)
class Format:
    """`storage` of the values, `bits` of it for a channel (0: as they come); a scale for a head, or for `key_group` channels of
    keys that have more than `whole` of them."""

    name: str
    storage: torch.dtype | None
    bits: int = 0
    key_group: int = 0
    whole: int = 0
    rotated: bool = False

    def elements(self, dim: int) -> int:
        """Elements of storage that hold so many channels."""
        return dim * self.bits // 8 if self.bits else dim

    def channels(self, elements: int) -> int:
        """Channels that lie in so many elements."""
        return elements * 8 // self.bits if self.bits else elements

    def fits(self, dim: int) -> bool:
        """Whether so many channels fill whole bytes."""
        return self.channels(self.elements(dim)) == dim and dim * self.bits % 8 == 0

    def group(self, dim: int, keys: bool) -> int:
        """Channels of one scale, of `dim` in all; 0 without scales."""
        if self.storage is None:
            return 0
        group = self.key_group if keys else 0
        return group if group and dim > self.whole and dim % group == 0 else dim

    def row_bytes(self, dim: int, dtype: torch.dtype, keys: bool) -> int:
        """Bytes of one token of one head, scales among them; `dtype` is that of the model."""
        if self.storage is None:
            return dim * dtype.itemsize
        groups = dim // self.group(dim, keys)
        return self.elements(dim) + groups * scale_dtype(groups).itemsize


FORMATS: Final = {
    "plain": Format("plain", None), "fp8": Format("fp8", torch.uint8, 8),
    "int8": Format("int8", torch.int8, 8, key_group=64, whole=128),
    "int6": Format("int6", torch.uint8, 6, key_group=32, rotated=True),
    "int4": Format("int4", torch.uint8, 4, key_group=32, rotated=True),
}

PAIRS: Final = {name: (format, format) for name, format in FORMATS.items()} | {
    "k8v4": (FORMATS["int8"], FORMATS["int4"]), "k6v4": (FORMATS["int6"], FORMATS["int4"]),
}
"""What a pool may be asked for, and the formats of its keys and of its values."""


def pair_of(keys: str, values: str) -> str | None:
    """The name of a pair; None where there is none of these two."""
    return next((name for name, (k, v) in PAIRS.items() if (k.name, v.name) == (keys, values)), None)


def scale_dtype(groups: int) -> torch.dtype:
    """Of the scales of a row in so many groups of channels."""
    return torch.float32 if groups == 1 else torch.float16


def quantize(x: Tensor, format: str, group: int) -> tuple[Tensor, Tensor]:
    """x [..., D] -> values [..., D or D / 2] and scales [..., D / group]."""
    x = rotate(x.float()) if FORMATS[format].rotated else x.float()
    grouped = x.unflatten(-1, (-1, group))
    if format in ("int4", "int6"):
        least, most = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        # The number furthest from 0 becomes the least of the range exactly.
        extreme, ends_at = torch.where(most > -least, most, least), -8.0 if format == "int4" else -32.0
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
    if format == "int4":
        return _packed((scaled.round().clamp(-8.0, 7.0) + 8.0).to(torch.uint8), 4)
    codes = (scaled.round().clamp(-32.0, 31.0) + 32.0).to(torch.uint8)
    return torch.cat([_packed(codes >> 2, 4), _packed(codes & 3, 2)], -1)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """codes [..., D] of so many bits -> [..., D * bits / 8], the first in the low bits of a byte."""
    count = 8 // bits
    byte = codes[..., 0::count]
    for at in range(1, count):
        byte = byte | (codes[..., at::count] << (bits * at))
    return byte


def _unpacked(stored: Tensor, bits: int) -> Tensor:
    """What `_packed` packed."""
    return torch.stack([(stored >> at) & ((1 << bits) - 1) for at in range(0, 8, bits)], -1).flatten(-2)


def dequantize(values: Tensor, scales: Tensor, format: str, dtype: torch.dtype) -> Tensor:
    """What `quantize` made, as numbers of `dtype`; the product is taken in float32, or in float64 if that is asked for."""
    wide = torch.promote_types(dtype, torch.float32)
    if format == "fp8":
        numbers = values.view(_FP8).to(wide)
    elif format == "int8":
        numbers = values.to(wide)
    elif format == "int4":
        numbers = _unpacked(values, 4).to(wide) - 8.0
    else:
        upper = values.shape[-1] * 2 // 3
        codes = (_unpacked(values[..., :upper], 4) << 2) | _unpacked(values[..., upper:], 2)
        numbers = codes.to(wide) - 32.0
    group = numbers.shape[-1] // scales.shape[-1]
    x = (numbers.unflatten(-1, (-1, group)) * scales.to(wide).unsqueeze(-1)).flatten(-2)
    return (rotate(x) if FORMATS[format].rotated else x).to(dtype)
