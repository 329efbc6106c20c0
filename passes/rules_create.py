"""Tensors made of nothing: constants, iota, and one-element constants lifted into the module."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from ..expr import Expr
from .rules import At, Rule, constant
from .rules_logic import pick

_LIFTED = ("_tensor_constant", "lifted_tensor", "_lifted_tensor")


def _full(at: At) -> Expr | None:
    value = at["fill_value"]
    return constant(value, at.dtype) if isinstance(value, (bool, int, float)) else at.evaluator.scalar(value)


def _scalar_tensor(at: At) -> Expr | None:
    value = at["s"]
    return constant(value, at.dtype) if isinstance(value, (bool, int, float)) else at.evaluator.scalar(value)


def _filled(value: float) -> Rule:
    return lambda at: constant(value, at.dtype)


def _iota(at: At) -> Expr | None:
    return at.evaluator.scalar(at["start"]) + at.index[0] * at.evaluator.scalar(at["step"])


def _arange(at: At) -> Expr | None:
    start, step = (at.evaluator.scalar(at.arguments.get(name) or default) for name, default in (("start", 0), ("step", 1)))
    return start + at.index[0] * step if start is not None and step is not None and (start + step).is_integer else None


def _triangle(lower: bool) -> Rule:
    def rule(at: At) -> Expr | None:
        row, column = at.index[-2:]
        kept = at.math.relation("<=", *((column - row, sympy.Integer(at["diagonal"])) if lower else
                                        (sympy.Integer(at["diagonal"]), column - row)))
        value = at.operand("self")
        return pick(kept, value, constant(0, at.dtype))
    return rule


def lifted_value(node: fx.Node) -> Any:
    """The value of a one-element constant that tracing lifted out of the code; None for parameters and buffers."""
    if not str(node.target).rpartition(".")[2].startswith(_LIFTED):
        return None
    held = node.graph.owning_module
    for name in str(node.target).split("."):
        held = getattr(held, name, None)
    if isinstance(held, FakeTensor):
        held = held.constant
    if not isinstance(held, torch.Tensor) or held.numel() != 1:
        return None
    with unset_fake_temporarily():  # it is real, and may lie on a GPU, where a fake mode would not read it
        return held.item()


def _get_attr(at: At) -> Expr | None:
    value = lifted_value(at.node)
    return constant(value) if isinstance(value, (bool, int, float)) else None


RULES: dict[str, Rule] = {
    **dict.fromkeys(("full", "full_like", "new_full", "fill"), _full),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _filled(0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _filled(1)),
    "scalar_tensor": _scalar_tensor, "iota": _iota, "arange": _arange, "get_attr": _get_attr,
    "tril": _triangle(True), "triu": _triangle(False),
}
