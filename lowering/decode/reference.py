"""The truth of `merge`, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(parts: Tensor, lse: Tensor) -> Tensor:
    """parts [P, ..., DV], each normalised, and their lse [P, ...] in units of log2 -> [..., DV] float64."""
    total = torch.logsumexp(lse.double() * torch.log(torch.tensor(2.0, dtype=torch.float64)), 0)
    weight = torch.exp2(lse.double() - total / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    return (weight.nan_to_num(0)[..., None] * parts.double()).sum(0)
