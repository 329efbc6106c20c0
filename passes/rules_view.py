"""out[index] = in[f(index)]: operators that only move data. One entry: the index to read the first operand at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from ..expr import Expr
from .rules import PARTED, At, operator_name

View = Callable[[At], "Sequence[Expr] | None"]

_ZERO = sympy.Integer(0)
_NO_END = 2**63 - 1
"""The end of a slice that has none, as ATen writes it."""


def _same(at: At) -> Sequence[Expr]:
    return at.index


def _permute(at: At) -> Sequence[Expr]:
    source: list[Expr] = [_ZERO] * len(at.index)
    for x, dim in zip(at.index, at["dims"], strict=True):
        source[dim % len(source)] = x
    return source


def _transpose(at: At) -> Sequence[Expr]:
    source = list(at.index)
    first, second = at.dim("dim0"), at.dim("dim1")
    source[first], source[second] = source[second], source[first]
    return source


def _expand(at: At) -> Sequence[Expr]:
    return at.index[len(at.index) - len(at.size(at.source)):]


def _unsqueeze(at: At) -> Sequence[Expr]:
    dim = at["dim"] % len(at.index)
    return (*at.index[:dim], *at.index[dim + 1:])


def _squeeze(at: At) -> Sequence[Expr]:
    """The dimensions that are gone had one element."""
    sizes = at.size(at.source)
    asked = at.arguments.get("dim", range(len(sizes)))
    dims = {d % len(sizes) for d in ([asked] if isinstance(asked, int) else asked)} if sizes else set()
    rest = iter(at.index)
    return [_ZERO if d in dims and n == 1 else next(rest) for d, n in enumerate(sizes)]


def _slice(at: At) -> Sequence[Expr] | None:
    dim = at.dim()
    start = clamped(at, at["start"], at.size(at.source)[dim], default=0)
    return None if start is None else at.replaced(dim, start + at["step"] * at.index[dim])


def _select(at: At) -> Sequence[Expr] | None:
    dim = at.dim(node=at.source)
    at_index = wrapped(at, at.evaluator.integer(at["index"]), at.size(at.source)[dim])
    return None if at_index is None else (*at.index[:dim], at_index, *at.index[dim:])


def _view(at: At) -> Sequence[Expr] | None:
    """Sizes are split into groups of equal product; within a group the linear position is divided anew."""
    if "size" not in at.arguments and "shape" not in at.arguments:  # a view as another dtype
        return None
    sizes, old = list(at.size()), list(at.size(at.source))
    result: list[Expr] = []
    for new_dims, old_dims in groups(sizes, old):
        position: Expr = _ZERO
        for d in new_dims:
            position = position * sizes[d] + at.index[d]
        result += unravelled(at, at.math.recombined(sympy.expand(position)), [old[d] for d in old_dims])
    return result


def groups(new: list[Expr], old: list[Expr]) -> list[tuple[list[int], list[int]]]:
    """Dimensions that correspond: the shortest runs whose products are equal."""
    found, a, c = [], 0, 0
    while a < len(new) or c < len(old):
        run_a, run_c = [a][: len(new) - a], [c][: len(old) - c]
        left, right = (sizes[at] if at < len(sizes) else sympy.Integer(1) for sizes, at in ((new, a), (old, c)))
        a, c = a + len(run_a), c + len(run_c)
        while (order := _compare_products(left, right)) != 0 and (a < len(new) or c < len(old)):
            if (order < 0 and a < len(new)) or c == len(old):
                left, run_a, a = sympy.expand(left * new[a]), [*run_a, a], a + 1
            else:
                right, run_c, c = sympy.expand(right * old[c]), [*run_c, c], c + 1
        found.append((run_a, run_c))
    return found


def _compare_products(left: Expr, right: Expr) -> int:
    """0 if equal, -1 if the left run should grow, 1 if the right one should."""
    if left == right or sympy.expand(left - right) == 0:
        return 0
    if left.is_Integer and right.is_Integer:
        return -1 if left < right else 1
    return -1 if len(left.free_symbols) <= len(right.free_symbols) and (right / left).is_integer is not False else 1


def unravelled(at: At, position: Expr, sizes: list[Expr]) -> list[Expr]:
    """The index of a linear position in a block of these sizes."""
    result: list[Expr] = []
    for size in reversed(sizes[1:]):
        result.append(at.math.mod(position, size))
        position = at.math.floordiv(position, size)
    return [*([position] if sizes else []), *reversed(result)]


def _flip(at: At) -> Sequence[Expr]:
    dims = {d % len(at.index) for d in at["dims"]}
    return [n - 1 - x if d in dims else x for d, (x, n) in enumerate(zip(at.index, at.size(), strict=True))]


def _repeat(at: At) -> Sequence[Expr]:
    sizes = at.size(at.source)
    return [at.math.mod(x, n) for x, n in zip(at.index[len(at.index) - len(sizes):], sizes, strict=True)]


def _roll(at: At) -> Sequence[Expr] | None:
    if not at["dims"]:
        return None
    source = list(at.index)
    for shift, dim in zip(at["shifts"], at["dims"], strict=True):
        n = at.size()[dim % len(source)]
        source[dim % len(source)] = at.math.mod(source[dim % len(source)] - at.evaluator.integer(shift), n)
    return source


def _diagonal(at: At) -> Sequence[Expr]:
    rank = len(at.size(at.source))
    first, second, offset = at["dim1"] % rank, at["dim2"] % rank, at["offset"]
    *rest, along = at.index
    left = iter(rest)
    places = {first: along + max(-offset, 0), second: along + max(offset, 0)}
    return [places[d] if d in places else next(left) for d in range(rank)]


def wrapped(at: At, index: Expr, size: Expr) -> Expr | None:
    """A Python index, negative counted from the end; None if its sign is not known."""
    if at.math.nonnegative(index):
        return index
    return index + size if at.math.nonnegative(-index - 1) else None


def clamped(at: At, value: object, size: Expr, default: int) -> Expr | None:
    """A slice bound as Python reads it, in [0, size]; None if that cannot be said in closed form."""
    bound = at.evaluator.integer(default if value is None else value)
    if bound.is_Integer and bound >= _NO_END:
        return size
    bound = wrapped(at, bound, size)
    if bound is None:
        return None
    if not at.math.nonnegative(bound):
        bound = sympy.Max(bound, 0)
    return bound if at.math.nonnegative(size - bound) else sympy.Min(bound, size)


def _part(at: At) -> Sequence[Expr] | None:
    """One result of split, split_with_sizes, unbind or chunk."""
    parent, which = at.node.args
    name, values = operator_name(parent), at.evaluator.arguments(parent)
    if name not in PARTED:
        return None
    dim = values["dim"] % len(at.size(at.source))
    if name == "unbind":
        return (*at.index[:dim], sympy.Integer(which), *at.index[dim:])
    sizes = [at.evaluator.integer(part.shape[dim]) for part in parent.meta["val"][:which]]
    return at.replaced(dim, at.index[dim] + sum(sizes, _ZERO))


VIEWS: dict[str, View] = {
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh", "lift"), _same),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy"), _view),
    **dict.fromkeys(("expand", "broadcast_to", "expand_copy"), _expand),
    **dict.fromkeys(("slice", "slice_copy"), _slice),
    **dict.fromkeys(("select", "select_copy"), _select),
    **dict.fromkeys(("squeeze", "squeeze_copy"), _squeeze),
    **dict.fromkeys(("unsqueeze", "unsqueeze_copy"), _unsqueeze),
    **dict.fromkeys(("permute", "permute_copy"), _permute),
    **dict.fromkeys(("transpose", "transpose_copy", "swapaxes"), _transpose),
    **dict.fromkeys(("t", "t_copy", "numpy_T"), lambda at: at.index[::-1]),
    **dict.fromkeys(("diagonal", "diagonal_copy"), _diagonal),
    "getitem": _part, "flip": _flip, "repeat": _repeat, "roll": _roll,
}
