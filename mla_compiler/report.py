"""What became of each attention: Report(sites, meta), as a table, as text, JSON, HTML, or kernels to look into."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .accounting import Accounts, accounts
from .errors import ReportError
from .ir import Site

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .lowering.build import CompiledKernel

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True)
class Report:
    """The attentions of one compiled graph, or of several, in the order of the graph.

    meta holds facts about the compilation, each shown if it is there: `passes_s` and `compile_s` (seconds in our passes, and
    in the whole compilation), `passes` (seconds of each), `graphs`, `graph_breaks`, `device`, `cached` (read back beside a
    cached compilation), `memory` (the KV pools, after the call that was explained), `lost` (the compile cache was hit, and
    there is no report beside it).
    """

    sites: tuple[Site, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fused(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.status == "fused")

    @property
    def left(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.status != "fused")

    def __str__(self) -> str:
        return self.text()

    def __rich__(self) -> RenderableType:
        from .report_table import renderable

        return renderable(self)

    def text(self, width: int | None = None, every: bool = False) -> str:
        """The table as plain text, `width` columns wide (default: the terminal's). Like layers share a row unless `every`.

        What its attentions have left out so far follows, where that is counted (`flashmla.account`).
        """
        from .report_table import text

        table = text(self, width, every)
        return f"{table}\n\n{self.accounts}" if len(self.accounts) else table

    @property
    def accounts(self) -> Accounts:
        """What its attentions have left out so far, by their names; other models' of the same names count too."""
        names = {site.layer or site.name for site in self.fused}
        return Accounts(tuple(account for account in accounts() if account.site.partition(" #")[0] in names))

    def html(self) -> str:
        """The table as one self-contained HTML page, a row for every site."""
        from .report_html import page

        return page(self)

    def json(self) -> str:
        """The whole report; `Report.from_json` reads it back."""
        sites = [dataclasses.asdict(site) for site in self.sites]
        return json.dumps({"format": FORMAT, "meta": dict(self.meta), "sites": sites}, indent=1)

    @staticmethod
    def from_json(text: str) -> Report:
        """Inverse of `json`. Raises ReportError if the text is no report of this version."""
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ReportError(f"not a flashmla report: {error}") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ReportError(f"not a flashmla report of format {FORMAT}", "to make one: write Report.json() to a file")
        try:
            return Report(tuple(Site(**site) for site in found["sites"]), found["meta"])
        except (KeyError, TypeError) as error:
            raise ReportError(f"not a flashmla report: {error}") from error

    def kernels(self, arch: str | None = None) -> list[CompiledKernel]:
        """The kernels of the fused sites, each once, compiled for `arch` ("sm_90"; default: this machine's GPU, else sm_90).

        Needs Triton, no GPU. Each has source, ttir, ttgir, ptx, sass, registers, shared memory and spills.
        """
        from .lowering.compile import kernels_of_sites

        return kernels_of_sites(self.fused, arch)

    @staticmethod
    def merged(reports: Iterable[Report], **meta: Any) -> Report:
        """One report of several graphs: sites numbered through, seconds added up, `meta` on top."""
        parts = list(reports)
        sites = [site for part in parts for site in part.sites]
        together = {key: value for part in parts for key, value in part.meta.items()}
        for key in ("passes_s", "compile_s"):
            if key in together:
                together[key] = sum(part.meta.get(key, 0) for part in parts)
        if "passes" in together:
            together["passes"] = dict(sum((Counter(part.meta.get("passes", {})) for part in parts), Counter()))
        numbered = tuple(dataclasses.replace(site, index=index) for index, site in enumerate(sites))
        return Report(numbered, {**together, "graphs": len(parts), **meta})

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


_RECORDED: list[Report] = []


def record(report: Report) -> Report:
    """Add to what `reports` tells of this process."""
    _RECORDED.append(report)
    return report


def reports() -> tuple[Report, ...]:
    """The report of every graph compiled in this process with backend="flashmla", oldest first."""
    return tuple(_RECORDED)
