"""What a rule sees: the operator at one index, its arguments by name, and how to read its operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import fx

from ..expr import Expr, Where, is_bool

if TYPE_CHECKING:
    from .denote import Evaluator

Rule = Callable[["At"], "Expr | None"]
"""Value of the element, or None: the element is loaded."""

PARTED = frozenset({"split", "split_with_sizes", "split_with_sizes_copy", "split_copy", "unbind", "chunk"})
"""Operators whose results, taken by getitem, are views of their operand."""


@dataclass(frozen=True)
class At:
    """An operator (node) at one index of its result."""

    evaluator: Evaluator
    node: fx.Node
    index: tuple[Expr, ...]
    arguments: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def source(self) -> fx.Node:
        """The tensor a view looks at; that of the split for one of its parts."""
        first = next(iter(self.arguments.values()))
        parted = operator_name(self.node) == "getitem" and operator_name(first) in PARTED
        return first.args[0] if parted else first

    @property
    def dtype(self) -> torch.dtype:
        return self.node.meta["val"].dtype

    @property
    def math(self) -> Any:
        return self.evaluator.math

    def size(self, node: fx.Node | None = None) -> tuple[Expr, ...]:
        return self.evaluator.size(node or self.node)

    def dim(self, name: str = "dim", node: fx.Node | None = None) -> int:
        """A dimension argument, counted from the front."""
        rank = len(self.size(node))
        return self[name] % rank if rank else 0

    def read(self, node: fx.Node, index: Sequence[Expr]) -> Expr:
        return self.evaluator.read(node, index)

    def operand(self, name: str) -> Expr | None:
        """The argument's value at this index: a tensor is broadcast, a number stands for itself."""
        value = self[name]
        if not isinstance(value, fx.Node) or not isinstance(value.meta["val"], torch.Tensor):
            return self.evaluator.scalar(value)
        return self.read(value, self.index[len(self.index) - value.meta["val"].dim():])

    def operand_dtype(self, name: str) -> torch.dtype | None:
        """dtype of a tensor argument; None for a number."""
        value = self[name]
        is_tensor = isinstance(value, fx.Node) and isinstance(value.meta["val"], torch.Tensor)
        return value.meta["val"].dtype if is_tensor else None

    def number(self, name: str) -> Expr | None:
        """The operand as a number: a condition counts 0 or 1."""
        value = self.operand(name)
        return None if value is None else as_number(value)

    def replaced(self, dim: int, x: Expr) -> tuple[Expr, ...]:
        """This index with another entry at dim."""
        return (*self.index[:dim], x, *self.index[dim + 1:])

    def shifted(self, source: fx.Node, dim: int, x: Expr, part: str = "") -> Expr:
        """source at this index with x at dim, where x is known to be in range: read at a fresh symbol, then put x in."""
        if x.is_number:
            return self.read(source, self.replaced(dim, x))
        u = self.evaluator.fresh(self.node, dim, self.size(source)[dim], part)
        return substituted(self.read(source, self.replaced(dim, u)), u, x)


def substituted(value: Expr, symbol: Expr, by: Expr) -> Expr:
    return value.xreplace({symbol: by}) if symbol in value.free_symbols else value


def operator_name(node: fx.Node) -> str:
    """`add` for aten.add.Tensor; `operator.getitem` and the like by their Python name; else the kind of node."""
    if node.op != "call_function":
        return node.op
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if schema is not None else getattr(node.target, "__name__", str(node.target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments by their name in the operator's schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(k): v for k, v in enumerate(node.args)}
    values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    values = {a.name: values.get(a.name) for a in schema.arguments}
    values.update((a.name, v) for a, v in zip(schema.arguments, node.args, strict=False))
    return {**values, **node.kwargs}


def constant(value: bool | int | float, dtype: torch.dtype | None = None) -> Expr:
    """A Python number as the expression a tensor of dtype would hold; whole floats become integers."""
    if dtype is not None:
        value = torch.tensor(value, dtype=dtype, device="cpu").item()
    if isinstance(value, bool):
        return sympy.true if value else sympy.false
    if isinstance(value, int):
        return sympy.Integer(value)
    if math.isinf(value) or math.isnan(value):
        return sympy.nan if math.isnan(value) else sympy.oo if value > 0 else -sympy.oo
    return sympy.Integer(int(value)) if value == int(value) and abs(value) < 2**53 else sympy.Float(value)


def as_number(value: Expr) -> Expr:
    """A condition as 0 or 1."""
    return Where(value, sympy.Integer(1), sympy.Integer(0)) if is_bool(value) else value
