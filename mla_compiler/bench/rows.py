"""What came of one model's case in every column: times, memory, errors, ratios, bars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .bars import Judged, judge, missed
from .cases import EAGER, FLASHMLA, NEEDED, Case
from .measure import Timing


@dataclass
class Cell:
    """One column of one case. error: rms distance from the truth; failure: why there is no number, "" if there is one."""

    timing: Timing | None = None
    compile_s: float = 0.0
    error: float = 0.0
    failure: str = ""


@dataclass
class Row:
    """One case. `needed`: bytes of the weights and of the caches."""

    case: Case
    cells: dict[str, Cell] = field(default_factory=dict)
    needed: int = 0

    def ratio(self, peer: str, of: str = "time") -> float | None:
        """How many times better flashmla is than the peer; None if either has no number."""
        ours, theirs = (self.cells[c].timing if c in self.cells else None for c in (FLASHMLA, peer))
        if ours is None or theirs is None:
            return None
        if of == "memory":
            return theirs.peak / ours.peak if ours.peak else None
        return theirs.ms / ours.ms

    def figure(self, unit: str) -> float | None:
        """Of flashmla: "ms", or NEEDED, peak memory over what the weights and caches take; None if there is no number."""
        timing = self.cells[FLASHMLA].timing if FLASHMLA in self.cells else None
        if timing is None:
            return None
        if unit == NEEDED:
            return timing.peak / self.needed if timing.peak and self.needed else None
        return {"ms": timing.ms}[unit]

    def bars(self) -> list[Judged]:
        return judge(self.case.bars, self)

    def wrong(self) -> list[str]:
        """Columns whose error is more than twice eager's; none can be told from a failed eager."""
        if self.cells[EAGER].failure:
            return []
        limit = 2 * self.cells[EAGER].error
        return [name for name, cell in self.cells.items() if not cell.failure and not cell.error <= limit]


def failures(rows: list[Row]) -> Iterator[str]:
    """What makes the benchmark fail: our result wrong or absent, or a bar missed. A peer that is wrong is only shown."""
    for row in rows:
        yield from (f"{row.case.name}: {name} is wrong" for name in row.wrong() if name == FLASHMLA)
        if FLASHMLA in row.cells and row.cells[FLASHMLA].failure:
            yield f"{row.case.name}: flashmla: {row.cells[FLASHMLA].failure}"
        yield from (f"{row.case.name}: {line}" for line in missed(row.bars()))
