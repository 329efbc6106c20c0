"""Multi-head latent attention in as many spellings as the choices below multiply to: softmax(q [W_uk c ; rope]) (W_uv c)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.pipeline.graphs import sdpa


@dataclass(frozen=True)
class Sizes:
    """B, H, T queries, S keys; rank R, rope P, channels without rope Dn, value channels Dv."""

    batch: int
    heads: int
    queries: int
    keys: int
    rank: int
    rope: int
    nope: int
    value: int


@dataclass(frozen=True)
class Inputs:
    """q [B, H, T, Dn + P], c [B, S, R], rope [B, S, P], keys [H, Dn, R], values [H, Dv, R]."""

    q: Tensor
    c: Tensor
    rope: Tensor
    keys: Tensor
    values: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(*(x.to(dtype) for x in vars(self).values()))


def inputs(n: Sizes, seed: int = 0) -> Inputs:
    """Normal; weights divided by sqrt(R)."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    return Inputs(draw(n.batch, n.heads, n.queries, n.nope + n.rope), draw(n.batch, n.keys, n.rank),
                  draw(n.batch, n.keys, n.rope), draw(n.heads, n.nope, n.rank) / n.rank**0.5,
                  draw(n.heads, n.value, n.rank) / n.rank**0.5)


# Weights as the model holds them, and [B, H, S, Dn], [B, H, S, Dv] from them and c [B, S, R].

def _fused_weight(x: Inputs) -> list[Tensor]:
    return [torch.cat([x.keys, x.values], 1).flatten(0, 1)]


def _fused(c: Tensor, weights: list[Tensor], n: Sizes) -> tuple[Tensor, Tensor]:
    both = torch.nn.functional.linear(c, weights[0]).view(*c.shape[:2], n.heads, -1).transpose(1, 2)
    return both.split([n.nope, n.value], -1)  # type: ignore[return-value]


def _values_first_weight(x: Inputs) -> list[Tensor]:
    return [torch.cat([x.values, x.keys], 1).flatten(0, 1)]


def _values_first(c: Tensor, weights: list[Tensor], n: Sizes) -> tuple[Tensor, Tensor]:
    both = (c @ weights[0].T).unflatten(-1, (n.heads, -1)).permute(0, 2, 1, 3)
    return both[..., n.value:], both[..., :n.value]


def _apart_weight(x: Inputs) -> list[Tensor]:
    return [x.keys.flatten(0, 1).clone(), x.values.flatten(0, 1).T.contiguous()]


def _apart(c: Tensor, weights: list[Tensor], n: Sizes) -> tuple[Tensor, Tensor]:
    k = torch.nn.functional.linear(c, weights[0]).view(*c.shape[:2], n.heads, n.nope).transpose(1, 2)
    return k, (c @ weights[1]).view(*c.shape[:2], n.heads, n.value).transpose(1, 2)


def _by_head_weight(x: Inputs) -> list[Tensor]:
    return [x.keys.clone(), x.values.mT.contiguous()]


def _by_einsum(c: Tensor, weights: list[Tensor], n: Sizes) -> tuple[Tensor, Tensor]:
    return torch.einsum("bsr,hdr->bhsd", c, weights[0]), torch.einsum("bsr,hrd->bhsd", c, weights[1])


def _by_matmul(c: Tensor, weights: list[Tensor], n: Sizes) -> tuple[Tensor, Tensor]:
    return c[:, None] @ weights[0].mT, c[:, None] @ weights[1]


def _weight_first(c: Tensor, weights: list[Tensor], n: Sizes) -> tuple[Tensor, Tensor]:
    return (weights[0] @ c[:, None].mT).mT, (weights[1].mT @ c[:, None].mT).mT


def _channels_first_weight(x: Inputs) -> list[Tensor]:
    return [x.keys.transpose(0, 1).flatten(0, 1).contiguous(), x.values.transpose(0, 1).flatten(0, 1).contiguous()]


def _channels_first(c: Tensor, weights: list[Tensor], n: Sizes) -> tuple[Tensor, Tensor]:
    """Rows of the weight by channel, then by head."""
    return tuple((c @ w.T).unflatten(-1, (-1, n.heads)).permute(0, 3, 1, 2) for w in weights)  # type: ignore[return-value]


PROJECTIONS: dict[str, tuple[Callable, Callable]] = {
    "fused": (_fused_weight, _fused), "values_first": (_values_first_weight, _values_first), "apart": (_apart_weight, _apart),
    "einsum": (_by_head_weight, _by_einsum), "matmul": (_by_head_weight, _by_matmul),
    "weight_first": (_by_head_weight, _weight_first), "channels_first": (_channels_first_weight, _channels_first),
}


def _copied(parts: list[Tensor]) -> Tensor:
    out = parts[0].new_empty(*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    start = 0
    for part in parts:
        out[..., start:start + part.shape[-1]].copy_(part)
        start += part.shape[-1]
    return out



# Parts of a head in order, of keys and queries alike.
ORDERS: dict[str, Callable[[Tensor, Tensor], list[Tensor]]] = {
    "last": lambda nope, rope: [nope, rope],
    "first": lambda nope, rope: [rope, nope],
    "between": lambda nope, rope: [nope[..., :1], rope, nope[..., 1:]],
}
JOINS: dict[str, Callable[[list[Tensor]], Tensor]] = {"cat": lambda parts: torch.cat(parts, -1), "copy": _copied}

# The latent as attention sees it, from the tensors a model holds: new [B, S, R], or a cache and what is written to it.
SOURCES: dict[str, Callable[[Tensor], Tensor]] = {
    "new": lambda c: c,
    "normed": lambda c: torch.nn.functional.rms_norm(c, c.shape[-1:]),
    "appended": lambda c: torch.cat([c[:, :-1], c[:, -1:] * 1], 1),
    "heads_of_one": lambda c: c[:, None].transpose(1, 2).clone().squeeze(2),
    "written": lambda c: c.index_copy(1, torch.arange(1, device=c.device), c[:, -1:] * 2),
}


@dataclass(frozen=True)
class Spelling:
    """A name of each table above."""

    projection: str = "fused"
    order: str = "last"
    join: str = "cat"
    source: str = "new"

    def weights(self, x: Inputs) -> list[Tensor]:
        return PROJECTIONS[self.projection][0](x)

    def program(self, n: Sizes) -> Callable[..., Tensor]:
        """(q, c, rope, *weights) -> [B, H, T, Dv]"""
        project, order, join = PROJECTIONS[self.projection][1], ORDERS[self.order], JOINS[self.join]

        def attention(q: Tensor, c: Tensor, rope: Tensor, *weights: Tensor) -> Tensor:
            nope, value = project(SOURCES[self.source](c), list(weights), n)
            parts = order(nope, rope[:, None].expand(-1, n.heads, -1, -1))
            query = torch.cat(order(q[..., :n.nope], q[..., n.nope:]), -1)
            return sdpa(query, join(parts), value)

        return attention
