"""Programs traced as AOTAutograd would, and expressions evaluated on concrete tensors: the two sides of every test here."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from mla_compiler import expr as E
from mla_compiler.passes.denote import Evaluator


@dataclass
class Traced:
    """A functional ATen graph, the node it returns, and the tensors of a concrete run by node."""

    graph: fx.Graph
    out: fx.Node
    module: fx.GraphModule

    def run(self, *args: Tensor) -> dict[fx.Node, Any]:
        """Every node's concrete value."""
        recorder = _Recorder(self.module)
        recorder.run(*args)
        return recorder.env_of_all


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.env_of_all: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.env_of_all[n] = result = super().run_node(n)
        return result


def trace(program: Callable[..., Tensor], *args: Tensor, dynamic: bool = False) -> Traced:
    """The functional ATen graph of a program under Inductor's decompositions."""
    traced = make_fx(
        torch.func.functionalize(program, remove="mutations_and_views"),
        decomposition_table=select_decomp_table(),
        tracing_mode="symbolic" if dynamic else "fake",
    )(*args)
    output = next(n for n in traced.graph.nodes if n.op == "output")
    return Traced(traced.graph, output.args[0] if isinstance(output.args[0], fx.Node) else output.args[0][0], traced)


def denote(traced: Traced, symbols: tuple[sympy.Symbol, ...]) -> tuple[sympy.Basic, Evaluator]:
    """The returned tensor's element at the symbols."""
    evaluator = Evaluator(traced.graph)
    evaluator.ranges.update(zip(symbols, evaluator.size(traced.out), strict=True))
    return evaluator.read(traced.out, symbols), evaluator


def grid(symbols: tuple[sympy.Symbol, ...], shape: tuple[int, ...]) -> dict[sympy.Basic, Tensor]:
    """Each symbol as a tensor that counts along its own dimension."""
    return {
        s: torch.arange(n).reshape([-1 if d == k else 1 for d in range(len(shape))])
        for k, (s, n) in enumerate(zip(symbols, shape, strict=True))
    }


def size_values(traced: Traced, values: Mapping[fx.Node, Any]) -> dict[sympy.Basic, Tensor]:
    """torch's size symbols, from the shapes of the run."""
    found = {}
    for node, value in values.items():
        if isinstance(value, Tensor) and "val" in node.meta:
            for size, n in zip(node.meta["val"].shape, value.shape, strict=True):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    found[size.node.expr] = torch.tensor(n)
    return found


def tables(evaluator: Evaluator, values: Mapping[fx.Node, Any]) -> dict[str, Tensor]:
    """The loaded tensors, and products computed anew."""
    found = {name: values[node] for name, node in evaluator.leaves.items()}
    for name, product in evaluator.products.items():
        found[name] = values[product.lhs] @ values[product.rhs]
    return found


_FOLDS = {sympy.Add: operator.add, sympy.Mul: operator.mul, sympy.And: operator.and_, sympy.Or: operator.or_,
          sympy.Xor: operator.xor, sympy.Max: torch.maximum, sympy.Min: torch.minimum}
_BINARY = {sympy.Eq: operator.eq, sympy.Ne: operator.ne, sympy.Lt: operator.lt, sympy.Le: operator.le, sympy.Gt: operator.gt,
           sympy.Ge: operator.ge, E.FloorDiv: operator.floordiv, E.PythonMod: torch.remainder, sympy.Pow: torch.pow}
_UNARY = {sympy.Not: operator.invert, sympy.Abs: torch.abs, sympy.exp: torch.exp, sympy.tanh: torch.tanh, sympy.log: torch.log}


def evaluate(expr: sympy.Basic, symbols: Mapping[sympy.Basic, Tensor], loaded: Mapping[str, Tensor]) -> Tensor:
    """The expression on tensors: floats in float64, integers in int64. It must not load out of bounds where it is read."""
    def of(e: sympy.Basic) -> Tensor:
        return evaluate(e, symbols, loaded)

    if expr in symbols:
        return symbols[expr]
    if isinstance(expr, sympy.logic.boolalg.BooleanAtom):
        return torch.tensor(bool(expr))
    if expr.is_number:
        return torch.tensor(int(expr)) if expr.is_Integer else torch.tensor(float(expr), dtype=torch.float64)
    if isinstance(expr, E.Load):
        return _load(loaded[expr.name], [of(x) for x in expr.index])
    if isinstance(expr, E.Where):
        return torch.where(*map(of, expr.args))
    kind = type(expr)
    if kind in _FOLDS:
        return reduce(lambda a, c: _FOLDS[kind](*torch.broadcast_tensors(*_same_type(a, c))), map(of, expr.args))
    if kind is sympy.Pow:
        return of(expr.args[0]).double() ** of(expr.args[1])
    return _BINARY[kind](*map(of, expr.args)) if kind in _BINARY else _UNARY[kind](of(expr.args[0]))


def _same_type(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    common = torch.promote_types(a.dtype, c.dtype)
    return a.to(common), c.to(common)


def _load(held: Tensor, index: list[Tensor]) -> Tensor:
    """An element; where the index is outside (a branch not taken), any element."""
    held = held.reshape(1) if held.dim() == 0 else held
    inside = [x.clamp(0, n - 1) for x, n in zip(index, held.shape, strict=True)]
    value = held[tuple(torch.broadcast_tensors(*inside))]
    return value.double() if value.dtype.is_floating_point else value.long()
