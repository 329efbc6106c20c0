"""One attention on its way through the pipeline, and the symbols it is written in.

    out[b,h,i,:] = sum_j softmax_j(score(q[b,h,i,:] . k[b,h,j,:], b,h,i,j)) v[b,h,j,:]
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import Rejected

d = E.index_symbol("d")
"""Position within a head."""


@dataclass(frozen=True)
class Operand:
    """q, k or v as elements of a tensor in the graph: operand[b, h, row, d] = node[index]."""

    node: Node
    index: tuple[sympy.Basic, ...]


@dataclass(frozen=True)
class Sizes:
    """B, H, T queries, S keys, rows of v (S, but maybe by another symbol); D, Dv head dims. Symbolic where a length is."""

    batch: sympy.Basic
    heads: sympy.Basic
    queries: sympy.Basic
    keys: sympy.Basic
    values: sympy.Basic
    head_dim: sympy.Basic
    value_dim: sympy.Basic

    @property
    def ranges(self) -> dict[sympy.Basic, sympy.Basic]:
        """Exclusive upper bounds of the index symbols."""
        channels = sympy.Max(self.head_dim, self.value_dim)
        return {E.b: self.batch, E.h: self.heads, E.i: self.queries, E.j: self.keys, d: channels}


@dataclass(frozen=True)
class Attention:
    """What is known so far.

    anchor     the node whose value the attention is; replaced by emit. Shape [B, H, T, Dv], or with B and H merged or absent
    value      what is exponentiated: the score with its mask still inside, over E.s
    order      how [B, H, T, Dv] is permuted before its leading dimensions merge into the anchor's shape
    mask_node  the mask as the graph holds it, if it is one tensor: its bytes are counted
    """

    anchor: Node
    q: Operand
    k: Operand
    v: Operand
    sizes: Sizes
    value: sympy.Basic
    mask_dtype: torch.dtype
    sink: sympy.Basic | None = None
    handwritten: bool = False
    mask_node: Node | None = None
    order: tuple[int, int, int, int] = (0, 1, 2, 3)


Found = Attention | Rejected


def size_of(node: Node, dim: int) -> sympy.Basic:
    """A size as sympy: an Integer, or the expression inside the SymInt."""
    size = node.meta["val"].shape[dim]
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def static_size_of(node: Node, dim: int) -> sympy.Basic:
    """A size that a kernel is written for, head_dim or a number of heads: a symbolic one is specialised, by guards."""
    size = node.meta["val"].shape[dim]
    if isinstance(size, torch.SymInt):
        for symbol in size.node.expr.free_symbols:
            size.node.shape_env.evaluate_expr(symbol)
    return sympy.Integer(int(size))
