"""A report as one HTML page: no script, nothing fetched, a row for every site."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from . import report_memory
from .report_table import certificate, change, facts, headline

if TYPE_CHECKING:
    from .ir import Site
    from .report import Report

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
table { border-collapse: collapse } th, td { text-align: left; vertical-align: top; padding: .3rem .8rem }
th { border-bottom: 2px solid #888 } tr { border-bottom: 1px solid #ddd } code { white-space: pre-wrap }
.fused { color: #17803d } .left { color: #a15c00 } small { color: #777 }
"""
_COLUMNS = ("#", "attention", "", "sees, or why it was left", "score", "shape", "kernel", "FLOPs", "bytes", "spec")


def page(report: Report) -> str:
    """The page, complete: `Path("report.html").write_text(report.html())`."""
    head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
    body = "\n".join(_row(site) for site in report.sites)
    title = escape(headline(report).plain)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>'
        f"\n<body><h1>{title}</h1>\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
        f"{_memory(report)}\n<p>{escape(facts(report))}</p></body></html>\n"
    )


def _memory(report: Report) -> str:
    """The table of KV pools, if there is one."""
    found = report_memory.cells(report.meta)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in found)
    head = "".join(f"<th>{escape(name)}</th>" for name in report_memory.COLUMNS)
    return f"\n<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if found else ""


def _row(site: Site) -> str:
    fused = site.status == "fused"
    notes = "".join(map(_small, (site.hull, site.pages, site.latent, certificate(site))))
    meaning = _code(site.predicate or "every key") + notes if fused else escape(site.reason)
    cells = [
        str(site.index), escape(site.layer or site.name) + _small(site.source),
        f'<span class="{"fused" if fused else "left"}">{escape(site.status)}</span>', meaning, _code(site.score),
        escape(site.shape) + _small(f"{site.dtype} {site.device}, group {site.group}"),
        escape(site.kernel) + _small(site.config),
        change(site.flops_before, site.flops_after, "FLOP") if fused else "",
        change(site.bytes_before, site.bytes_after, "B") if fused else "", _code(site.spec),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>" if text else ""


def _small(text: str) -> str:
    return f"<br><small>{escape(text)}</small>" if text else ""
