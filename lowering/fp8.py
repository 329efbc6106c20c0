"""c[r] ~ e4m3[r] * scale[r // 128]     scale = max |c| of its 128 channels / 448: a token of R + R/32 + 2 P bytes

    [ e4m3 latent, R bytes | float32 scales, 4 R/128 bytes | rope in 16 bits, 2 P bytes ]      656 for R = 512, P = 64

The layout that the literature keeps DeepSeek's latents in; with bf16 they take 1152. Rows are whole 16 bytes. The error of a
channel is at most 2^-4 of it, or 2^-10 of a scale. A group that is not finite comes back not finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OperandError
from ..ops import GROUP, packed_width
from .machine import Machine

LARGEST = 448.0
"""Of e4m3."""
LEAST_SCALE = 2.0**-100
"""So that a group of zeros divides by no zero."""
ROPE_DTYPES = (torch.float16, torch.bfloat16)
ROW = 16
"""Bytes: rows are multiples of it, and begin at one."""


@dataclass(frozen=True)
class Fields:
    """Views of packed [..., R + R/32 + 2 P]: codes [..., R] uint8, scales [..., R/128] float32, rope [..., P] in 16 bits."""

    codes: Tensor
    scales: Tensor
    rope: Tensor


def quantize_latent(latent: Tensor, rope: Tensor) -> Tensor:
    """latent [..., R] and rope [..., P] in 16 bits -> uint8 [..., R + R/32 + 2 P]. Raises OperandError."""
    _check(latent, rope)
    groups = latent.float().unflatten(-1, (-1, GROUP))                                      # [..., R/128, 128]
    scales = (groups.abs().amax(-1) / LARGEST).clamp(min=LEAST_SCALE)                       # [..., R/128]
    codes = (groups / scales[..., None]).to(torch.float8_e4m3fn).flatten(-2)
    return torch.cat([x.contiguous().view(torch.uint8) for x in (codes, scales, rope)], -1)


def fields(packed: Tensor, rank: int, dtype: torch.dtype) -> Fields:
    """Where the parts of packed lie; `dtype` is rope's."""
    ends = rank, rank + rank // GROUP * 4
    return Fields(packed[..., :ends[0]], packed[..., ends[0]:ends[1]].view(torch.float32), packed[..., ends[1]:].view(dtype))


def dequantize(packed: Tensor, rank: int, dtype: torch.dtype, working: torch.dtype) -> tuple[Tensor, Tensor]:
    """latent [..., R], rounded once, and rope [..., P], both in the dtype `working`; rope is held in `dtype`."""
    found = fields(packed, rank, dtype)
    exact = torch.promote_types(working, torch.float32)
    codes = found.codes.view(torch.float8_e4m3fn).to(exact).unflatten(-1, (-1, GROUP))
    return (codes * found.scales[..., None].to(exact)).flatten(-2).to(working), found.rope.to(working)


def conversion(machine: Machine) -> int:
    """How a kernel reads e4m3: 2, by the target; 1, by the bits of float16, where it has none, or AMD's other e4m3."""
    return 2 if machine.backend == "cuda" and machine.capability >= (8, 9) else 1


def check_packed(packed: Tensor, rank: int, width: int, dtype: torch.dtype) -> None:
    """Packed latents of rank R and rope P, for queries of `dtype`. Raises OperandError."""
    wanted = packed_width(rank, width)
    if dtype not in ROPE_DTYPES:
        raise OperandError(f"attend_latent: beside packed latents q_latent and q_rope have 16 bits; found {dtype}")
    if rank % GROUP or wanted % ROW or packed.shape[-1] != wanted:
        raise OperandError(
            f"attend_latent: packed latents of rank {rank}, a multiple of {GROUP}, and rope {width} have {wanted} bytes, "
            f"a multiple of {ROW}; found {list(packed.shape)}")
    strides = [stride for stride, size in zip(packed.stride()[:-1], packed.shape, strict=False) if size > 1]
    if packed.stride(-1) != 1 or any(stride % ROW for stride in (*strides, packed.storage_offset())):
        raise OperandError(f"attend_latent: rows of packed latents begin at multiples of {ROW} bytes; found strides "
                           f"{packed.stride()} from {packed.storage_offset()}")


def _check(latent: Tensor, rope: Tensor) -> None:
    rank, width = latent.shape[-1], rope.shape[-1]
    if latent.shape[:-1] != rope.shape[:-1] or rank % GROUP or packed_width(rank, width) % ROW or not rank or not width:
        raise OperandError(
            f"quantize_latent: latent is [..., R] and rope [..., P], R a multiple of {GROUP} and R + R/32 + 2 P of {ROW}; "
            f"found {list(latent.shape)} and {list(rope.shape)}")
    if rope.dtype not in ROPE_DTYPES or not latent.is_floating_point() or latent.device != rope.device:
        raise OperandError(
            f"quantize_latent: latent is real, rope float16 or bfloat16 on the same device; found {latent.dtype} on "
            f"{latent.device} and {rope.dtype} on {rope.device}")
