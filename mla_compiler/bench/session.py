"""One call of the benchmark: its flags, its settings, where it prints, what it has found so far."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rich.console import Console

from . import kernel_rows, rows, serving, show, show_kernels, show_serving
from .compare import Settings
from .kernel_rows import KernelRow
from .roofline import Roofline
from .rows import Row
from .serving import Served


class Named(Protocol):
    """A case, of kernels or of models."""

    @property
    def name(self) -> str: ...


Case = TypeVar("Case", bound=Named)


@dataclass
class Results:
    """Everything measured. extra: what is neither a kernel's nor a model's; skipped: cases the budget left out."""

    about: dict[str, str]
    roof: Roofline | None = None
    kernels: list[KernelRow] = field(default_factory=list)
    models: list[Row] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    also_missed: list[str] = field(default_factory=list)

    def missed(self) -> list[str]:
        found = kernel_rows.failures(self.kernels), rows.failures(self.models), serving.failures(self.served)
        return [*itertools.chain(*found), *self.also_missed]

    def numbers(self) -> dict[str, Any]:
        roof = self.roof
        return {
            "about": self.about, "roofline": vars(roof) if roof else None,
            "kernels": [show_kernels.as_json(row, roof) for row in self.kernels if roof],
            "cases": [show.as_json(row) for row in self.models],
            "served": [show_serving.as_json(row) for row in self.served],
            **self.extra, "missed": self.missed(), "skipped": self.skipped,
        }


@dataclass
class Session:
    """compiled: seconds of the first call of (group, case, column), where it was made before the measurements."""

    given: argparse.Namespace
    settings: Settings
    console: Console
    results: Results
    began: float
    compiled: dict[tuple[str, str, str], float] = field(default_factory=dict)

    @property
    def spent(self) -> bool:
        """Whether the budget is."""
        return self.given.budget is not None and time.monotonic() - self.began >= self.given.budget

    @property
    def full_cpu(self) -> bool:
        """On a CPU, at the size of a CPU."""
        return self.settings.device == "cpu" and not self.given.tiny

    def say(self, text: str) -> None:
        """Progress: seconds since the start, and what comes next."""
        self.console.print(f"{time.monotonic() - self.began:6.1f} s  {text}", markup=False)

    def matching(self, cases: Iterable[Case]) -> list[Case]:
        """The cases --cases names."""
        return [case for case in cases if self.given.cases.search(case.name)]

    def chosen(self, cases: Iterable[Case]) -> Iterator[Case]:
        """The cases --cases names, until the budget is spent; the rest is noted and said."""
        for case in self.matching(cases):
            if not self.spent:
                yield case
            else:
                self.results.skipped.append(case.name)
                self.console.print(f"not run: {case.name}: the budget of {self.given.budget:g} s is spent")

    def compiled_of(self, group: str, case: str) -> dict[str, float]:
        """Seconds of the first call, by column."""
        return {column: seconds for (*of, column), seconds in self.compiled.items() if of == [group, case]}

    def save(self) -> None:
        """After every case, so that nothing measured is lost with what comes next."""
        if self.given.json is not None:
            self.given.json.write_text(json.dumps(self.results.numbers(), indent=1))
