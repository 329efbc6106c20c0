"""flashmla::sdpa(q, k, v, mask, is_causal, scale)  =>  Attention(score = scale * s + mask)

Needs: the graph after capture and AOTAutograd. Keeps: everything; this pass only reads.
"""

from __future__ import annotations

import math

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import Reason, Rejected
from .attention import Attention, Found, Operand, Sizes, d, size_of, static_size_of
from .denote import Evaluator

TARGET = torch.ops.flashmla.sdpa.default


def match(node: Node, evaluator: Evaluator) -> Found:
    """Read one flashmla::sdpa node."""
    q, k, v, mask, dropout_p, is_causal, scale, enable_gqa = node.args
    rejected = _reject(node, q, k, v, mask, dropout_p)
    if rejected:
        return rejected
    group = _group(q, k, bool(enable_gqa))
    sizes = _sizes(q, k, v)
    evaluator.ranges = sizes.ranges
    value = E.s * _scale(scale, sizes.head_dim, evaluator)
    if is_causal:
        value = E.Where(E.j <= E.i, value, -sympy.oo)
    dtype = q.meta["val"].dtype
    if mask is not None:
        dtype = mask.meta["val"].dtype
        value = _masked(value, evaluator.read(mask, _aligned(mask, q)), dtype)
    return Attention(
        anchor=node,
        q=Operand(q, _lead(q, E.h, (E.i, d))),
        k=Operand(k, _lead(k, E.FloorDiv(E.h, group), (E.j, d))),
        v=Operand(v, _lead(v, E.FloorDiv(E.h, group), (E.j, d))),
        sizes=sizes, value=value, mask_dtype=dtype, mask_node=mask,
    )


def _reject(node: Node, q: Node, k: Node, v: Node, mask: Node | None, dropout_p: float) -> Rejected | None:
    values = [x.meta["val"] for x in (q, k, v)]
    if dropout_p:
        return Rejected(node.name, Reason.DROPOUT, f"dropout_p={dropout_p}")
    if {value.dim() for value in values} not in ({3}, {4}):
        return Rejected(node.name, Reason.RANK, " ".join(str(tuple(value.shape)) for value in values))
    if mask is not None and mask.meta["val"].dim() > values[0].dim():
        return Rejected(node.name, Reason.MASK, f"a mask of rank {mask.meta['val'].dim()}")
    if len({value.dtype for value in values}) > 1:
        return Rejected(node.name, Reason.DTYPE, ", ".join(str(value.dtype) for value in values))
    if values[0].dim() == 4 and values[0].shape[0] != values[1].shape[0]:
        return Rejected(node.name, Reason.SHAPES, f"batch {values[0].shape[0]} and {values[1].shape[0]}")
    return None


def _sizes(q: Node, k: Node, v: Node) -> Sizes:
    four = q.meta["val"].dim() == 4
    static = {"head_dim": static_size_of(q, -1), "value_dim": static_size_of(v, -1)}
    heads = static_size_of(q, 1) if four else sympy.Integer(1)
    return Sizes(batch=size_of(q, 0), heads=heads, queries=size_of(q, -2), keys=size_of(k, -2), values=size_of(v, -2), **static)


def _group(q: Node, k: Node, enable_gqa: bool) -> sympy.Basic:
    """Query heads to one key head; torch has checked that it divides."""
    return static_size_of(q, 1) / static_size_of(k, 1) if enable_gqa and q.meta["val"].dim() == 4 else sympy.Integer(1)


def _lead(node: Node, head: sympy.Basic, rest: tuple[sympy.Basic, ...]) -> tuple[sympy.Basic, ...]:
    if node.meta["val"].dim() == 3:
        return (E.b, *rest)
    return (E.b, sympy.Integer(0) if size_of(node, 1) == 1 else head, *rest)


def _scale(scale: object, head_dim: sympy.Basic, evaluator: Evaluator) -> sympy.Basic:
    if scale is not None:
        return evaluator.scalar(scale)
    return sympy.Float(1.0 / math.sqrt(head_dim))


def _aligned(mask: Node, q: Node) -> list[sympy.Basic]:
    """Index of a mask that broadcasts to [B, H, T, S] or [B, T, S]: from the right, and 0 where its size is 1."""
    rank = mask.meta["val"].dim()
    scores = (E.b, E.h, E.i, E.j) if q.meta["val"].dim() == 4 else (E.b, E.i, E.j)
    return [sympy.Integer(0) if size_of(mask, at) == 1 else symbol for at, symbol in enumerate(scores[-rank:])]


def _masked(value: sympy.Basic, mask: sympy.Basic, dtype: torch.dtype) -> sympy.Basic:
    return E.Where(mask, value, -sympy.oo) if dtype == torch.bool else value + mask
