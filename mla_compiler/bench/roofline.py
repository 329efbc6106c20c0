"""What this machine can do, measured in this run: a large copy, and a large product.

    copy     2 x bytes / time, TB/s, read and write        matmul   2 n³ / time, TFLOP/s, of the working dtype
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .measure import per_call


@dataclass(frozen=True)
class Roofline:
    """copy: TB/s; matmul: TFLOP/s."""

    copy: float
    matmul: float

    def __str__(self) -> str:
        return f"copy {self.copy:.3g} TB/s; matmul {self.matmul:.4g} TFLOP/s"

    @classmethod
    def measured(cls, device: str, dtype: torch.dtype, repeats: int, gib: float, n: int) -> Roofline:
        """Of a copy of `gib` GiB and a product of two [n, n] matrices."""
        source = torch.empty(int(gib * 2**30), dtype=torch.uint8, device=device).fill_(1)
        target = torch.empty_like(source)
        copy_us = per_call([lambda: target.copy_(source)], device, repeats).us
        a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
        matmul_us = per_call([lambda: a @ b], device, repeats).us
        return cls(2e-6 * source.numel() / copy_us, 2e-6 * n**3 / matmul_us)
