"""The table of what is served, for a person, and the same numbers as JSON."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from .bars import verdicts, verdicts_json
from .serving import Served


def table(rows: list[Served]) -> Table:
    """The figures of each case, and its bars."""
    shown = Table(show_lines=True)
    for name in ("case", "figures", "bars"):
        shown.add_column(name)
    for row in rows:
        lines = [f"{value:.4g} {unit}" for unit, value in row.figures.items()] or [row.failure]
        shown.add_row(row.case.name, escape("\n".join(lines)), verdicts(row.bars()))
    return shown


def as_json(row: Served) -> dict[str, Any]:
    return {"case": row.case.name, "figures": row.figures, "failure": row.failure, "bars": verdicts_json(row.bars())}
