"""SDPA, one query head at a time: float32 with grouped heads at 32k tokens, without the [H, S, S] logits

    out[:, h] = sdpa(q[:, h], k[:, h // group], v[:, h // group])

With enable_gqa, float32 falls to the kernel that writes every logit (128 GiB for 32 heads of 32k); one head at a time is
what the memory-efficient kernel serves.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OneHeadAtATime(TorchFunctionMode):
    """While active, F.scaled_dot_product_attention runs head by head, to the same result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        return by_head(*args, **given) if func is F.scaled_dot_product_attention else func(*args, **given)


def by_head(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:
    """query [B, H, T, D], key and value [B, H/group, S, D], attn_mask [..., H or 1, T, S] -> [B, H, T, Dv]."""
    group = query.shape[1] // key.shape[1]
    per_head = attn_mask is not None and attn_mask.dim() >= 3 and attn_mask.shape[-3] > 1

    def one(h: int) -> Tensor:
        at = h // group
        mask = attn_mask.narrow(-3, h, 1) if per_head and attn_mask is not None else attn_mask
        return F.scaled_dot_product_attention(
            query[:, h:h + 1], key[:, at:at + 1], value[:, at:at + 1], mask, dropout_p, is_causal, scale=scale)

    return torch.cat([one(h) for h in range(query.shape[1])], 1)
