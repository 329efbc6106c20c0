"""functional graph  =>  the same graph with flashmla::attend where attention was understood

    find ▸ specify ▸ fold ▸ absorb ▸ page ▸ support ▸ summarize ▸ sparsify ▸ emit

Each pass takes the sites that are still in the running and either advances or rejects each of them; the graph is checked
after every pass that writes to it.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import sympy
import torch
from torch.fx import Graph, Node

from .absorption import Latent, absorb, by_heads, emit_over_latents
from .errors import VerifyError
from .ir import AttentionSpec, Reason, Rejected, Site
from .options import Options
from .paging import Pages, page
from .passes import bound_tables, emit, find_attention, fold_operands, sparsify, specify, summarize_masks
from .passes.attention import Attention
from .passes.build import Builder
from .passes.denote import Evaluator
from .passes.fold_operands import Grid
from .passes.page_cache import Paged
from .passes.summarize_masks import Summary
from .sites import describe, hint, layer_of
from .sparsity import EXACTLY, Rules, Sparsity


class Lowering(Protocol):
    """What the pipeline asks of the lowering, handed in by the backend."""

    def supports(
        self, spec: AttentionSpec, head_dim: int, value_dim: int, dtype: torch.dtype, device_type: str
    ) -> tuple[Reason, str] | None:
        """Why there is no kernel, as reason and what was found; None if there is one."""

    def supports_latent(
        self, spec: AttentionSpec, rank: int, rope: int, dtype: torch.dtype, device_type: str, tokens: bool
    ) -> tuple[Reason, str] | None:
        """The same of attention over a latent."""

    def supports_paged(
        self, spec: AttentionSpec, head_dim: int, value_dim: int, dtype: torch.dtype, device_type: str, format: str, page: int
    ) -> tuple[Reason, str] | None:
        """The same of attention whose keys and values lie in pages of `page` tokens."""

    def choose(self, spec: AttentionSpec, q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], dtype: torch.dtype,
               device: torch.device, pages: tuple[str, int] | None = None) -> tuple[str, str]:
        """Kernel family and configuration, as text; `pages`: of what format and size k and v lie in."""

    def choose_latent(
        self, spec: AttentionSpec, q_latent: tuple[int, ...], rope: tuple[int, ...], tokens: int | None, dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[str, str]:
        """The same of attention over a latent; rope [B, S, P]; `tokens` chosen for each query."""

    def heads_at_once(self, batch: int, heads: int, queries: int, keys: int, width: int, itemsize: int,
                      device: torch.device) -> int:
        """Heads whose K and V, `width` channels together, are made at a time where they are made of a latent."""


@dataclass
class Progress:
    """One site on its way: what is known, or why it was left. `raised` is the spec before masks are summarised."""

    name: str
    anchor: Node
    found: Attention | None = None
    predicate: sympy.Basic = sympy.true
    raised: AttentionSpec | None = None
    spec: AttentionSpec | None = None
    grids: tuple[Grid, Grid, Grid] | None = None
    latent: Latent | None = None
    pages: Pages | None = None
    attend: Node | None = None
    sparsity: str = ""
    rejected: Rejected | None = None

    @property
    def paged(self) -> Paged | None:
        """The pages that a kernel reads its keys and values from."""
        return None if self.pages is None else self.pages.paged

    def reject(self, reason: Reason, found: str = "") -> None:
        self.rejected = Rejected(self.name, reason, found)


@dataclass
class Run:
    """One run of the pipeline over one graph."""

    graph: Graph
    options: Options
    lowering: Lowering
    input_names: dict[str, str] = field(default_factory=dict)
    evaluator: Evaluator = field(init=False)
    sites: list[Progress] = field(default_factory=list)
    summaries: dict[str, Summary] = field(default_factory=dict)
    bounds: dict[str, Node] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    on_pass: Callable[[str, Graph], None] | None = None

    def __post_init__(self) -> None:
        self.evaluator = Evaluator(self.graph)

    def advance(self) -> list[Progress]:
        """The sites not rejected yet; the evaluator is put under each one's ranges by `under`."""
        return [site for site in self.sites if site.rejected is None]

    def under(self, site: Progress) -> Attention:
        assert site.found is not None
        self.evaluator.ranges = site.found.sizes.ranges
        return site.found

    def hints(self) -> dict[sympy.Basic, int]:
        """The sizes at hand, of every symbol that stands alone."""
        sizes = [
            size for value in (node.meta.get("val") for node in self.graph.nodes)
            for size in (value.shape if isinstance(value, torch.Tensor) else [value]) if isinstance(size, torch.SymInt)
        ]
        return {size.node.expr: hint(size) for size in sizes if size.node.expr.is_Symbol}

    def moved(self, anchor: Node, out: Node) -> None:
        """`out` has the anchor's value now: attention over the output of attention, or masked by it, reads that."""
        leaves = self.evaluator.leaves
        leaves.update({name: out for name, node in leaves.items() if node is anchor})
        for site in self.advance():
            if site.grids is not None:
                site.grids = tuple(replace(g, node=out) if g.node is anchor else g for g in site.grids)  # type: ignore
            if site.latent is not None:
                site.latent.moved(anchor, out)


def find(run: Run) -> None:
    """Every attention in the graph; those that the options leave alone are rejected at once."""
    nodes = {node.name: node for node in run.graph.nodes}
    for found in find_attention.find(run.graph, run.evaluator):
        if isinstance(found, Rejected):
            run.sites.append(Progress(found.node, nodes[found.node], rejected=found))
            continue
        site = Progress(found.anchor.name, found.anchor, found)
        run.sites.append(site)
        if not run.options.enable:
            site.reject(Reason.DISABLED, "flashmla.enable=False")
        elif run.options.exclude and re.search(run.options.exclude, layer_of(found.anchor)):
            site.reject(Reason.DISABLED, f"flashmla.exclude={run.options.exclude!r}")


