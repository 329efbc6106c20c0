"""What came of one attention by every kernel there is: figures, ratios, bars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from .attentions import COMPILE_S, DENSE
from .bars import BEST, BEST_SDPA, Judged, Limit, judge, missed
from .cases import FLASHMLA
from .measure import Run
from .sampling import AnyCase

COMMON = (Limit(COMPILE_S, 10),)
"""Bars of every case."""


@dataclass
class Reading:
    """One kernel on one case. us: median microseconds; error: times the formula's; how: of `run`; note: why no number."""

    us: float | None = None
    error: float = 0.0
    compile_s: float = 0.0
    how: str = ""
    note: str = ""
    run: Run | None = field(default=None, repr=False, compare=False)


@dataclass
class KernelRow:
    """One case. dense_us: ours on the same operands without what makes the case sparse."""

    case: AnyCase
    dtype: torch.dtype
    readings: dict[str, Reading] = field(default_factory=dict)
    dense_us: float | None = None

    @property
    def ours(self) -> Reading:
        return self.readings[FLASHMLA]

    def best(self, peer: str = BEST) -> tuple[str, float] | None:
        """The fastest of those peers, and its microseconds."""
        prefix = {BEST: "", BEST_SDPA: "sdpa"}.get(peer, peer)
        names = [name for name in self.readings if name != FLASHMLA and name.startswith(prefix)]
        found = [(name, us) for name in names if (us := self.readings[name].us) is not None]
        return min(found, key=lambda each: each[1], default=None)

    def ratio(self, peer: str, of: str = "time") -> float | None:
        """How many times faster ours is."""
        best = self.best(peer)
        return None if best is None or self.ours.us is None else best[1] / self.ours.us

    def rate(self, us: float | None) -> float | None:
        """TB/s of live keys and values, or TFLOP/s."""
        return None if us is None else 1e-6 * self.case.work(self.dtype) / us

    def figure(self, unit: str) -> float | None:
        us = self.ours.us
        if us is None:
            return None
        if unit == DENSE:
            return None if self.dense_us is None else self.dense_us / us
        if unit == self.case.unit:
            return self.rate(us)
        return {"us": us, "ms": us / 1e3, COMPILE_S: self.ours.compile_s}[unit]

    def bars(self) -> list[Judged]:
        return judge(() if self.case.toy else (*self.case.bars, *COMMON), self)


def failures(rows: list[KernelRow]) -> Iterator[str]:
    """What makes the benchmark fail: no right result of ours, or a bar missed."""
    for row in rows:
        if row.ours.us is None:
            yield f"{row.case.name}: flashmla: {row.ours.note}"
        yield from (f"{row.case.name}: {line}" for line in missed(row.bars()))
