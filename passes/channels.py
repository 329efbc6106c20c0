"""k[b,h,j,:] = [ W c[b,j,:] ; rope[b,j,:] ]: an operand in parts along its channels, each at the tensor that holds it

cat, slice_scatter and copy put parts together, in whatever order and nesting; a part is followed up through them, and
through views, as long as it stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy
from torch.fx import Node

from .. import expr as E
from .attention import d
from .denote import Evaluator
from .rules import operator_name
from .views import Place, step

Index = tuple[sympy.Basic, ...]


@dataclass(frozen=True)
class Part:
    """Channels [start, start + size) of an operand: operand[b, h, row, start + d] = node[index] for 0 <= d < size."""

    start: int
    size: int
    node: Node
    index: Index

    @property
    def place(self) -> Place:
        return self.node, self.index


class Reader:
    """Reads parts under the ranges of one attention, the channel d counted from the start of each part."""

    def __init__(self, evaluator: Evaluator, ranges: Mapping[sympy.Basic, sympy.Basic]) -> None:
        self.evaluator = evaluator
        self.ranges = dict(ranges)

    def under(self, **bounds: int) -> Evaluator:
        """The evaluator, with other ranges for the symbols named."""
        self.evaluator.ranges = {**self.ranges, **{E.index_symbol(name): sympy.Integer(n) for name, n in bounds.items()}}
        return self.evaluator

    def trail(self, part: Part) -> Iterator[Part]:
        """The part, and then each place upstream that holds all of it."""
        here: Part | None = Part(part.start, part.size, part.node, self.evaluator.canonical(*part.place))
        while here is not None:
            yield here
            here = self._up(here)

    def _up(self, part: Part) -> Part | None:
        moved = step(self.under(d=part.size), *part.place)
        if moved is not None:
            return Part(part.start, part.size, *moved)
        inner = self.children(part)
        return inner[0] if len(inner) == 1 else None

    def children(self, part: Part) -> list[Part]:
        """What the node is put together from, where this part lies, in order; nothing if it is put together in no such way."""
        found = _CHILDREN.get(operator_name(part.node), _no_children)(self.evaluator, part)
        return sorted(found, key=lambda inner: inner.start)


def _no_children(evaluator: Evaluator, part: Part) -> list[Part]:
    return []


def _pieces(part: Part, dim: int, spans: list[tuple[Node, int, int, int]]) -> list[Part]:
    """`spans`: (source, from, to, shift): positions [from, to) along dim are the source's, `shift` less."""
    offset = part.index[dim] - d
    if part.index[dim].is_Integer:
        at = int(part.index[dim])
        return [_inner(part, dim, source, 0, part.size, shift) for source, low, high, shift in spans if low <= at < high]
    if not offset.is_Integer:
        return []
    found = []
    for source, low, high, shift in spans:
        first, last = max(low - int(offset), 0), min(high - int(offset), part.size)
        if first < last:
            found.append(_inner(part, dim, source, first, last, shift))
    return found


def _inner(part: Part, dim: int, source: Node, first: int, last: int, shift: int) -> Part:
    index = [at.xreplace({d: d + first}) for at in part.index]
    index[dim] = index[dim] - shift
    return Part(part.start + first, last - first, source, tuple(index))


def _cat(evaluator: Evaluator, part: Part) -> list[Part]:
    given = evaluator.arguments(part.node)
    tensors = [x for x in given["tensors"] if x.meta["val"].dim() == len(part.index)]
    dim, start, spans = given["dim"] % len(part.index), 0, []
    for tensor in tensors:
        size = evaluator.size(tensor)[dim]
        if not size.is_Integer:
            return []
        spans.append((tensor, start, start + int(size), start))
        start += int(size)
    return _pieces(part, dim, spans)


def _slice_scatter(evaluator: Evaluator, part: Part) -> list[Part]:
    given = evaluator.arguments(part.node)
    dim = given["dim"] % len(part.index)
    size = evaluator.size(part.node)[dim]
    bounds = [given["start"] or 0, size if given["end"] is None else given["end"]]
    if given["step"] != 1 or not size.is_Integer or any(isinstance(bound, Node) for bound in bounds):
        return []
    start, end, _ = slice(int(bounds[0]), int(bounds[1])).indices(int(size))
    before, within, after = (given["self"], 0, start, 0), (given["src"], start, end, start), (given["self"], end, int(size), 0)
    return _pieces(part, dim, [before, within, after])


def _copy(evaluator: Evaluator, part: Part) -> list[Part]:
    """copy(self, src): src, broadcast."""
    source = evaluator.arguments(part.node)["src"]
    index = part.index[len(part.index) - source.meta["val"].dim():]
    return [Part(part.start, part.size, source, evaluator.canonical(source, index))]


_CHILDREN = {"cat": _cat, "slice_scatter": _slice_scatter, "copy": _copy}
