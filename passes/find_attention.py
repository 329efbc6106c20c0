"""graph  =>  every attention in it, as flashmla::sdpa or written by hand, in the order of the graph"""

from __future__ import annotations

from torch.fx import Graph

from . import find_sdpa, find_softmax, softmax_cores
from .attention import Found
from .denote import Evaluator


def find(graph: Graph, evaluator: Evaluator) -> list[Found]:
    """Needs: the functional graph. Keeps: everything; reads only."""
    order = {node.name: at for at, node in enumerate(graph.nodes)}
    found: list[Found] = [find_sdpa.match(node, evaluator) for node in graph.nodes if node.target is find_sdpa.TARGET]
    for core in softmax_cores.cores(graph):
        site = find_softmax.match(core, evaluator)
        if site is not None:
            found.append(site)
    return sorted(found, key=lambda site: order[site.node if not hasattr(site, "anchor") else site.anchor.name])
