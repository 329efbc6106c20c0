"""(spec, rank, rope, dtype, device)  =>  whether and which kernel serves flashmla::attend_latent. Imports no Triton."""

from __future__ import annotations

import torch

from ..ir import AttentionSpec, Reason

LARGEST_RANK, LARGEST_ROPE = 512, 128
"""Of the GPU kernels; the CPU takes any."""


def supports_latent(
    spec: AttentionSpec, rank: int, rope: int, dtype: torch.dtype, device_type: str, tokens: bool
) -> tuple[Reason, str] | None:
    """None if a kernel can be written for q_latent [.., rank], q_rope [.., rope], else the reason and what was found."""
    from .select import supports

    if device_type == "cuda" and (rank > LARGEST_RANK or rope > LARGEST_ROPE):
        return Reason.HEAD_DIM, f"rank {rank} and rope {rope}, the largest are {LARGEST_RANK} and {LARGEST_ROPE}"
    return supports(spec, 1, 1, dtype, device_type)


def choose_latent(
    spec: AttentionSpec, q_latent: tuple[int, ...], rope: tuple[int, ...], tokens: int | None, dtype: torch.dtype,
    device: torch.device,
) -> tuple[str, str]:
    """Kernel family and configuration for q_latent [B, H, T, R], rope [B, S, P] and `tokens` keys a query, in words."""
    if device.type != "cuda":
        return "cpu", "latent" if tokens is None else "latent, tokens gathered"
    from . import gpu_latent
    from .machine import machine_of

    (batch, _, queries, _), (_, keys, width) = q_latent, rope
    shapes = [q_latent, (*q_latent[:3], width), (batch, keys, q_latent[3]), rope]
    given = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    chosen = None if tokens is None else torch.empty(batch, queries, tokens, dtype=torch.int64, device="meta")
    choice = gpu_latent.choose(spec, gpu_latent.Latents(given[0], given[1], given[2], given[3], chosen), machine_of(device))
    return choice.family, str(choice).removeprefix(f"{choice.family} ")
