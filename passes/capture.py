"""F.scaled_dot_product_attention(q, k, v, ...)  =>  flashmla::sdpa(q, k, v, ...), whole and opaque

SDPA is composite: AOTAutograd would split it into a kernel that depends on the device, and its mask with it. As one operator
it comes through to the functional graph, where masks and caches stand in plain sight.

Needs: the torch-level graph from Dynamo, and no gradient through it.
Keeps: the value of every node; `flashmla::sdpa` runs F.scaled_dot_product_attention until a later pass understands it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from ..ir import Reason, Rejected

SDPA = (torch.nn.functional.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
SOFTMAX = (torch.softmax, torch.nn.functional.softmax, torch.Tensor.softmax, "softmax")
_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}

Left = tuple[Node, Rejected]


def _whole_sdpa(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:
    return torch.ops.flashmla.sdpa.default(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def _multi_head() -> Any:
    """F.multi_head_attention_forward, which Dynamo keeps as one call, with the SDPA inside it kept whole.

    It must not hand over to a torch function mode, AOTAutograd's for one, which would call the original.
    """
    theirs = F.multi_head_attention_forward
    names = {**vars(F), "scaled_dot_product_attention": _whole_sdpa, "has_torch_function": lambda relevant: False}
    ours = FunctionType(theirs.__code__, names, theirs.__name__, theirs.__defaults__, theirs.__closure__)
    ours.__kwdefaults__ = theirs.__kwdefaults__
    return ours


whole_multi_head_attention = _multi_head()


def needs_gradient(inputs: Sequence[object]) -> bool:
    """Whether AOTAutograd will differentiate this graph: the same test that it makes itself."""
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)


def leave_for_gradient(module: GraphModule) -> list[Left]:
    """Every SDPA call and every softmax (an attention written by hand has one) of a graph that is to be differentiated."""
    return [
        (node, Rejected(node.name, Reason.GRADIENT))
        for node in _nodes(module) if node.target in SDPA or node.target in SOFTMAX
    ]


def capture(module: GraphModule) -> list[Left]:
    """Replace the SDPA calls, in place; those that must stay as they are, and why."""
    left: list[Left] = []
    for node in _nodes(module):
        if _is_flex(node):
            left.append((node, Rejected(node.name, Reason.FLEX)))
        elif node.op == "call_function" and node.target in SDPA:
            left += _capture(node)
        elif node.target is F.multi_head_attention_forward:
            left += _capture_multi_head(node)
    for child in _graph_modules(module):
        child.recompile()
    return left


def _capture(node: Node) -> list[Left]:
    given = {**_DEFAULTS, **dict(zip(_PARAMETERS, node.args, strict=False)), **node.kwargs}
    if given["dropout_p"] != 0:
        return [(node, Rejected(node.name, Reason.DROPOUT, f"dropout_p={given['dropout_p']}"))]
    if any(_is_nested(given[name]) for name in ("query", "key", "value")):
        return [(node, Rejected(node.name, Reason.NESTED))]
    node.target = torch.ops.flashmla.sdpa.default
    node.args = tuple(given[name] for name in _PARAMETERS)
    node.kwargs = {}
    return []


def _capture_multi_head(node: Node) -> list[Left]:
    """dropout_p is its eleventh argument, and acts in training alone, which is its default."""
    dropout = node.kwargs.get("dropout_p", node.args[10] if len(node.args) > 10 else 0.0)
    if dropout != 0 and node.kwargs.get("training", True):
        return [(node, Rejected(node.name, Reason.DROPOUT, f"dropout_p={dropout}"))]
    node.target = whole_multi_head_attention
    return []


def _is_nested(value: object) -> bool:
    return isinstance(value, Node) and bool(getattr(value.meta.get("example_value"), "is_nested", False))


def _is_flex(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "").startswith("flex_attention")


def _graph_modules(module: GraphModule) -> Iterator[GraphModule]:
    return (child for child in module.modules() if isinstance(child, GraphModule))


def _nodes(module: GraphModule) -> Iterator[Node]:
    return (node for child in _graph_modules(module) for node in list(child.graph.nodes))
