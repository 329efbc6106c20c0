"""flashmla::attend_projected on any device: K = [W_uk c ; rope] and V = W_uv c of a latent c, in the form that `gain` tells

    gain > 0    W_uv attend_latent([q_nope W_uk ; q_rope], c, rope)        else    attend(q, [W_uk c ; rope], W_uv c)

`gain` is computed on the host from lengths, so nothing waits and one graph serves lengths on both sides of the crossover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import OperandError
from ..ir import AttentionSpec
from ..ops import output_of
from . import by_heads
from .head_groups import heads_at_once

Environment = tuple[list[Tensor], list[int], list[float]]
"""Tables, sizes and scalars of the spec."""


@dataclass(frozen=True)
class Projected:
    """q [B, H, T, D]; latent [B, S, R]; rope [B, S, P]. keys[n] [H, size, R] makes channels starts[n] and on of K, rope
    those from rope_start on; values [H, size, R] make V, one after the other."""

    q: Tensor
    latent: Tensor
    rope: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    starts: list[int]
    rope_start: int


def attend_projected(
    q: Tensor, latent: Tensor, rope: Tensor, keys: list[Tensor], values: list[Tensor], starts: list[int], rope_start: int,
    gain: int, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str,
) -> Tensor:
    """out [B, H, T, Dv] in the memory order of the spec. Raises OperandError where operands disagree."""
    given = Projected(q, latent, rope, keys, values, starts, rope_start)
    _check(given)
    if AttentionSpec.parse(spec).site:
        raise OperandError(f"attend_projected: no account is kept of attention over a latent; found {spec}")
    form = absorbed if gain > 0 else expanded
    return form(given, (tables, sizes, scalars), spec)


def absorbed(given: Projected, env: Environment, spec: str) -> Tensor:
    """Attention over the latent itself; its projections on the queries and on the output."""
    q, batch, queries = given.q, given.q.shape[0], given.q.shape[2]
    q_latent: Tensor | None = None
    for start, weight in zip(given.starts, given.keys, strict=True):
        part = _by_head(q[..., start:start + weight.shape[1]]) @ weight                     # [H, B*T, R]
        q_latent = part if q_latent is None else q_latent + part
    assert q_latent is not None
    q_latent = q_latent.unflatten(1, (batch, queries)).transpose(0, 1)                      # [B, H, T, R]
    q_rope = q[..., given.rope_start:given.rope_start + given.rope.shape[2]]
    seen = torch.ops.flashmla.attend_latent.default(
        q_latent, q_rope, given.latent, given.rope, None, None, *env, _in_rows(spec))
    rows = _by_head(seen)                                                                   # [H, B*T, R]
    parts = [(rows @ weight.mT).unflatten(1, (batch, queries)) for weight in given.values]
    out = output_of(q, sum(weight.shape[1] for weight in given.values), AttentionSpec.parse(spec).heads_first)
    return out.copy_((parts[0] if len(parts) == 1 else torch.cat(parts, -1)).transpose(0, 1))


def expanded(given: Projected, env: Environment, spec: str) -> Tensor:
    """Attention over K and V, made for as many heads at a time as `head_groups` says."""
    (batch, heads, queries, width), q = given.q.shape, given.q
    channels = width + sum(weight.shape[1] for weight in given.values)
    most = heads_at_once(batch, heads, queries, given.latent.shape[1], channels, q.itemsize, q.device)
    return by_heads.expanded(given, env, spec, most)


def _by_head(x: Tensor) -> Tensor:
    """[B, H, T, n] -> [H, B*T, n]"""
    return x.transpose(0, 1).flatten(1, 2)


@lru_cache(maxsize=4096)
def _in_rows(spec: str) -> str:
    """The spec with its output in the memory of [B, T, H, .], as attend_latent writes it."""
    return str(replace(AttentionSpec.parse(spec), heads_first=False))


def _check(given: Projected) -> None:
    heads, rank = given.q.shape[1], given.latent.shape[-1]
    found = [list(weight.shape) for weight in (*given.keys, *given.values)]
    if not given.keys or not given.values or any([n[0], n[-1]] != [heads, rank] or len(n) != 3 for n in found):
        raise OperandError(f"attend_projected: keys and values are [{heads}, size, {rank}] each; found {found}")
    spans = [(start, weight.shape[1]) for start, weight in zip(given.starts, given.keys, strict=True)]
    if not _covers([*spans, (given.rope_start, given.rope.shape[-1])], given.q.shape[-1]):
        raise OperandError(
            f"attend_projected: keys at {given.starts} and rope at {given.rope_start} are not the {given.q.shape[-1]} channels "
            f"of q; found {found[:len(given.keys)]} and {list(given.rope.shape)}")


def _covers(spans: Sequence[tuple[int, int]], width: int) -> bool:
    """Whether spans (start, size) lie end to end from 0 to `width`."""
    at = 0
    for start, size in sorted(spans):
        if start != at:
            return False
        at += size
    return at == width
