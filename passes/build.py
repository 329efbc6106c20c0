"""Building nodes: call an operator before a node, with its meta["val"] computed as the graph's own fakes would."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

aten = torch.ops.aten


class Builder:
    """Inserts nodes before `anchor`. Values are fake tensors: shape, stride and dtype are exact."""

    def __init__(self, graph: Graph, anchor: Node):
        self.graph = graph
        self.anchor = anchor

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """One call_function node; its value is what the operator's fake returns."""
        with self.graph.inserting_before(self.anchor):
            node = self.graph.call_function(target, args, kwargs)
        values = map_arg(args, lambda n: n.meta["val"])
        with self.anchor.meta["val"].fake_mode:
            node.meta["val"] = target(*values, **kwargs)
        for key in ("stack_trace", "nn_module_stack", "original_aten"):
            if key in self.anchor.meta:
                node.meta[key] = self.anchor.meta[key]
        return node

    def integer(self, value: sympy.Basic) -> int | Node:
        """A size as an argument: an int, or the node of a SymInt, computed from the inputs' sizes where need be.

        Raises LookupError if a symbol in it is the size of no input.
        """
        shape_env = self.anchor.meta["val"].fake_mode.shape_env
        value = shape_env.replace(value) if shape_env is not None else value  # it may have been specialised since
        if value.is_Integer:
            return int(value)
        known = self._known(value)
        if known is not None:
            return known
        if not isinstance(value, (sympy.Add, sympy.Mul)):
            raise LookupError(f"no node holds {value}")
        combine = operator.add if isinstance(value, sympy.Add) else operator.mul
        return reduce(lambda left, right: self.call(combine, left, right), map(self.integer, value.args))

    def _known(self, value: sympy.Basic) -> Node | None:
        """A node before the anchor that holds this SymInt or SymFloat, or an input's size."""
        sized = None
        for node in self.graph.nodes:
            if node is self.anchor:
                break
            held = node.meta.get("val")
            if isinstance(held, (torch.SymInt, torch.SymFloat)) and held.node.expr == value:
                return node
            if sized is None and node.op == "placeholder" and isinstance(held, torch.Tensor):
                dims = [at for at, size in enumerate(held.shape) if isinstance(size, torch.SymInt) and size.node.expr == value]
                sized = (node, dims[0]) if dims else None
        return self.call(aten.sym_size.int, *sized) if sized else None

