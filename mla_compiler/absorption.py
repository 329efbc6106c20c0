"""Latent attention in the pipeline: what K and V are made of, which form is cheaper, what is put in the graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import sympy
from torch.fx import Node

from .costs_latent import Decision, LatentShape, decide
from .ir import Rejected
from .passes import absorb_mla, certify, emit, emit_latent, emit_projected, select_tokens
from .passes.absorb_mla import Latents
from .passes.build import Builder
from .passes.fold_operands import build
from .passes.index_math import plain
from .passes.select_tokens import Selection
from .sparsity import EXACTLY

if TYPE_CHECKING:
    from .pipeline import Progress, Run

_FORCED = {"always": Decision(True, "flashmla.absorb='always'"), "never": Decision(False, "flashmla.absorb='never'")}


@dataclass
class Latent:
    """What is known of a latent attention: its parts or why they could not be read; the tokens chosen; the decision.

    by_heads: expanded, K and V made for some heads at a time, by an operator that takes the latent.
    """

    parts: Latents | Rejected
    decision: Decision
    selection: Selection | None = None
    shape: LatentShape | None = None
    certificate: float = -1.0
    by_heads: bool = False

    @property
    def absorbed(self) -> bool:
        return self.decision.absorb and not self.either

    @property
    def over_latents(self) -> bool:
        """Whether an operator that takes the latent stands for it."""
        return self.absorbed or self.either

    @property
    def either(self) -> bool:
        """Whether the form is chosen at run time."""
        return self.decision.gain is not None

    def moved(self, anchor: Node, out: Node) -> None:
        """`out` has the anchor's value now."""
        if isinstance(self.parts, Latents):
            latent, rope = (replace(g, node=out) if g.node is anchor else g for g in (self.parts.latent, self.parts.rope))
            self.parts = replace(self.parts, latent=latent, rope=rope)

    def text(self) -> str:
        """`absorbed, cheaper: rank 512 + rope 64`, `expanded: the projection adds a bias`, `either, absorbed where T < ...`,
        `expanded, dearer: rank 512 + rope 64, K and V of some heads at a time`."""
        if isinstance(self.parts, Rejected):
            return f"expanded: {self.parts}"
        form = "either" if self.either else "absorbed" if self.absorbed else "expanded"
        sparse = self.absorbed and self.selection is not None and self.selection.tokens is not None
        chosen = f", {self.selection.count} tokens a query" if sparse and self.selection is not None else ""
        some = ", K and V of some heads at a time" if self.by_heads else ""
        return f"{form}, {self.decision.why}: rank {self.parts.rank} + rope {self.parts.rope_size}{chosen}{some}"


def absorb(run: Run) -> None:
    """Decide for each latent attention, and take the tokens that were chosen out of the spec of an absorbed one."""
    for site in run.advance():
        found = run.under(site)
        assert site.grids is not None and site.spec is not None
        parts = absorb_mla.match(found, run.evaluator, site.grids[0].dtype)
        if isinstance(parts, Rejected):
            site.latent = Latent(parts, Decision(False, ""))
        if not isinstance(parts, Latents):
            continue
        selection = select_tokens.match(found, site.spec, run.evaluator)
        shape = _shape(site, parts, selection)
        decision = _FORCED.get(run.options.absorb) or decide(shape, run.evaluator.least, run.hints())
        site.latent = Latent(parts, decision, selection, shape)
        if site.latent.over_latents:
            _take_over(site, run)


def _take_over(site: Progress, run: Run) -> None:
    """The spec of an absorbed attention, or of either form: what there are kernels for."""
    latent, q = site.latent, site.grids[0].node.meta["val"]  # type: ignore[index]
    assert latent is not None and isinstance(latent.parts, Latents) and site.spec is not None and site.found is not None
    spec = site.spec if latent.selection is None else select_tokens.without(site.spec, latent.selection)
    named, kind = emit.named(replace(spec, group=1), run.evaluator).spec, (q.dtype, q.device.type)
    chosen = latent.selection is not None and latent.selection.tokens is not None
    refused = run.lowering.supports_latent(named, latent.parts.rank, latent.parts.rope_size, *kind, chosen)
    if refused:
        latent.decision = Decision(False, f"{refused[0].value}; found {refused[1]}")
        return
    sizes = site.found.sizes
    expanded = run.lowering.supports(named, int(sizes.head_dim), int(sizes.value_dim), *kind) if latent.either else None
    if expanded:
        latent.decision = Decision(True, f"expanded {expanded[0].value}; found {expanded[1]}")
    site.spec = site.raised = replace(spec, group=1, heads_first=spec.heads_first and latent.either)


def _shape(site: Progress, parts: Latents, selection: Selection | None) -> LatentShape:
    assert site.found is not None and site.grids is not None
    sizes = site.found.sizes
    tokens = plain(selection.count) if selection is not None and selection.tokens is not None else None
    return LatentShape(
        sizes.batch, sizes.heads, sizes.queries, sizes.keys, sympy.Integer(parts.rank), sympy.Integer(parts.rope_size),
        sympy.Integer(parts.nope_size), sizes.value_dim, site.grids[0].dtype.itemsize, tokens,
    )


def by_heads(site: Progress, run: Run) -> bool:
    """Whether K and V of an expanded site are made for some heads at a time: those of all heads may be more than the lowering
    wants in memory, nothing else reads them, and the policy is exact, of which alone no account is kept."""
    latent, spec = site.latent, site.spec
    assert site.found is not None and site.grids is not None and spec is not None
    if latent is None or latent.over_latents or not isinstance(latent.parts, Latents) or latent.shape is None:
        return False
    if spec.group != 1 or spec.sparsity != EXACTLY or spec.site or emit_projected.read_elsewhere(site.found, latent.parts):
        return False
    a, heads = latent.shape, int(site.found.sizes.heads)
    sizes = [a.batch, a.queries, a.keys]
    if not all(size.is_Integer for size in sizes):
        return True
    batch, queries, keys = map(int, sizes)
    width, q = int(a.nope + a.rope + a.value), site.grids[0].node.meta["val"]
    return run.lowering.heads_at_once(batch, heads, queries, keys, width, q.itemsize, q.device) < heads


def emit_over_latents(site: Progress, run: Run, given: emit.Arguments, builder: Builder) -> Node:
    """Put the operator that takes the latent in the graph; the node that has the anchor's value now."""
    found, latent = run.under(site), site.latent
    assert latent is not None and isinstance(latent.parts, Latents) and site.grids is not None
    expanded = _expanded(site, builder) if run.options.certificate and latent.over_latents else None
    if latent.either or latent.by_heads:
        gain = latent.decision.gain or sympy.Integer(0)
        done = emit_projected.rewrite(found, latent.parts, site.grids[0], gain, given, builder)
    else:
        tokens = select_tokens.rewrite(found, latent.selection, builder) if latent.selection else None
        done = emit_latent.rewrite(found, latent.parts, site.grids[0], tokens, given, builder, run.evaluator, site.paged)
    site.attend = done.attend
    if expanded is not None:
        latent.certificate = certify.probe(*expanded, done)
    return done.out


def _expanded(site: Progress, builder: Builder) -> tuple[Node, Node, Node]:
    """q, k and v [B, H, T or S, D] as written; they are dropped again with the dead code."""
    assert site.found is not None and site.grids is not None
    sizes = site.found.sizes
    extents = ((sizes.queries, sizes.head_dim), (sizes.keys, sizes.head_dim), (sizes.values, sizes.value_dim))
    q, k, v = (build(grid, builder, sizes.batch, *e) for grid, e in zip(site.grids, extents, strict=True))
    return q, k, v
