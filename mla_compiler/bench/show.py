"""The table of the benchmark, for a person, and the same numbers as JSON."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Protocol

import torch
from rich.box import SIMPLE
from rich.table import Table

from .bars import Judged, verdict, verdicts, verdicts_json
from .cases import COLUMNS, FLASHMLA
from .compare import Settings
from .rows import Cell, Row


class Judgeable(Protocol):
    """A measured row, of a kernel or of a model."""

    case: Any

    def bars(self) -> list[Judged]: ...


def facts(settings: Settings) -> dict[str, str]:
    """What the numbers depend on: device, dtype, versions."""
    gpu = settings.device != "cpu"
    device = torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    versions = {}
    for name in ("torch", "triton", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "device": device, "dtype": str(settings.dtype)[6:], "mode": settings.mode or "default, decode reduce-overhead",
        "python": platform.python_version(), **versions,
    }


def table(rows: list[Row], columns: list[str]) -> Table:
    """Milliseconds and GiB of each column, flashmla's ratio to each, and the bars."""
    peers = [name for name in columns if name != FLASHMLA]
    shown = Table(show_lines=True)
    shown.add_column("median ms (peak GiB)")
    for name in columns:
        shown.add_column(COLUMNS[name], justify="right")
    for name in peers:
        shown.add_column(f"/ {name}", justify="right")
    shown.add_column("bars")
    for row in rows:
        ratios = [_ratio(row.ratio(name)) for name in peers]
        shown.add_row(row.case.name, *(_cell(row.cells.get(name)) for name in columns), *ratios, verdicts(row.bars()))
    return shown


def errors(rows: list[Row], columns: list[str]) -> Table:
    """Each column's error as a multiple of eager's (2 is the limit), and the seconds of its first call, in a process of its own
    where it was compiled beforehand."""
    shown = Table(title="error / eager's error (first call, s)", title_justify="left")
    shown.add_column("")
    for name in columns:
        shown.add_column(COLUMNS[name], justify="right")
    for row in rows:
        eager = row.cells[columns[0]].error
        cells = (row.cells.get(name) for name in columns)
        texts = ["-" if c is None or c.failure or not eager else f"{c.error / eager:.2f} ({c.compile_s:.0f})" for c in cells]
        shown.add_row(row.case.name, *texts)
    return shown


def summary(rows: Sequence[Judgeable]) -> Table:
    """Every bar of every case, and what was found."""
    shown = Table(box=SIMPLE)
    for name, side in (("case", "left"), ("bar", "left"), ("found", "right"), ("", "left")):
        shown.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in rows:
        for bar, value, ok in row.bars():
            shown.add_row(row.case.name, str(bar), "-" if value is None else bar.shown(value), verdict((bar, value, ok)))
    return shown


def counts(rows: Sequence[Judgeable]) -> str:
    """How many bars are cleared; goals do not count."""
    bars = [ok for row in rows for bar, _, ok in row.bars() if not bar.goal]
    return f"{bars.count(True)} of {len(bars)} bars cleared, {bars.count(False)} missed, {bars.count(None)} without a number"


def notes(rows: list[Row]) -> list[str]:
    """Why a column has no number."""
    return [f"{row.case.name}: {name}: {cell.failure}" for row in rows for name, cell in row.cells.items() if cell.failure]


def as_json(row: Row) -> dict[str, Any]:
    cells = {name: dataclasses.asdict(cell) for name, cell in row.cells.items()}
    return {"case": row.case.name, "model": row.case.shape, "columns": cells, "bars": verdicts_json(row.bars())}


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.timing is None:
        return "failed"
    return f"{cell.timing.ms:.2f}" + (f" ({cell.timing.peak / 2**30:.1f})" if cell.timing.peak else "")


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"
