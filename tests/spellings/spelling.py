"""softmax(f(scale q.kT) + mask) v, written by hand in as many ways as the choices below multiply to.

Every choice is a table of small functions; `Spelling` names one of each and `Spelling.__call__` is the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.spellings.masks import MASKS, Positions


@dataclass(frozen=True)
class Inputs:
    """q [B, T, H*D]; k, v [B, S, G*D] as projections give them; slopes, sinks [H]; bias [R, H] by distance.

    lengths [B]; documents [B, S]. `heads` H and `kv_heads` G.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor
    sinks: Tensor
    bias: Tensor
    lengths: Tensor
    documents: Tensor
    heads: int
    kv_heads: int

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating tensors in another dtype."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Inputs(**{n: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in fields.items()})

    @property
    def positions(self) -> Positions:
        return Positions(self.q.shape[1], self.k.shape[1], self.lengths, self.documents)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _repeat_expand(x: Tensor, group: int) -> Tensor:
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, group, length, width).reshape(batch, heads * group, length, width)


# How k and v [B, G, S, D] come to H heads, in layouts of 4 dimensions.
GROUPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "interleave": lambda x, group: x.repeat_interleave(group, dim=1),
    "expand": _repeat_expand,
    "index": lambda x, group: x[:, torch.arange(x.shape[1] * group) // group],
    "stack": lambda x, group: torch.stack([x] * group, dim=2).flatten(1, 2),
}

# Scores from q [.., T, D] and k [.., S, D]; without the scale.
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda q, k: torch.matmul(q, k.transpose(-1, -2)),
    "operator": lambda q, k: q @ k.mT,
    "einsum": lambda q, k: torch.einsum("...id,...jd->...ij", q, k),
    "keys_first": lambda q, k: (k @ q.mT).mT,
}

# Where the softmax scale goes: (before, between, after) the product.
SCALES: dict[str, Callable[[Tensor, Tensor, float, Callable], Tensor]] = {
    "after": lambda q, k, scale, product: product(q, k) * scale,
    "divide": lambda q, k, scale, product: product(q, k) / (1 / scale),
    "query": lambda q, k, scale, product: product(q * scale, k),
    "both": lambda q, k, scale, product: product(q * scale**0.5, k * scale**0.5),
    "keys": lambda q, k, scale, product: product(q, k * scale),
    "none": lambda q, k, scale, product: product(q, k),
}


def _least(x: Tensor) -> float:
    return torch.finfo(x.dtype).min


def _added(x: Tensor, visible: Tensor, low: float) -> Tensor:
    return x + torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, low)


# How a bool mask meets the scores x.
APPLIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fill_inf": lambda x, visible: x.masked_fill(~visible, float("-inf")),
    "fill_least": lambda x, visible: x.masked_fill(visible.logical_not(), _least(x)),
    "where_inf": lambda x, visible: torch.where(visible, x, float("-inf")),
    "where_least": lambda x, visible: torch.where(visible, x, torch.full([], _least(x), dtype=x.dtype)),
    "add_inf": lambda x, visible: _added(x, visible, float("-inf")),
    "add_least": lambda x, visible: _added(x, visible, _least(x)),
    "times_least": lambda x, visible: x + (1.0 - visible.to(x.dtype)) * _least(x),
}


def _spelled(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


def _spelled_amax(x: Tensor) -> Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e * e.sum(-1, keepdim=True).reciprocal()


SOFTMAXES: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda x: torch.softmax(x, dim=-1),
    "functional": lambda x: F.softmax(x, -1),
    "module": nn.Softmax(dim=-1),
    "float32": lambda x: F.softmax(x, dim=-1, dtype=torch.float32).to(x.dtype),
    "cast": lambda x: torch.softmax(x.float(), dim=-1).type_as(x),
    "spelled": _spelled,
    "spelled_amax": _spelled_amax,
    "logsumexp": lambda x: torch.exp(x - torch.logsumexp(x, -1, keepdim=True)),
    "log_softmax": lambda x: F.log_softmax(x, -1).exp(),
    "logarithm": lambda x: torch.exp(x - torch.log(x.exp().sum(-1, keepdim=True))),
    "dropout": lambda x: F.dropout(torch.softmax(x, dim=-1), p=0.1, training=False),
}


def _distances(inputs: Inputs) -> Tensor:
    return inputs.positions.j - inputs.positions.i


def _bucketed(x: Tensor, inputs: Inputs) -> Tensor:
    """Swin and T5: a learned value by clamped distance."""
    buckets = _distances(inputs).clamp(-3, 3) + 3
    return x + inputs.bias[buckets].permute(2, 0, 1)


# What else is done to the scores x [B, H, T, S], before the mask.
EXTRAS: dict[str, Callable[[Tensor, Inputs], Tensor]] = {
    "none": lambda x, inputs: x,
    "softcap": lambda x, inputs: 5.0 * torch.tanh(x / 5.0),
    "alibi": lambda x, inputs: x + inputs.slopes[:, None, None] * _distances(inputs),
    "alibi_keys": lambda x, inputs: x + inputs.slopes.view(-1, 1, 1) * inputs.positions.j,
    "table": _bucketed,
    "softcap_alibi": lambda x, inputs: EXTRAS["alibi"](EXTRAS["softcap"](x, inputs), inputs),
}


@dataclass(frozen=True)
class Spelling:
    """One program. `layout`: 4d [B, H, T, D], 3d [B*H, T, D], or 5d [B, G, H/G, T, D] with k broadcast over groups."""

    layout: str = "4d"
    group: str = "expand"
    product: str = "matmul"
    scale: str = "after"
    extra: str = "none"
    mask: str = "none"
    apply: str = "fill_inf"
    softmax: str = "torch"
    sinks: bool = False

    def __call__(self, inputs: Inputs) -> Tensor:
        """out [B, T, H*D]."""
        q, k, v = self._operands(inputs)
        scores = SCALES[self.scale](q, k, k.shape[-1] ** -0.5, PRODUCTS[self.product])
        shape = scores.shape
        batch, queries, _ = inputs.q.shape
        scores = EXTRAS[self.extra](scores.reshape(batch, inputs.heads, queries, -1), inputs)
        weights = self._weights(self._masked(scores, inputs), inputs)
        out = weights.reshape(shape) @ v
        return out.reshape(batch, inputs.heads, queries, -1).transpose(1, 2).reshape(batch, queries, -1)

    def _operands(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        group = inputs.heads // inputs.kv_heads
        q, k, v = _split(inputs.q, inputs.heads), _split(inputs.k, inputs.kv_heads), _split(inputs.v, inputs.kv_heads)
        if self.layout == "5d":
            return q.unflatten(1, (inputs.kv_heads, group)), k.unsqueeze(2), v.unsqueeze(2)
        if group > 1:
            k, v = GROUPS[self.group](k, group), GROUPS[self.group](v, group)
        return (q, k, v) if self.layout == "4d" else (q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))

    def _masked(self, scores: Tensor, inputs: Inputs) -> Tensor:
        make = MASKS[self.mask]
        return scores if make is None else APPLIES[self.apply](scores, make(inputs.positions))

    def _weights(self, scores: Tensor, inputs: Inputs) -> Tensor:
        if not self.sinks:
            return SOFTMAXES[self.softmax](scores)
        sinks = inputs.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return SOFTMAXES[self.softmax](torch.cat([scores, sinks], dim=-1))[..., :-1]
