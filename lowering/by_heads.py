"""K = [W_uk c ; rope], V = W_uv c of some heads at a time  =>  attention, with no K and V of all heads in memory

    for each group of n heads:    k [n, B, S, D], v [n, B, S, Dv] = W[group] c        out[:, group] = attend(q[:, group], k, v)

Every group writes k and v anew; rope's channels are the same for all heads, and are written once. Nothing is merged: the
answer is that of all heads at once, and so are the flops and the bytes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import expr as E
from ..ir import AttentionSpec
from ..ops import output_of
from . import cpu, select
from .checks import DTYPES, check_operands

if TYPE_CHECKING:
    from .projected import Environment, Projected

_EXPRESSIONS = ("score", "lo", "hi", "residue", "sink", "tile")


def expanded(given: Projected, env: Environment, spec: str, most: int) -> Tensor:
    """out [B, H, T, Dv], `most` heads at a time. OperandError where operands and spec disagree."""
    (batch, heads, _, width), (_, keys, _) = given.q.shape, given.latent.shape
    tables, sizes, scalars = env
    value_width = sum(weight.shape[1] for weight in given.values)
    out = output_of(given.q, value_width, AttentionSpec.parse(spec).heads_first)
    k, v = (given.latent.new_empty(most, batch, keys, channels) for channels in (width, value_width))
    k[..., given.rope_start:given.rope_start + given.rope.shape[2]] = given.rope
    rows = given.latent.flatten(0, 1)                                                       # [B*S, R]
    text = spec if most >= heads else of_group(spec, len(sizes))
    for first in range(0, heads, most):
        group = slice(first, min(first + most, heads))
        q, n = given.q[:, group], group.stop - first
        _project(given, rows, group, k[:n], v[:n])
        _attend(q, k[:n].transpose(0, 1), v[:n].transpose(0, 1), (tables, [*sizes, first], scalars), text, out[:, group])
    return out


def _project(given: Projected, rows: Tensor, group: slice, k: Tensor, v: Tensor) -> None:
    """Writes k [n, B, S, D], but for rope, and v [n, B, S, Dv]. The latent is read by all heads, repeated for none."""
    value_starts = [sum(weight.shape[1] for weight in given.values[:at]) for at in range(len(given.values))]
    for made, starts, weights in ((k, given.starts, given.keys), (v, value_starts, given.values)):
        for start, weight in zip(starts, weights, strict=True):
            part = made[..., start:start + weight.shape[1]].flatten(1, 2)                   # [n, B*S, size], a view
            torch.bmm(rows.expand(len(part), -1, -1), weight[group].mT, out=part)


def _attend(q: Tensor, k: Tensor, v: Tensor, env: Environment, spec: str, out: Tensor) -> None:
    """Of one group, into out [B, n, T, Dv] of any strides."""
    tables, sizes, scalars = env
    check_operands(q, k, v, tables, sizes, scalars, spec, select.DTYPES if q.is_cuda else DTYPES)
    if q.is_cuda:
        from . import gpu

        gpu.attend_into(q, k, v, tables, sizes, scalars, spec, out)
    else:
        cpu.attend_into(q, k, v, tables, sizes, scalars, spec, out)


@lru_cache(maxsize=4096)
def of_group(text: str, at: int) -> str:
    """The spec of a group of heads, the first of which is size number `at`."""
    spec = AttentionSpec.parse(text)
    shifted = {E.h: E.h + E.index_symbol(f"n{at}")}
    found = {name: getattr(spec, name) for name in _EXPRESSIONS}
    return str(replace(spec, **{name: e.xreplace(shifted) for name, e in found.items() if e is not None}))
