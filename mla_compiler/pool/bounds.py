"""bounds[p, h, 0, :] >= k >= -bounds[p, h, 1, :]        of every key k that head h of page p has been given since its first

    q . k  <=  sum_d max(q_d greatest_d, q_d least_d)  =  relu(q) . bounds[p, h, 0]  +  relu(-q) . bounds[p, h, 1]

The greatest of k and of -k: both only ever grow, and the bound of q . k is one product with 2 D channels. The first token of a
page begins its bounds anew. Tokens that are taken off the end leave them as they are, and a bound of more keys bounds fewer.

Shapes: bounds [P, H, 2, D] in the dtype of the model; table [B, N] int32; lengths [B] int32; k [B, H, T, D], as the pages will
show it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bound(bounds: Tensor, table: Tensor, lengths: Tensor, k: Tensor, page: int) -> None:
    """k as the tokens lengths[b] ... lengths[b] + T of each row of the table, in pages of `page` tokens.

    Each page that is touched is written once; where a row touches fewer than another, it writes its last one again, the same.
    """
    if k.shape[2] == 0:
        return
    tokens, first = k.shape[2], lengths.long()[:, None]                                        # [B, 1]
    own = first // page                                                                        # of the first token
    touched = torch.arange((tokens + page - 2) // page + 1, device=k.device)[None]             # [1, N]
    number = torch.minimum(own + touched, (first + tokens - 1) // page)                        # [B, N]
    begin = torch.maximum(number * page, first) - first                                        # first token in the page
    end = torch.minimum((number + 1) * page, first + tokens) - first
    at = begin[..., None] + torch.arange(torch.sym_min(page, tokens), device=k.device)         # [B, N, page]
    at = torch.minimum(at, end[..., None] - 1)                                                 # past the end the last again
    rows = torch.arange(len(k), device=k.device)[:, None, None]
    x = k.detach().transpose(1, 2)[rows, at]                                                   # [B, N, page, H, D]
    new = torch.stack([x.amax(2), (-x).amax(2)], 3).to(bounds.dtype)                           # [B, N, H, 2, D]
    pages = table.gather(1, number).long()
    pages = torch.where(pages < 0, len(bounds), pages)                                         # an error, as in pool_append
    begun = (number * page < first)[..., None, None, None]
    old = bounds[pages.clamp(max=len(bounds) - 1)]
    bounds[pages] = torch.where(begun, torch.maximum(old, new), new)