def specify_all(run: Run) -> None:
    for site in run.advance():
        meaning = specify.rewrite(run.under(site), run.options.kv_splits, run.options.autotune)
        if isinstance(meaning, Rejected):
            site.rejected = meaning
        else:
            site.predicate, site.spec = meaning
            site.raised = site.spec


def fold(run: Run) -> None:
    for site in run.advance():
        grids = fold_operands.match(run.under(site), run.evaluator)
        if isinstance(grids, Rejected):
            site.rejected = grids
            continue
        site.grids = grids
        assert site.spec is not None
        site.spec = replace(site.spec, group=grids[1].group)


def support(run: Run) -> None:
    """Leave what no kernel serves."""
    for site in run.advance():
        assert site.found is not None and site.grids is not None and site.spec is not None
        sizes = site.found.sizes
        if 0 in (sizes.batch, sizes.heads, sizes.queries, sizes.keys, sizes.head_dim, sizes.value_dim):
            site.reject(Reason.EMPTY)
            continue
        if site.latent is not None and site.latent.over_latents:
            continue
        refused = served(run, site, site.spec)
        if refused:
            site.reject(*refused)


def served(run: Run, site: Progress, spec: AttentionSpec) -> tuple[Reason, str] | None:
    """Why there is no kernel for the site's operands under `spec`, or None."""
    assert site.found is not None and site.grids is not None
    sizes, q = site.found.sizes, site.grids[0].node.meta["val"]
    named = emit.named(spec, run.evaluator).spec
    given = named, int(sizes.head_dim), int(sizes.value_dim), q.dtype, q.device.type
    paged = site.paged
    return run.lowering.supports(*given) if paged is None else run.lowering.supports_paged(*given, paged.format, paged.k.page)


def summarize(run: Run) -> None:
    for site in run.advance():
        run.under(site)
        builder = Builder(run.graph, site.anchor)
        assert site.spec is not None
        site.spec = summarize_masks.rewrite(site.spec, run.summaries, builder, run.evaluator.leaves)
        site.spec = bound_tables.rewrite(site.spec, run.bounds, builder, run.evaluator.leaves)


def sparsify_all(run: Run) -> None:
    rules, named = Rules.parse(run.options.sparsity), Counter[str]()
    for site in run.advance():
        assert site.spec is not None
        run.under(site)
        wanted = rules.of(layer_of(site.anchor))
        unsuited = _unsuited(site, wanted)
        meaning = sparsify.match(site.name, site.spec, wanted, unsuited, partial(served, run, site))
        if isinstance(meaning, Rejected):
            site.sparsity = f"exact instead of {wanted}: {meaning}"
        else:
            steps = ", in steps of few queries" if site.paged is not None else ""
            site.spec, site.sparsity = meaning, "" if meaning is site.spec else f"{wanted}{steps}"
        if run.options.account and not unsuited and site.paged is None:
            name = layer_of(site.anchor) or site.name
            named[name] += 1
            site.spec = replace(site.spec, site=name if named[name] == 1 else f"{name} #{named[name]}")


def _unsuited(site: Progress, wanted: Sparsity) -> str:
    """Which attention the site is that is exact under that policy; nothing if it is none."""
    if site.latent is not None and site.latent.over_latents:
        return "attention over a latent"
    paged = site.paged
    if paged is None or wanted == EXACTLY:
        return ""
    if wanted.policy != "pages":
        return "keys and values in pages"
    return "" if paged.k.bounds is not None else "keys in pages without bounds: KVPool(..., bounds=True) keeps them"


def emit_all(run: Run) -> None:
    for site in run.advance():
        found = run.under(site)
        builder = Builder(run.graph, site.anchor)
        assert site.spec is not None and site.grids is not None
        try:
            given = emit.arguments(site.spec, run.evaluator, builder)
        except LookupError as error:
            site.reject(Reason.MASK, str(error))
            continue
        if site.latent is not None:
            site.latent.by_heads = by_heads(site, run)
        if site.latent is not None and (site.latent.over_latents or site.latent.by_heads):
            out = emit_over_latents(site, run, given, builder)
        else:
            site.attend, out = emit.rewrite(found, site.grids, given, builder, site.paged)
        site.spec = given.spec
        run.moved(site.anchor, out)
    run.graph.eliminate_dead_code()


PASSES: tuple[tuple[str, Callable[[Run], None]], ...] = (
    ("find", find), ("specify", specify_all), ("fold", fold), ("absorb", absorb), ("page", page),
    ("support", support), ("summarize", summarize), ("sparsify", sparsify_all), ("emit", emit_all),
)
WRITERS = ("summarize", "emit")


def run_passes(run: Run) -> list[Site]:
    """Run every pass in order, in place; what became of each attention."""
    for name, one in PASSES:
        start = time.perf_counter()
        one(run)
        if run.options.verify and name in WRITERS:
            verify(run.graph, name)
        run.seconds[name] = time.perf_counter() - start
        if run.on_pass is not None:
            run.on_pass(name, run.graph)
    return [describe(index, site, run) for index, site in enumerate(run.sites)]


def verify(graph: Graph, name: str) -> None:
    """The graph is well formed and every node of it carries its value. Raises VerifyError."""
    try:
        graph.lint()
    except RuntimeError as error:
        raise VerifyError(f"after pass {name}: {error}", str(graph)) from error
    for node in graph.nodes:
        if node.op == "call_function" and "val" not in node.meta and node.users:
            raise VerifyError(f"after pass {name}: {node.name} carries no value", str(graph))
