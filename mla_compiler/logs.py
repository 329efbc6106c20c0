"""Our graphs where PyTorch's own are looked for: TORCH_LOGS="+mla_compiler" and TORCH_TRACE (tlparse).

INFO tells what was found, DEBUG (`+`) prints the graphs; the structured trace gets each graph as artifact `flashmla_<name>`.
"""

from __future__ import annotations

import logging
import sys

import torch
from torch.fx import Graph, GraphModule

log = logging.getLogger(__name__)


def log_graph(name: str, graph: Graph | GraphModule, show: bool = False) -> None:
    """Log the graph, and trace it, under `name` ("before", "after", ...), and print it to standard error if `show`.

    Its text is made only if someone wants it.
    """
    if log.isEnabledFor(logging.DEBUG):
        log.debug("graph %s\n%s", name, readable(graph))
    if show:
        print(f"flashmla: graph {name}\n{readable(graph)}", file=sys.stderr)
    trace(name, graph)


def trace(name: str, payload: Graph | GraphModule | str) -> None:
    """Give the structured trace a graph, or a text, as the artifact `flashmla_<name>`."""
    torch._logging.trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"flashmla_{name}", "encoding": "string"},
        payload_fn=lambda: payload if isinstance(payload, str) else readable(payload),
    )


def readable(graph: Graph | GraphModule) -> str:
    """Python source of the graph with the shape of every value, as print_readable writes it."""
    module = graph if isinstance(graph, GraphModule) else graph.owning_module
    if isinstance(module, GraphModule) and (module is graph or module.graph is graph):
        return str(module.print_readable(print_output=False))
    return str(graph)
