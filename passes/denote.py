"""read(node, index) = the value of one element of a tensor, as an expression over a few tensor loads

    mask[b, h, i, j]  =  (j <= i) & M:arg3_1[b, j]

An FX tensor node denotes a function from an index to a scalar. A rule pushes the index backwards through the operator to
its operands (`rules_*.py`, one table entry per ATen operator); where there is no rule, the element is a `Load` of the
node itself. Values of integer and bool tensors are exact; those of floating tensors are real arithmetic, so a comparison
of computed floats is never repeated symbolically: it stays a load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from ..expr import Expr, Load, index_symbol, table, truth
from . import rules_arithmetic, rules_cast, rules_create, rules_gather, rules_logic, rules_reduce, rules_view
from .index_math import IndexMath, plain
from .rules import At, arguments, constant, operator_name

_FLOAT_OPS = 64
"""Floating operators folded into one expression at most; beyond, the tensor is loaded."""

RULES: dict[str, Callable[[At], Expr | None]] = {
    **rules_arithmetic.RULES, **rules_cast.RULES, **rules_create.RULES, **rules_gather.RULES, **rules_logic.RULES,
    **rules_reduce.RULES,
}
VIEWS: dict[str, Callable[[At], Sequence[Expr] | None]] = rules_view.VIEWS


@dataclass(frozen=True)
class Product:
    """Load(node, n, r, c) = sum over d of lhs[n, r, d] * rhs[n, d, c]; matrices [r, d] and [d, c] have no n."""

    node: fx.Node
    lhs: fx.Node
    rhs: fx.Node


@dataclass
class _State:
    """What was read under one choice of ranges."""

    math: IndexMath
    memo: dict[tuple[fx.Node, tuple[Expr, ...]], Expr] = field(default_factory=dict)


class Evaluator:
    """Reads elements of the tensors of a functional ATen graph whose nodes carry `meta["val"]`.

    `ranges` gives the exclusive upper bound of each index symbol (0 <= symbol < bound): set it before reading.
    `leaves` names the tensors loaded so far, `products` those of them that are matrix products, `scalars` the run-time
    floats (SymFloat) met, `ramps` the position that a loaded count of jumps follows (rules_reduce), and its dimension.
    A 0-dim tensor is loaded as if it were of shape [1].
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.ranges: dict[Expr, Expr] = {}
        self.leaves: dict[str, fx.Node] = {}
        self.products: dict[str, Product] = {}
        self.scalars: dict[Expr, fx.Node] = {}
        self.ramps: dict[Expr, tuple[Expr, int]] = {}
        self._states: dict[frozenset[tuple[Expr, Expr]], _State] = {}
        self._state: _State | None = None
        self._sizes: dict[fx.Node, tuple[Expr, ...]] = {}
        self.least: dict[Expr, Expr] = {}
        self._arguments: dict[fx.Node, dict[str, Any]] = {}
        self._weights: dict[fx.Node, int] = {}

    # ------------------------------------------------------------------------------------------------------- reading

    def read(self, node: fx.Node, index: Sequence[Expr]) -> Expr:
        """The element of node at index: a condition for a bool tensor, else a number."""
        if self._state is not None:
            return self._read(node, index)
        self._state = self._state_of_ranges()
        try:
            return self._read(node, index)
        finally:
            self._state = None

    def locate(self, node: fx.Node, index: Sequence[Expr]) -> tuple[fx.Node, tuple[Expr, ...]]:
        """The tensor and index an element is a view or copy of: pushes through pure data movement only."""
        if self._state is None:
            self._state = self._state_of_ranges()
            try:
                return self.locate(node, index)
            finally:
                self._state = None
        index = self.canonical(node, index)
        while (name := operator_name(node)) in VIEWS:
            at = At(self, node, index, self.arguments(node))
            moved = VIEWS[name](at)
            source = at.source
            if moved is None or source.meta["val"].dtype != node.meta["val"].dtype:
                break
            node, index = source, self.canonical(source, moved)
        return node, index

    def _read(self, node: fx.Node, index: Sequence[Expr]) -> Expr:
        key = (node, self.canonical(node, index))
        memo = self.state.memo
        if key not in memo:
            memo[key] = self._denote(*key)
        return memo[key]

    def _denote(self, node: fx.Node, index: tuple[Expr, ...]) -> Expr:
        name = operator_name(node)
        at = At(self, node, index, self.arguments(node))
        if name in VIEWS:
            moved = VIEWS[name](at)
            return self.leaf(node, index) if moved is None else self._read(at.source, moved)
        if name not in RULES or at.dtype.is_floating_point and self._weight(node) > _FLOAT_OPS:
            return self.leaf(node, index)
        value = RULES[name](at)
        if value is None or value.has(sympy.nan, sympy.zoo):
            return self.leaf(node, index)
        return value

    def leaf(self, node: fx.Node, index: Sequence[Expr]) -> Expr:
        """The element as a load of the tensor itself."""
        dtype = node.meta["val"].dtype
        letter = "M" if dtype == torch.bool else "F" if dtype.is_floating_point or dtype.is_complex else "T"
        self.leaves[f"{letter}:{node.name}"] = node
        load = Load(table(f"{letter}:{node.name}"), *(index or (sympy.Integer(0),)))
        return truth(load) if letter == "M" else load

    def product(self, node: fx.Node, index: Sequence[Expr], lhs: fx.Node, rhs: fx.Node) -> Expr:
        """The element as a load of lhs @ rhs, which is node itself or (baddbmm, addmm) a part of it."""
        name = f"F:{node.name}"
        if operator_name(node) in ("baddbmm", "addmm"):
            name += "_product"
        else:
            self.leaves[name] = node
        self.products[name] = Product(node, lhs, rhs)
        return Load(table(name), *index)

    def fresh(self, node: fx.Node, dim: int, size: Expr, part: str = "") -> Expr:
        """An index symbol 0 <= u < size, the same one each time it is asked for."""
        symbol = index_symbol(f"u:{node.name}:{dim}{part}")
        self.state.math.ranges[symbol] = size  # type: ignore[index]
        return symbol

    # ---------------------------------------------------------------------------------------------------------- facts

    @property
    def state(self) -> _State:
        assert self._state is not None
        return self._state

    @property
    def math(self) -> IndexMath:
        """Index arithmetic under the present ranges."""
        return (self._state or self._state_of_ranges()).math

    def _state_of_ranges(self) -> _State:
        key = frozenset(self.ranges.items())
        if key not in self._states:
            self._states[key] = _State(IndexMath(dict(self.ranges), self.least))
        return self._states[key]

    def size(self, node: fx.Node) -> tuple[Expr, ...]:
        """The shape of node, as expressions over torch's own size symbols."""
        if node not in self._sizes:
            self._sizes[node] = tuple(map(self.integer, node.meta["val"].shape))
        return self._sizes[node]

    def integer(self, value: Any) -> Expr:
        """An int, SymInt or node holding one, as an expression. Its symbols' lower bounds are noted."""
        if isinstance(value, fx.Node):
            value = value.meta["val"]
        if not isinstance(value, torch.SymInt):
            return sympy.Integer(value)
        known = getattr(value.node.shape_env, "var_to_range", {})
        for symbol in value.node.expr.free_symbols:
            if symbol in known and known[symbol].lower.is_Integer:
                self.least[symbol] = known[symbol].lower
        return plain(value.node.expr)

    def scalar(self, value: Any) -> Expr | None:
        """A Python or symbolic number as an expression; None if it is none."""
        if isinstance(value, (bool, int, float)):
            return constant(value)
        if isinstance(value, torch.SymInt) or isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.SymInt):
            return self.integer(value)
        if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.SymFloat):
            symbol = sympy.Symbol(f"x:{value.name}", real=True)
            self.scalars[symbol] = value
            return symbol
        if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), (bool, int, float)):
            return constant(value.meta["val"])
        return None

    def arguments(self, node: fx.Node) -> Mapping[str, Any]:
        """The operator's arguments by their name in its schema."""
        if node not in self._arguments:
            self._arguments[node] = arguments(node)
        return self._arguments[node]

    def canonical(self, node: fx.Node, index: Sequence[Expr]) -> tuple[Expr, ...]:
        """The index, 0 where the dimension has one element only."""
        return tuple(sympy.Integer(0) if n == 1 else sympy.sympify(x) for x, n in zip(index, self.size(node), strict=True))

    def _weight(self, node: fx.Node) -> int:
        """Floating operators between node and its leaves, at most _FLOAT_OPS + 1."""
        if node not in self._weights:
            self._weights[node] = 0
            name = operator_name(node)
            if (name in RULES or name in VIEWS) and name not in rules_reduce.RULES:
                values = ((n, n.meta.get("val")) for n in node.all_input_nodes)
                inputs = [n for n, value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]
                total = int(name in rules_arithmetic.RULES) + sum(map(self._weight, inputs))
                self._weights[node] = min(total, _FLOAT_OPS + 1)
        return self._weights[node]
