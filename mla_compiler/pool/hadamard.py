"""x  =>  x H        H[i, j] = (-1)^popcount(i & j) / sqrt(n)  over blocks of n channels, the largest power of two in D

Hadamard's matrix is orthogonal and symmetric: (q H) . (k H) = q . k, and H H = 1. What is in one channel comes to lie in all of
its block.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor) -> Tensor:
    """x [..., D] => x H, in its own dtype; twice is x again."""
    block = rotated_block(x.shape[-1])
    i = torch.arange(block, device=x.device)
    parity = i[:, None] & i
    for shift in (8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    matrix = (1 - 2 * (parity & 1)).to(x.dtype) * block**-0.5
    return (x.unflatten(-1, (-1, block)) @ matrix).flatten(-2)


def rotated_block(dim: int) -> int:
    """Channels that are rotated together: the largest power of two that divides `dim`."""
    return dim & -dim
