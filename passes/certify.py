"""max |absorbed - expanded| / max |expanded|, both computed from the graph itself on random numbers: the certificate

Both forms take the same random q, latent, rope and weights (normal; weights divided by sqrt(R)), and the same softmax of
q·k / sqrt(D) without a mask: what is compared is how K, V and q were read, and every view and product put in the graph.
Where the form is chosen at run time, both forms of the operator are compared. Symbolic sizes are the sizes at hand. Costs one
expanded attention, on the device of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Node
from torch.fx.node import map_arg

from .. import expr as E
from ..ir import AttentionSpec
from .emit_latent import Emitted


def probe(q: Node, k: Node, v: Node, done: Emitted) -> float:
    """The greatest difference of the two forms, relative to the greatest output. q, k, v [B, H, T or S, D] as written."""
    with unset_fake_temporarily(), torch.no_grad():
        values = _Values(done)
        scale = int(q.meta["val"].shape[-1]) ** -0.5
        expanded = _attend(values.of(q), values.of(k), values.of(v), scale)
        one_form = done.attend.target is torch.ops.flashmla.attend_latent.default
        found = [_absorbed(values, done, scale)] if one_form else _either(values, done, scale)
        differences = [(form.double() - expanded.double()).abs().max() for form in found]
        return float(max(differences) / expanded.double().abs().max())


def _absorbed(values: _Values, done: Emitted, scale: float) -> Tensor:
    """What the products in the graph make of attention over the latent."""
    q_latent, q_rope, latent, rope = (values.of(node) for node in done.attend.args[:4])  # type: ignore[arg-type]
    queries, keys = torch.cat([q_latent, q_rope], -1), torch.cat([latent, rope], -1)[:, None]
    values.known[done.attend] = _attend(queries, keys, latent[:, None], scale)
    return values.of(done.value)


def _either(values: _Values, done: Emitted, scale: float) -> list[Tensor]:
    """Both forms of attend_projected, of the softmax alone."""
    operands = map_arg(done.attend.args[:7], values.of)
    spec = str(AttentionSpec(score=scale * E.s))
    return [torch.ops.flashmla.attend_projected(*operands, gain, [], [], [], spec) for gain in (1, 0)]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    real = torch.promote_types(q.dtype, torch.float32)
    weights = torch.softmax((q @ k.transpose(-1, -2)).to(real) * scale, -1)
    return weights.to(v.dtype) @ v


class _Values:
    """What nodes hold, given random numbers for what both forms start from."""

    def __init__(self, done: Emitted) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.known: dict[Node, Any] = {node: self._random(node) for node in done.sources}
        self.known |= {node: self._random(node) / done.rank**0.5 for node in done.weights}

    def of(self, node: Node) -> Any:
        """Computed from its operands; an integer is the one at hand."""
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            return _size(value)
        if node not in self.known:
            args, kwargs = map_arg((node.args, node.kwargs), self.of)
            self.known[node] = self._random(node) if node.op != "call_function" else node.target(*args, **kwargs)
        return self.known[node]

    def _random(self, node: Node) -> Tensor:
        value = node.meta["val"]
        drawn = torch.randn([_size(n) for n in value.shape], generator=self.generator)
        return drawn.to(value.device, value.dtype)


def _size(n: int | torch.SymInt) -> int:
    return int(n.node.hint) if isinstance(n, torch.SymInt) else int(n)
