"""p = exp(y) / sum_j exp(y);  out = p @ v   =>  Attention(score = y without its row constants, s = the q.k product in y)

The core is found by its two sums: exp over its own sum (or aten._softmax), then a contraction with v. All that stands around
it, scale before or after, masks, softcap, sinks by cat, views, casts, is *read* by the evaluator: no list of spellings.

Needs: the functional graph. Keeps: everything; this pass only reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import sympy
import torch
from torch.fx import Node

from .. import expr as E
from ..ir import Reason, Rejected
from .attention import Attention, Found, Operand, Sizes, d, size_of, static_size_of
from .denote import Evaluator
from .softmax_cores import CASTS, Core
from .views import is_layout, peel

aten = torch.ops.aten
CONTRACTIONS = (aten.bmm.default, aten.mm.default)
_ROW_REDUCTIONS = (aten.amax.default, aten.max.dim, aten.logsumexp.default)
_TESTS = (aten.abs.default, aten.eq.Scalar)  # logsumexp asks whether a maximum is infinite


def match(core: Core, evaluator: Evaluator) -> Found | None:
    """Read one softmax; None if its weights meet no contraction, so that it is no attention."""
    end = _contraction(core.weights) or _dropped(core.weights)
    if end is None or isinstance(end, Rejected):
        return end
    contraction, weights_first = end
    other = contraction.args[1] if weights_first else contraction.args[0]
    sizes = _sizes(core, contraction, other, weights_first)
    if sizes is None:
        return Rejected(contraction.name, Reason.SOFTMAX, f"shape {tuple(core.logits.meta['val'].shape)}")
    if 0 in dataclasses.astuple(sizes):
        return Rejected(contraction.name, Reason.EMPTY)
    evaluator.ranges = sizes.ranges
    lead = _lead(core, contraction, weights_first, evaluator, sizes)
    if lead is None:
        return Rejected(contraction.name, Reason.OPERANDS, "weights that reach p.v rearranged")
    v = Operand(other, (*lead, E.j, d) if weights_first else (*lead, d, E.j))
    site = _read_scores(core, contraction, v, sizes, evaluator)
    if isinstance(site, Rejected):
        return site
    heads_slowest = lead == (E.h * sizes.batch + E.b,) and lead != (E.b * sizes.heads + E.h,)
    order = ((1, 0) if heads_slowest else (0, 1)) + ((2, 3) if weights_first else (3, 2))
    return dataclasses.replace(site, order=order)


def _read_scores(core: Core, contraction: Node, v: Operand, sizes: Sizes, evaluator: Evaluator) -> Found:
    """y = score(s) - row constants; the columns past S, if one, are a sink."""
    columns = size_of(core.logits, core.dim)
    value = evaluator.read(core.logits, _logits_index(core, E.j))
    if core.logarithm is not None and not _is_normalised(core, value, evaluator):
        return Rejected(contraction.name, Reason.SOFTMAX, "a logarithm that is not of this row's sum")
    constants = _row_constants(value, evaluator)
    extra = sympy.sympify(columns - sizes.keys)
    if extra not in (0, 1):
        return Rejected(contraction.name, Reason.SOFTMAX, f"{columns} columns for {sizes.keys} keys")
    sink = evaluator.read(core.logits, _logits_index(core, sizes.keys)) - constants if extra == 1 else None
    value = value - constants
    products = [load for load in E.loads(value) if load.name in evaluator.products]
    if len(products) != 1:
        return Rejected(contraction.name, Reason.SCORE, f"{len(products)} products")
    operands = _operands(products[0], evaluator)
    if operands is None:
        return Rejected(contraction.name, Reason.SCORE, E.to_text(products[0]))
    q, k = operands
    return Attention(
        anchor=contraction, q=q, k=k, v=v, sizes=_with_head_dim(sizes, products[0], evaluator),
        value=value.subs(products[0], E.s), mask_dtype=core.logits.meta["val"].dtype, sink=sink, handwritten=True,
    )


def _is_normalised(core: Core, value: sympy.Basic, evaluator: Evaluator) -> bool:
    """Whether the weights are exp(y - log sum_j exp(y)): the difference that is exponentiated, read at (b, h, i, j)."""
    assert core.logarithm is not None
    difference, total = core.logarithm
    index = _logits_index(core, E.j)
    del index[core.dim]
    if total.meta["val"].dim() == len(index) + 1:
        index.insert(len(index) + 1 + core.dim, sympy.Integer(0))
    found = evaluator.read(difference, _logits_index(core, E.j))
    return bool(found + sympy.log(evaluator.read(total, index)) - value == 0)


def _operands(product: E.Load, evaluator: Evaluator) -> tuple[Operand, Operand] | None:
    """q and k of s = Σ_d q[..., i, d] k[..., j, d], whichever side each stands on."""
    found = evaluator.products[product.name]
    *lead, row, column = product.index
    if any(at.has(E.i) or at.has(E.j) for at in lead):
        return None
    if column == E.j and not row.has(E.j):
        return Operand(found.lhs, (*lead, row, d)), Operand(found.rhs, (*lead, d, E.j))
    if row == E.j and not column.has(E.j):
        return Operand(found.rhs, (*lead, d, column)), Operand(found.lhs, (*lead, E.j, d))
    return None


def _with_head_dim(sizes: Sizes, product: E.Load, evaluator: Evaluator) -> Sizes:
    return dataclasses.replace(sizes, head_dim=static_size_of(evaluator.products[product.name].lhs, -1))


def _row_constants(value: sympy.Basic, evaluator: Evaluator) -> sympy.Basic:
    """The row maxima and the like that are subtracted from y: they cancel in the softmax."""
    terms = []
    for term in sympy.Add.make_args(value):
        loads = E.loads(term)
        if loads and not term.has(E.j) and all(load.name in evaluator.leaves and _reduces(evaluator.leaves[load.name])
                                               for load in loads):
            terms.append(term)
    return sympy.Add(*terms)


def _reduces(node: Node) -> bool:
    node = node.args[0] if "getitem" in node.name and isinstance(node.args[0], Node) else node
    return node.target in _ROW_REDUCTIONS or (node.target in _TESTS and _reduces(node.args[0]))


# ------------------------------------------------------------------------------------------------------- graph walking


def _contraction(weights: Node) -> tuple[Node, bool] | Rejected | None:
    """The p.v contraction that the weights reach through layout alone, and whether p stands on its left."""
    reached = list(_reached(weights))
    ends = [(user, node) for node in reached for user in node.users if user.target in CONTRACTIONS]
    if not ends:
        return None
    inside = {*reached, *(user for user, _ in ends)}
    outside = [user for node in reached for user in node.users if user not in inside]
    if len(ends) > 1 or outside:
        return Rejected(ends[0][0].name, Reason.SHARED, ", ".join(sorted(n.name for n in outside)) or "two contractions")
    contraction, node = ends[0]
    return contraction, contraction.args[0] is node


def _dropped(weights: Node) -> Rejected | None:
    """Weights that reach p.v through a product with random numbers."""
    for node in _reached(weights):
        for user in node.users:
            if user.target is aten.mul.Tensor and any(_is_random(x) for x in user.all_input_nodes if x is not node):
                scaled = next((u for u in user.users if u.target is aten.mul.Tensor), user)
                return Rejected(user.name, Reason.DROPOUT) if _contraction(scaled) is not None else None
    return None


def _is_random(node: Node) -> bool:
    """Drawn from a generator, or compared and cast from what is."""
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return True
    return node.target in (*CASTS, aten.gt.Scalar, aten.lt.Scalar) and _is_random(node.args[0])


def _reached(weights: Node) -> Iterator[Node]:
    """The weights, and what is only a rearrangement or a cast of them."""
    pending, seen = [weights], {weights}
    while pending:
        node = pending.pop()
        yield node
        for user in node.users:
            if user not in seen and is_layout(user):
                seen.add(user)
                pending.append(user)


def _sizes(core: Core, contraction: Node, other: Node, weights_first: bool) -> Sizes | None:
    logits = core.logits.meta["val"]
    if logits.dim() not in (2, 3, 4, 5) or core.dim not in (-1, -2):
        return None
    heads = [static_size_of(core.logits, at) for at in range(1, logits.dim() - 2)]
    value_dim = static_size_of(other, -1 if weights_first else -2)
    one = sympy.Integer(1)
    return Sizes(
        batch=size_of(core.logits, 0) if logits.dim() > 2 else one,
        heads=sympy.Mul(*heads),
        queries=size_of(core.logits, -1 if core.dim == -2 else -2),
        keys=size_of(other, -2 if weights_first else -1),
        values=size_of(other, -2 if weights_first else -1),
        head_dim=one,
        value_dim=value_dim,
    )


def _logits_index(core: Core, column: sympy.Basic) -> list[sympy.Basic]:
    """Index of y at (b, h, i, column); further leading dimensions are heads, the last fastest."""
    shape = core.logits.meta["val"].shape
    heads: list[sympy.Basic] = []
    rest: sympy.Basic = E.h
    for at in reversed(range(1, len(shape) - 2)):
        size = static_size_of(core.logits, at)
        heads.insert(0, E.PythonMod(rest, size) if at > 1 else rest)
        rest = E.FloorDiv(rest, size)
    lead = [E.b, *heads] if len(shape) > 2 else []
    return [*lead, column, E.i] if core.dim == -2 else [*lead, E.i, column]


def _lead(
    core: Core, contraction: Node, weights_first: bool, evaluator: Evaluator, sizes: Sizes
) -> tuple[sympy.Basic, ...] | None:
    """The contraction's batch index as a function of (b, h): () for mm; proved by reading p back from p.v."""
    expected = evaluator.canonical(core.weights, _logits_index(core, E.j))
    side = contraction.args[0] if weights_first else contraction.args[1]
    candidates: list[tuple[sympy.Basic, ...]] = [()]
    if contraction.target is aten.bmm.default:
        candidates = [(E.b * sizes.heads + E.h,), (E.h * sizes.batch + E.b,)]
        single = {symbol: 0 for symbol, size in ((E.b, sizes.batch), (E.h, sizes.heads)) if size == 1}
        candidates = [(sympy.sympify(lead).subs(single),) for (lead,) in candidates]
    for lead in candidates:
        start = (*lead, E.i, E.j) if weights_first else (*lead, E.j, E.i)
        if any(node is core.weights and index == expected for node, index in peel(evaluator, side, start)):
            return lead
    return None
