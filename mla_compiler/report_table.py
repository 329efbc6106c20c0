"""A report as a table for a person: like layers in one row, as wide as the terminal, plain when piped."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import report_memory
from .ir import Site

if TYPE_CHECKING:
    from .report import Report

PIPED_WIDTH = 120
"""Columns, where there is no terminal to ask."""


@dataclass(frozen=True)
class Row:
    """Sites that differ in nothing but where they stand."""

    sites: tuple[Site, ...]

    @property
    def first(self) -> Site:
        return self.sites[0]

    @property
    def where(self) -> str:
        """`model.layers.0-29.self_attn`, or the source line, or the node's name."""
        names = [site.layer or site.source or site.name for site in self.sites]
        return merge_names(names) + (f"  x{len(names)}" if len(names) > 1 else "")

    def total(self, field: str) -> int:
        return sum(getattr(site, field) for site in self.sites)


def rows(sites: Sequence[Site], every: bool = False) -> list[Row]:
    """The sites in order; those that mean the same and became the same share a row, unless `every`."""
    found: dict[object, list[Site]] = {}
    for site in sites:
        pattern = re.sub(r"\d+", "#", site.layer)
        alike = dataclasses.replace(site, index=0, name="", source="", layer=pattern)
        found.setdefault(site.index if every else alike, []).append(site)
    return [Row(tuple(same)) for same in found.values()]


def merge_names(names: Sequence[str]) -> str:
    """Names that differ in one number, as one: [`layers.0.attn`, `layers.1.attn`] => `layers.0-1.attn`."""
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({len(part) for part in parts}) > 1:
        return f"{names[0]}, ..."
    columns = [list(dict.fromkeys(column)) for column in zip(*parts, strict=True)]
    varied = [k for k, column in enumerate(columns) if len(column) > 1]
    if len(varied) > 1 or any(k % 2 == 0 for k in varied):
        return f"{names[0]}, ..."
    return "".join(ranges(sorted(map(int, column))) if len(column) > 1 else column[0] for column in columns)


def ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] => `0-2,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def change(before: float, after: float, unit: str) -> str:
    """(6e10, 3e10, "FLOP") => `60 → 30 GFLOP`; powers of ten, chosen by the first."""
    scales = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
    factor, prefix = next(((factor, prefix) for factor, prefix in scales if before >= factor), (1, ""))
    return f"{before / factor:.3g} → {after / factor:.3g} {prefix}{unit}"


def text(report: Report, width: int | None = None, every: bool = False) -> str:
    """The table without colours; trailing blanks are cut."""
    if width is None:
        fallback = (PIPED_WIDTH, 24)
        width = shutil.get_terminal_size(fallback).columns if sys.stdout.isatty() else PIPED_WIDTH
    out = io.StringIO()
    Console(file=out, width=max(width, 40), color_system=None, legacy_windows=False).print(renderable(report, every))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def renderable(report: Report, every: bool = False) -> RenderableType:
    """The headline, the table and the footer, for any rich console."""
    parts: list[RenderableType] = [headline(report)]
    if report.sites:
        parts.append(_table(rows(report.sites, every)))
    if report.meta.get("memory"):
        parts += [Text(), _plain_table(report_memory.COLUMNS, report_memory.cells(report.meta))]
    footer = facts(report)
    if footer:
        parts.append(Text(footer, style="dim"))
    return Group(*parts)


def headline(report: Report) -> Text:
    """`flashmla: 30 of 30 attentions fused`."""
    total, fused = len(report.sites), len(report.fused)
    if report.meta.get("lost"):
        return Text("flashmla: taken from the compile cache, whose report is gone; "
                    "TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 compiles anew", style="bold yellow")
    if not total:
        return Text("flashmla: no attention found", style="bold yellow")
    return Text(f"flashmla: {fused} of {total} attention{'s' * (total > 1)} fused",
                style="bold green" if fused == total else "bold yellow")


def pass_times(report: Report) -> str:
    """`find 29.1 ms, specify 2.4 ms, ...`: the time of each pass, in their order."""
    return ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in report.meta.get("passes", {}).items())


def facts(report: Report) -> str:
    """The footer: what is known about the compilation, units named."""
    meta, found = report.meta, []
    for key, one in (("graphs", "graph"), ("graph_breaks", "graph break")):
        if key in meta:
            found.append(f"{meta[key]} {one}{'s' * (meta[key] != 1)}")
    cached = "from the compile cache, " if meta.get("cached") else ""
    if "compile_s" in meta:
        inside = f", of which our passes {meta['passes_s']:.2f} s" if "passes_s" in meta else ""
        found.append(f"{cached}{'once ' if cached else ''}compiled in {meta['compile_s']:.1f} s{inside}")
    elif cached:
        found.append(cached.removesuffix(", "))
    return " · ".join([*found, *([str(meta["device"])] if meta.get("device") else [])])


def _table(found: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    for name in ("attention", "", "meaning, or why it was left", "kernel", "estimate"):
        table.add_column(name, overflow="fold", no_wrap=not name)
    for row in found:
        table.add_row(_where(row), _status(row.first), _meaning(row.first), _kernel(row.first), _saved(row))
    return table


def _plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def _where(row: Row) -> Text:
    site = row.first
    source = "/".join(site.source.split("/")[-2:]) if site.layer else ""
    placed = " ".join(filter(None, [site.dtype, site.device]))
    return _lines(row.where, dim=[source, *_short_shape(site.shape), placed])


def _short_shape(shape: str) -> list[str]:
    """The shapes of q, k and v, a line each; v's only where it is not k's."""
    lines = [line if line.endswith("]") else line + "]" for line in shape.split("], ") if line]
    return lines[:2] if len(lines) == 3 and lines[1][1:] == lines[2][1:] else lines


def _status(site: Site) -> Text:
    return Text(site.status, style="green" if site.status == "fused" else "yellow")


def _meaning(site: Site) -> Text:
    """For a fused site what it computes; for one left, why."""
    if site.status != "fused":
        return Text(site.reason, style="yellow")
    shared = f"{site.group} query heads share a KV head" if site.group > 1 else ""
    return _lines(f"sees {site.predicate or 'every key'}", site.hull and f"hull {site.hull}",
                  site.score and f"score {site.score}", site.pages, site.latent, certificate(site), site.sparsity, dim=[shared])


def certificate(site: Site) -> str:
    """`both forms within 2.1e-07 on random numbers`, if it was asked for."""
    return f"both forms within {site.certificate:.1e} on random numbers" if site.certificate >= 0 else ""


def _kernel(site: Site) -> Text:
    return _lines(site.kernel, dim=[site.config]) if site.status == "fused" else Text("")


def _saved(row: Row) -> Text:
    if row.first.status != "fused":
        return Text("")
    units = {"flops": "FLOP", "bytes": "B"}
    both = ((row.total(f"{what}_before"), row.total(f"{what}_after"), unit) for what, unit in units.items())
    return _lines(*(change(*each) for each in both if each[0]))


def _lines(*plain: str, dim: Sequence[str] = ()) -> Text:
    """One cell; empty lines are left out."""
    return Text("\n").join([*(Text(line) for line in plain if line), *(Text(line, style="dim") for line in dim if line)])
