"""Pages in the pipeline: whether keys and values are read where they lie, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sympy

from .passes import emit, page_cache
from .passes.absorb_mla import Latents
from .passes.page_cache import Paged

if TYPE_CHECKING:
    from .pipeline import Progress, Run

LATENT_PAGE = 64
"""Tokens of a page of latents: what the kernels of attend_latent know."""


@dataclass
class Pages:
    """Keys and values in pages, or why they are gathered."""

    paged: Paged | None
    why: str = ""

    def text(self) -> str:
        """`int8 pages of 64` or `gathered: keys and values lie in different pages`."""
        if self.paged is None:
            return f"gathered: {self.why}"
        kind = "" if self.paged.format == "plain" else f"{self.paged.format} "
        return f"{kind}pages of {self.paged.k.page}"


def page(run: Run) -> None:
    """Read pages where they are found and a kernel reads them."""
    for site in run.advance():
        found, over_latents = run.under(site), site.latent is not None and site.latent.over_latents
        assert site.grids is not None and site.spec is not None and site.raised is not None
        operands = [(site.grids[1], found.sizes.head_dim), (site.grids[2], found.sizes.value_dim)]
        if over_latents:
            assert site.latent is not None and isinstance(site.latent.parts, Latents)
            parts = site.latent.parts
            operands = [(parts.latent, sympy.Integer(parts.rank)), (parts.rope, sympy.Integer(parts.rope_size))]
        paged = page_cache.match(operands, run.evaluator)
        if paged is None:
            continue
        why = paged if isinstance(paged, str) else _refused(site, run, paged)
        if why or isinstance(paged, str):
            site.pages = Pages(None, why)
            continue
        site.pages = Pages(paged)
        site.spec = site.raised = page_cache.narrowed(site.spec, paged, found.sizes)


def _refused(site: Progress, run: Run, paged: Paged) -> str:
    """Why no kernel reads these pages; nothing if one does."""
    assert site.found is not None and site.grids is not None and site.spec is not None
    if site.latent is not None and site.latent.either:
        return "latents of either form are read densely"
    if site.latent is not None and site.latent.absorbed:
        plain = paged.k.format == "plain" and paged.k.page == LATENT_PAGE and not paged.k.flat
        return "" if plain else f"latents are read in plain pages of {LATENT_PAGE}; found {Pages(paged).text()}"
    sizes, q = site.found.sizes, site.grids[0].node.meta["val"]
    spec = emit.named(page_cache.narrowed(site.spec, paged, sizes), run.evaluator).spec
    dims = int(sizes.head_dim), int(sizes.value_dim)
    refused = run.lowering.supports_paged(spec, *dims, q.dtype, q.device.type, paged.format, paged.k.page)
    return f"{refused[0].value}; found {refused[1]}" if refused else ""
