"""Latents(K = [W_uk c ; rope], V = W_uv c)  =>  flashmla::attend_latent(q_nope W_uk, q_rope, c, rope, tokens, ...) W_uvᵀ

    q_latent  [B, H, T, R]   sum over parts of  bmm(q [H, B*T, size], weight [H, size, R])
    out       [B, H, T, Dv]  parts of           bmm(latent [H, B*T, R], weightᵀ [H, R, size])

Needs: Latents of the site, a complete spec. Keeps: shape, stride and dtype of the value that is replaced. Weights are views.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from . import fold_operands, page_cache, weights
from .absorb_mla import Latents, Linear
from .attention import Attention, Sizes, d
from .build import Builder
from .channels import Part, Reader
from .denote import Evaluator
from .emit import Arguments, like_anchor
from .fold_operands import Grid, grid_at
from .page_cache import Paged

aten = torch.ops.aten


@dataclass(frozen=True)
class Emitted:
    """`attend`: the operator; `value`: [B, H, T, Dv] from it; `out`: what has the anchor's value now.

    `sources`: the tensors that queries, latent and rope are read from; `weights`: those of the projections, of rank `rank`.
    """

    attend: Node
    value: Node
    out: Node
    sources: tuple[Node, ...]
    weights: tuple[Node, ...]
    rank: int


def rewrite(
    site: Attention, latents: Latents, q: Grid, tokens: Node | None, given: Arguments, builder: Builder, evaluator: Evaluator,
    paged: Paged | None = None,
) -> Emitted:
    """Put an attend_latent node in the place of the anchor."""
    sizes = site.sizes
    slices = _Queries(site, q, evaluator, builder)
    q_latent = _sum([_project(slices.part(key.start, key.size), key, sizes, builder) for key in latents.keys], builder)
    q_rope = slices.part(latents.rope_start, latents.rope_size)
    latent, rope, pages = (*latent_operands(latents, sizes, builder), None) if paged is None else _in_pages(paged, builder)
    attend = builder.call(
        torch.ops.flashmla.attend_latent.default, q_latent, q_rope, latent, rope, tokens, pages, list(given.tables),
        list(given.sizes), list(given.scalars), str(given.spec),
    )
    value = _unproject(attend, latents, sizes, site.handwritten, builder)
    out = like_anchor(value, site, builder)
    site.anchor.replace_all_uses_with(out, propagate_meta=False)
    sources = (latents.latent.node, latents.rope.node, *slices.sources)
    held = tuple(linear.weight.node for linear in (*latents.keys, *latents.values))
    return Emitted(attend, value, out, sources, held, latents.rank)


def _in_pages(paged: Paged, builder: Builder) -> tuple[Node, Node, Node]:
    """latent [PAGES, 64, R], rope [PAGES, 64, P], pages [B, N]"""
    held = page_cache.build(paged, builder)
    latent, rope = (builder.call(aten.squeeze.dim, x, 1) for x in (held.k, held.v))
    return latent, rope, held.pages


def latent_operands(latents: Latents, sizes: Sizes, builder: Builder) -> tuple[Node, Node]:
    """latent [B, S, R] and rope [B, S, P]"""
    latent, rope = (
        builder.call(aten.squeeze.dim, fold_operands.build(grid, builder, sizes.batch, sizes.keys, sympy.Integer(size)), 1)
        for grid, size in ((latents.latent, latents.rank), (latents.rope, latents.rope_size))
    )
    return latent, rope


class _Queries:
    """Channels of q [B, H, T, size], from the furthest tensor upstream that holds them; else a slice of q."""

    def __init__(self, site: Attention, q: Grid, evaluator: Evaluator, builder: Builder) -> None:
        self.site, self.grid, self.builder = site, q, builder
        self.reader = Reader(evaluator, site.sizes.ranges)
        self.sources: list[Node] = []

    def part(self, start: int, size: int) -> Node:
        operand, sizes = self.site.q, self.site.sizes
        index = tuple(at.xreplace({d: d + start}) for at in operand.index)
        found = [grid_at(self.site, *place.place, E.i) for place in self.reader.trail(Part(start, size, operand.node, index))]
        grids = [grid for grid in found if grid is not None and grid.group == 1 and grid.dtype == self.grid.dtype]
        extent = sympy.Integer(size)
        self.sources.append(grids[-1].node if grids else self.grid.node)
        if grids:
            return fold_operands.build(grids[-1], self.builder, sizes.batch, sizes.queries, extent)
        whole = fold_operands.build(self.grid, self.builder, sizes.batch, sizes.queries, sizes.head_dim)
        return self.builder.call(aten.slice.Tensor, whole, 3, start, start + size)



def _project(q: Node, key: Linear, sizes: Sizes, builder: Builder) -> Node:
    """[B, H, T, size] times [H, size, R] -> [B, H, T, R]"""
    rows = _by_head(q, sizes, key.size, builder)
    product = builder.call(aten.bmm.default, rows, weights.build(key.weight, builder))
    return builder.call(aten.permute.default, _apart(product, sizes, builder), [1, 0, 2, 3])


def _unproject(attend: Node, latents: Latents, sizes: Sizes, heads_first: bool, builder: Builder) -> Node:
    """[B, H, T, R] -> [B, H, T, Dv] in the memory order of output_like"""
    rows = _by_head(attend, sizes, latents.rank, builder)
    parts = []
    for value in sorted(latents.values, key=lambda each: each.start):
        weight = builder.call(aten.permute.default, weights.build(value.weight, builder), [0, 2, 1])
        parts.append(_apart(builder.call(aten.bmm.default, rows, weight), sizes, builder))
    whole = parts[0] if len(parts) == 1 else builder.call(aten.cat.default, parts, -1)      # [H, B, T, Dv]
    order, back = ([1, 0, 2, 3], None) if heads_first else ([1, 2, 0, 3], [0, 2, 1, 3])
    out = builder.call(aten.permute.default, whole, order)
    out = builder.call(aten.clone.default, out, memory_format=torch.contiguous_format)
    return out if back is None else builder.call(aten.permute.default, out, back)


def _by_head(x: Node, sizes: Sizes, size: int, builder: Builder) -> Node:
    """[B, H, T, size] -> [H, B*T, size]"""
    rows = builder.integer(sizes.batch * sizes.queries)
    turned = builder.call(aten.permute.default, x, [1, 0, 2, 3])
    return builder.call(aten.reshape.default, turned, [int(sizes.heads), rows, size])


def _apart(x: Node, sizes: Sizes, builder: Builder) -> Node:
    """[H, B*T, n] -> [H, B, T, n]"""
    shape = [int(sizes.heads), builder.integer(sizes.batch), builder.integer(sizes.queries), x.meta["val"].shape[2]]
    return builder.call(aten.reshape.default, x, shape)


def _sum(parts: list[Node], builder: Builder) -> Node:
    total = parts[0]
    for part in parts[1:]:
        total = builder.call(aten.add.Tensor, total, part)
    return total
