"""The table of the kernels, for a person, and the same numbers as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from .bars import verdicts, verdicts_json
from .cases import FLASHMLA
from .kernel_rows import KernelRow, Reading
from .peers import PEERS
from .roofline import Roofline


def table(rows: list[KernelRow], peers: list[str], roof: Roofline) -> Table:
    """Median microseconds of each kernel; our rate, its share of the roofline, our speed over the best peer's, the bars."""
    shown = Table(box=SIMPLE)
    shown.add_column("median us")
    for name in ("flashmla", "rate", "of roof", "/ best peer", *(PEERS[name].title for name in peers)):
        shown.add_column(name, justify="right")
    shown.add_column("bars")
    for row in rows:
        peer_us = (_us(row.readings[name]) for name in peers)
        shown.add_row(row.case.name, _us(row.ours), *_ours(row, roof), *peer_us, verdicts(row.bars()))
    return shown


def line(row: KernelRow, roof: Roofline) -> str:
    """What there is to say when a case is done."""
    rate, part, ratio = _ours(row, roof)
    first = f", first call {row.ours.compile_s:.1f} s" if row.ours.us is not None else ""
    return f"{row.case.name}: {_us(row.ours)} us, {rate}, {part} of the roofline, {ratio}{first}"


def _ours(row: KernelRow, roof: Roofline) -> tuple[str, str, str]:
    """Rate, share of the roofline, ratio to the best peer."""
    rate, part, best = row.rate(row.ours.us), share(row, roof), row.best()
    ratio = row.ratio(best[0]) if best else None
    return (
        "-" if rate is None else f"{rate:.3g} {row.case.unit}", "-" if part is None else f"{100 * part:.0f}%",
        "-" if ratio is None or best is None else f"{ratio:.2f}x {PEERS[best[0]].title}",
    )


def checks(rows: list[KernelRow], peers: list[str]) -> Table:
    """Each kernel's error as a multiple of the formula's (2 is the limit), how it was timed, and seconds of its first call."""
    title = "error / the formula's, first call in s (beforehand, if it was made there); * timed by events, not in a CUDA graph"
    shown = Table(title=title, title_justify="left", box=SIMPLE)
    shown.add_column("")
    for name in ("flashmla", *(PEERS[name].title for name in peers)):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(row.case.name, *(_check(row.readings[name]) for name in (FLASHMLA, *peers)))
    return shown


def notes(rows: list[KernelRow]) -> list[str]:
    """Why a kernel that is there has no number."""
    return [
        f"{row.case.name}: {name}: {reading.note}" for row in rows for name, reading in row.readings.items()
        if reading.note not in ("", "absent")
    ]


def share(row: KernelRow, roof: Roofline) -> float | None:
    """Our rate over the roofline's."""
    rate = row.rate(row.ours.us)
    return None if rate is None else rate / (roof.copy if row.case.unit == "TB/s" else roof.matmul)


def as_json(row: KernelRow, roof: Roofline) -> dict[str, Any]:
    best = row.best()
    shown = [part.name for part in dataclasses.fields(Reading) if part.compare]
    readings = {name: {part: getattr(found, part) for part in shown} | {"rate": row.rate(found.us)}
                for name, found in row.readings.items()}
    return {
        "case": row.case.name, "group": row.case.group, "spec": row.case.spec, "unit": row.case.unit, "readings": readings,
        "best_peer": best[0] if best else None, "ratio": row.ratio(best[0]) if best else None, "of_roofline": share(row, roof),
        "dense_us": row.dense_us, "bars": verdicts_json(row.bars()),
    }


def _us(reading: Reading) -> str:
    if reading.us is not None:
        return f"{reading.us:.1f}" if reading.us < 1e3 else f"{reading.us:.0f}"
    word = reading.note.partition(":")[0]
    return {"absent": "absent", "no kernel": "no kernel", "wrong": "[red]wrong[/]"}.get(word, "failed")


def _check(reading: Reading) -> str:
    if reading.us is None:
        return "-"
    return f"{reading.error:.2f}, {reading.compile_s:.1f}{'*' if reading.how.startswith('events') else ''}"
