"""The groups asked for, in one process, and what came of them: tables, JSON, plot, exit status."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.markup import escape

from ..errors import OptionError
from . import kernels, models, plot, show, show_kernels
from .arguments import GROUPS
from .attentions import ATTENTIONS, Attention
from .compare import Row, Settings, failures
from .kernels import KernelRow, run_kernels
from .peers import PEERS
from .roofline import Roofline
from .sparse import SPARSE

Named = TypeVar("Named")


@dataclass
class Results:
    """Everything measured. extra: what is neither a kernel's nor a model's; skipped: cases the budget left out."""

    about: dict[str, str]
    roof: Roofline | None = None
    kernels: list[KernelRow] = field(default_factory=list)
    models: list[Row] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    also_missed: list[str] = field(default_factory=list)

    def missed(self) -> list[str]:
        return [*kernels.failures(self.kernels), *failures(self.models), *self.also_missed]

    def numbers(self) -> dict[str, Any]:
        roof = self.roof
        return {
            "about": self.about, "roofline": vars(roof) if roof else None,
            "kernels": [show_kernels.as_json(row, roof) for row in self.kernels if roof],
            "cases": [show.as_json(row) for row in self.models],
            **self.extra, "missed": self.missed(), "skipped": self.skipped,
        }


@dataclass
class Session:
    """One call of the benchmark: its flags, its settings, where it prints, when it began."""

    given: argparse.Namespace
    settings: Settings
    console: Console
    results: Results
    began: float

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
        self.console.print(f"{time.monotonic() - self.began:6.1f} s  {text}")

    def chosen(self, cases: Iterable[Named], name: Callable[[Named], str]) -> Iterator[Named]:
        """The cases --cases names, until the budget is spent; the rest is noted and said."""
        for case in cases:
            if self.given.cases not in name(case):
                continue
            if not self.spent:
                yield case
            else:
                self.results.skipped.append(name(case))
                self.console.print(f"not run: {name(case)}: the budget of {self.given.budget:g} s is spent")

    def save(self) -> None:
        if self.given.json is not None:
            self.given.json.write_text(json.dumps(self.results.numbers(), indent=1))


def run(given: argparse.Namespace) -> int:
    """0 if every bar is cleared, 1 if one is missed. Raises OptionError for what cannot be done, before measuring."""
    session = _session(given)
    groups = _groups(given, session)
    if given.plot is not None:
        plot.require(groups)
    results, console = session.results, session.console
    console.print(*(f"{key} {value}" for key, value in results.about.items()), sep="; ")
    for group in groups:
        models.run(session) if group == "model" else _kernels(group, session)
        session.save()
    if given.plot is not None and results.kernels:
        plot.draw(results.numbers(), given.plot)
    missed = results.missed()
    for line in missed:
        console.print("[red]missed[/] ", escape(line))
    return 1 if missed else 0


def _session(given: argparse.Namespace) -> Session:
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(device, torch.float32 if device == "cpu" else torch.bfloat16, given.mode, given.repeats)
    console = Console(width=None if sys.stdout.isatty() else 190, highlight=False)
    return Session(given, settings, console, Results(show.facts(settings)), time.monotonic())


def _groups(given: argparse.Namespace, session: Session) -> list[str]:
    if given.group != "all" and (given.group == "model" or not session.full_cpu):
        return [given.group]
    if given.group != "all":
        raise OptionError(f"--group {given.group} is measured on a GPU, and the device is a CPU", "add --tiny for a toy size")
    if session.full_cpu:
        session.console.print("kernels are measured on a GPU: here only the models (--tiny shows the kernels' tables)")
        return ["model"]
    return list(GROUPS)


def _cases(group: str, console: Console) -> list[Attention]:
    """Those that have a kernel; of the others it says why not."""
    from ..ir import AttentionSpec
    from ..lowering.sparse.config import unserved

    found = []
    for case in SPARSE if group == "sparse" else [case for case in ATTENTIONS if case.group == group]:
        refused = unserved(AttentionSpec.parse(case.spec))
        if refused:
            console.print(f"not run: {case.name}: no kernel for {refused}", markup=False)
        else:
            found.append(case)
    return found


def _kernels(group: str, session: Session) -> None:
    """The attentions of one group; the roofline first, once."""
    results, settings, tiny = session.results, session.settings, session.given.tiny
    cases = [case.shrunk() if tiny else case for case in _cases(group, session.console)]
    peers = [name for name in PEERS if session.given.columns is None or name in session.given.columns]
    rows = []
    for case in session.chosen(cases, lambda case: case.name):
        if results.roof is None:
            size = (1 / 64, 256) if tiny else (2.0, 8192)
            results.roof = Roofline.measured(settings.device, settings.dtype, settings.repeats, *size)
            session.console.print(f"roofline of this run: {results.roof}")
        with session.console.status(case.name) as status:
            rows.append(run_kernels(case, peers, settings, status.update))
        results.kernels.append(rows[-1])
        session.save()
        session.console.print(show_kernels.line(rows[-1], results.roof))
    if rows and results.roof is not None:
        session.console.print(show_kernels.table(rows, peers, results.roof), show_kernels.checks(rows, peers), sep="\n")
        for line in show_kernels.notes(rows):
            session.console.print(line, markup=False)
