"""softmax(q·[W_uk c ; rope]) (W_uv c)  =>  W_uv (softmax([q_nope W_uk ; q_rope]·[c ; rope]) c)

Needs: K in parts, each a linear map of one latent c [B, S, R] or the same for all heads; V linear maps of that c.
Keeps: every number but for the order of the sums. With u the unit roundoff of the dtype, a dot product of n terms taken in
any order is within n*u of sum |x y|, so both forms of a logit lie within (dn + R) u sum_dr |q_d w_dr c_r| of the exact one,
and both forms of an output within (S + R) u sum_jr p_j |w_r c_jr|: the absorbed form rounds q_nope W_uk where the other
rounds W_uk c, one rounding to the working dtype each.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import Reason, Rejected
from . import weights
from .attention import Attention, Operand, d
from .channels import Part, Reader
from .denote import Evaluator
from .fold_operands import Grid, grid_at
from .rules import operator_name
from .views import peel
from .weights import Weight, r

_PRODUCTS = {"mm": ("self", "mat2"), "bmm": ("self", "mat2")}
_BIASED = ("addmm", "baddbmm")


@dataclass(frozen=True)
class Linear:
    """Channels [start, start + size) of every head are `weight` [H, size, R] times the latent, by the node `product`."""

    start: int
    size: int
    weight: Weight
    product: Node


@dataclass(frozen=True)
class Latents:
    """K = [keys of the latent; rope], V = values of the latent. `rope` stands at channel `rope_start` of K."""

    latent: Grid
    rank: int
    keys: tuple[Linear, ...]
    values: tuple[Linear, ...]
    rope: Grid
    rope_start: int
    rope_size: int

    @property
    def nope_size(self) -> int:
        return sum(key.size for key in self.keys)


def match(site: Attention, evaluator: Evaluator, dtype: torch.dtype) -> Latents | Rejected | None:
    """What K and V are made of; None where K is no linear map beside a part that all heads share: no latent attention."""
    sizes = site.sizes
    if not all(size.is_Integer for size in (sizes.heads, sizes.head_dim, sizes.value_dim)) or sizes.heads == 1:
        return None
    reader = _Reader(evaluator, site, dtype)
    keys = reader.parts(site.k, int(sizes.head_dim))
    shared = [part for part in keys if reader.is_shared(part)]
    own = [part for part in keys if part not in shared]
    if not own or not shared and operator_name(own[0].node) not in _PRODUCTS:
        return None
    if len(shared) > 1:
        return Rejected(site.anchor.name, Reason.LATENT, f"{len(shared)} parts of the key that all heads share")
    values = reader.parts(site.v, int(sizes.value_dim))
    found = [reader.linear(part) for part in (*own, *values)]
    for each in found:
        if isinstance(each, Rejected):
            return each if shared else None
    return _joined(site, reader, shared, found, len(own))  # type: ignore[arg-type]


def _joined(
    site: Attention, reader: _Reader, shared: list[Part], found: list[tuple[Linear, list[Grid]]], keys: int
) -> Latents | Rejected | None:
    """All linear maps of one latent, in one dtype, and the one part that is shared."""
    common = [grid for grid in found[0][1] if all(grid in grids for _, grids in found)]
    if not shared:
        return Rejected(site.anchor.name, Reason.ROPE, common[-1].node.name) if common else None
    ropes = [grid for grid in reader.grids(shared[0]) if "h" not in grid.axes]
    if not common:
        return Rejected(site.anchor.name, Reason.LATENT, ", ".join(sorted({grids[-1].node.name for _, grids in found})))
    if not ropes:
        return Rejected(site.anchor.name, Reason.DTYPE, f"{shared[0].node.name} is not {reader.dtype}")
    maps = tuple(linear for linear, _ in found)
    latent = common[-1]
    rank = int(latent.node.meta["val"].shape[latent.axes["d"].dim])
    return Latents(latent, rank, maps[:keys], maps[keys:], ropes[-1], shared[0].start, shared[0].size)


class _Reader(Reader):
    """Reads the parts of K and V of one attention."""

    def __init__(self, evaluator: Evaluator, site: Attention, dtype: torch.dtype) -> None:
        super().__init__(evaluator, site.sizes.ranges)
        self.site, self.dtype = site, dtype

    def parts(self, operand: Operand, size: int) -> list[Part]:
        return self._split(Part(0, size, operand.node, operand.index))

    def _split(self, part: Part) -> list[Part]:
        """Where the part is the same for all heads, it is one, however that is put together."""
        for place in self.trail(part):
            part = place
            if self.is_shared(place):
                return [place]
        return [leaf for inner in self.children(part) for leaf in self._split(inner)] or [part]

    def is_shared(self, part: Part) -> bool:
        grid = grid_at(self.site, *part.place, E.j)
        return grid is not None and "h" not in grid.axes

    def grids(self, part: Part) -> list[Grid]:
        """Every place up the trail that holds the part as a grid in the working dtype, nearest first."""
        found = (grid_at(self.site, *place.place, E.j) for place in self.trail(part))
        return [grid for grid in found if grid is not None and grid.dtype == self.dtype]

    # ------------------------------------------------------------------------------------------------- linear maps

    def linear(self, part: Part) -> tuple[Linear, list[Grid]] | Rejected:
        """The part as a weight times a latent, and the grids that hold the latent."""
        name = operator_name(part.node)
        if name in _BIASED:
            return self._reject(Reason.BIAS, f"{part.node.name}, {name}")
        if name not in _PRODUCTS:
            return self._reject(Reason.WEIGHT, f"{part.node.name}, {name}")
        given = self.evaluator.arguments(part.node)
        left, right = (given[side] for side in _PRODUCTS[name])
        *lead, x, y = part.index
        rank = int(left.meta["val"].shape[-1])
        sides = [(left, (*lead, x, r)), (right, (*lead, r, y))]
        for (latent, at), (weight, where) in (sides, sides[::-1]):
            grids = self._latent(latent, at, rank)
            if grids:
                return self._weighed(part, weight, where, rank, grids)
        return self._reject(Reason.LATENT, part.node.name)

    def _latent(self, node: Node, index: tuple[sympy.Basic, ...], rank: int) -> list[Grid]:
        """Grids [B, S, R] without a head, in the working dtype."""
        if any(d in at.free_symbols for at in index):
            return []
        whole = Part(0, rank, node, tuple(at.xreplace({r: d}) for at in index))
        return [grid for grid in self.grids(whole) if "h" not in grid.axes]

    def _weighed(
        self, part: Part, node: Node, index: tuple[sympy.Basic, ...], rank: int, grids: list[Grid]
    ) -> tuple[Linear, list[Grid]] | Rejected:
        heads = int(self.site.sizes.heads)
        places = list(peel(self.under(d=part.size, r=rank), node, index))
        read = [weights.match(*place, heads, part.size, rank) for place in places]
        found = [weight for weight in read if weight is not None and weight.node.meta["val"].dtype == self.dtype]
        last = places[-1][0]
        if not found or last.op not in ("placeholder", "get_attr"):
            return self._reject(Reason.WEIGHT, f"{last.name}, {operator_name(last)}")
        return Linear(part.start, part.size, found[-1], part.node), grids

    def _reject(self, reason: Reason, found: str) -> Rejected:
        return Rejected(self.site.anchor.name, reason, found)
