"""What a case must show, as data: a ratio to a peer of the same run, or a figure with its unit.

    Bar      flashmla >= ratio x peer, in speed or in (less) memory
    Limit    a figure at most, or at least, a bound

A goal is shown beside the bars, and missing it is no failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

BEST, BEST_SDPA = "the best peer", "the best SDPA"
"""Peers that are whichever was fastest."""


class Figures(Protocol):
    """A measured row. None where a number is missing."""

    def ratio(self, peer: str, of: str = "time") -> float | None: ...

    def figure(self, unit: str) -> float | None: ...


@dataclass(frozen=True)
class Bar:
    """flashmla must be at least `ratio` times as good as `peer`: in time, or in peak memory."""

    peer: str
    ratio: float
    of: str = "time"
    goal: bool = False

    def __str__(self) -> str:
        return _prefix(self.goal) + f">= {self.ratio:g}x {self.peer}" + ("" if self.of == "time" else f" in {self.of}")

    def found(self, row: Figures) -> float | None:
        return row.ratio(self.peer, self.of)

    def cleared(self, found: float) -> bool:
        return found >= self.ratio

    def shown(self, found: float) -> str:
        return f"{found:.2f}x"


@dataclass(frozen=True)
class Limit:
    """A figure of flashmla's, in `unit`, at most `bound`; at least, if `least`."""

    unit: str
    bound: float
    least: bool = False
    goal: bool = False

    def __str__(self) -> str:
        return _prefix(self.goal) + f"{'>=' if self.least else '<='} {self.bound:g} {self.unit}"

    def found(self, row: Figures) -> float | None:
        return row.figure(self.unit)

    def cleared(self, found: float) -> bool:
        return found >= self.bound if self.least else found <= self.bound

    def shown(self, found: float) -> str:
        return f"{found:.4g}"


def _prefix(goal: bool) -> str:
    return "goal: " if goal else ""


Judged = tuple[Bar | Limit, float | None, bool | None]


def judge(bars: Iterable[Bar | Limit], row: Figures) -> list[Judged]:
    """Each bar, what was found, and whether that clears it; None, None where a number is missing."""
    found = [(bar, bar.found(row)) for bar in bars]
    return [(bar, value, None if value is None else bar.cleared(value)) for bar, value in found]


def missed(judged: Iterable[Judged]) -> list[str]:
    """A line for each bar, goals apart, that was measured and not cleared."""
    return [f"{bar}: {bar.shown(value)}" for bar, value, ok in judged if ok is False and value is not None and not bar.goal]


def verdict(judged: Judged) -> str:
    """One word, for a cell of a table."""
    bar, _, ok = judged
    if ok is None:
        return "no number"
    return "[green]pass[/]" if ok else "[yellow]not yet[/]" if bar.goal else "[red]MISS[/]"


def verdicts(judged: Iterable[Judged]) -> str:
    """A line for each bar, for a cell of a table."""
    return "\n".join(
        f"{bar}: {verdict((bar, value, ok))}" + ("" if value is None else f" {bar.shown(value)}") for bar, value, ok in judged)


def verdicts_json(judged: Iterable[Judged]) -> list[dict[str, object]]:
    return [{"bar": str(bar), "found": value, "cleared": ok, "goal": bar.goal} for bar, value, ok in judged]
