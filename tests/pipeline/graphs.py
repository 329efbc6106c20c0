"""Programs as functional ATen graphs, and what the pipeline makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from mla_compiler import lowering
from mla_compiler.ir import Site
from mla_compiler.options import Options
from mla_compiler.pipeline import Run, run_passes

lowering.register()


def traced(program: Callable, *inputs: torch.Tensor, symbolic: bool = False) -> GraphModule:
    """The functional graph that AOTAutograd would hand over: mutations removed, Inductor's decompositions applied."""
    with torch.no_grad():
        mode = "symbolic" if symbolic else "fake"
        return make_fx(torch.func.functionalize(program), select_decomp_table(), mode)(*inputs)


def piped(module: GraphModule, **options: object) -> list[Site]:
    """Run the pipeline over the graph, in place."""
    sites = run_passes(Run(module.graph, Options(**options), lowering))
    module.recompile()
    return sites


def sdpa(q, k, v, mask=None, is_causal=False, scale=None, enable_gqa=False):
    """SDPA as capture leaves it."""
    return torch.ops.flashmla.sdpa(q, k, v, mask, 0.0, is_causal, scale, enable_gqa)


def text(module: GraphModule) -> str:
    """The graph, one node a line, names counted anew: what a golden holds."""
    names: dict[str, str] = {}
    lines = []
    for node in module.graph.nodes:
        names[node.name] = f"%{len(names)}"
        shown = re.sub(r"\b[a-z_]+\w*\b", lambda m: names.get(m[0], m[0]), f"{node.args} {dict(node.kwargs) or ''}".rstrip())
        lines.append(f"{names[node.name]} = {node.op if node.op != 'call_function' else node.target}{shown}")
    return "\n".join(lines) + "\n"
