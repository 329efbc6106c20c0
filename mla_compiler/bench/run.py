"""The groups asked for, in one process, and what came of them: tables, JSON, plot, exit status."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.markup import escape

from ..errors import OptionError
from . import beforehand, models, plot, serve, show, show_kernels
from .arguments import GROUPS
from .cases import GPU_CASES
from .compare import Settings
from .kernels import run_kernels
from .measure import forget
from .peers import PEERS
from .roofline import Roofline
from .sampling import CASES
from .session import Results, Session

OF_MODELS: dict[str, Callable[[Session], None]] = {
    "model": lambda session: models.run(session), "serve": lambda session: serve.run(session)}
"""Groups of whole models; the others are kernels."""


def run(given: argparse.Namespace) -> int:
    """0 if every bar is cleared, 1 if one is missed. Raises OptionError for what cannot be done, before measuring."""
    session = _session(given)
    groups = _groups(given, session)
    if given.plot is not None:
        plot.require(groups)
    if any(group in OF_MODELS for group in groups):
        models.require()
    results, console = session.results, session.console
    console.print(*(f"{key} {value}" for key, value in results.about.items()), sep="; ")
    _compile_beforehand(groups, session)
    for group in groups:
        OF_MODELS[group](session) if group in OF_MODELS else _kernels(group, session)
        session.save()
    if given.plot is not None and results.kernels:
        plot.draw(results.numbers(), given.plot)
    return _conclude(session)


def _conclude(session: Session) -> int:
    """The bars of all groups together, and the exit status."""
    rows: list[show.Judgeable] = [*session.results.kernels, *session.results.models, *session.results.served]
    missed = session.results.missed()
    if any(row.bars() for row in rows):
        session.console.print(show.summary(rows), show.counts(rows), sep="\n")
    for line in missed:
        session.console.print("[red]missed[/] ", escape(line))
    session.say(f"{len(rows)} cases")
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


def _compile_beforehand(groups: list[str], session: Session) -> None:
    given, settings = session.given, session.settings
    most = beforehand.processes(given.jobs, settings.device, given.tiny)
    if most < 1 or session.full_cpu:
        return
    jobs = []
    for group in groups:
        if group == "model":
            jobs += beforehand.jobs_of_models(session.matching(GPU_CASES), given.columns, settings, given.tiny)
        elif group in CASES:
            jobs += beforehand.jobs_of_kernels(group, session.matching(CASES[group]), given.columns, settings, given.tiny)
    if jobs:
        session.compiled.update(beforehand.first_calls(jobs, most, session.say))
        session.say("compiled")


def _kernels(group: str, session: Session) -> None:
    """The attentions of one group; the roofline first, once."""
    results, settings, tiny = session.results, session.settings, session.given.tiny
    peers = [name for name, peer in PEERS.items()
             if group in peer.groups and (session.given.columns is None or name in session.given.columns)]
    rows = []
    for case in session.chosen(CASES[group]):
        if results.roof is None:
            size = (1 / 64, 256) if tiny else (2.0, 8192)
            results.roof = Roofline.measured(settings.device, settings.dtype, settings.repeats, *size)
            session.console.print(f"roofline of this run: {results.roof}")
        with session.console.status(case.name) as status:
            seconds = session.compiled_of(group, case.name)
            rows.append(run_kernels(case.shrunk() if tiny else case, peers, settings, status.update, seconds))
        forget(settings.device)
        results.kernels.append(rows[-1])
        session.save()
        session.say(show_kernels.line(rows[-1], results.roof))
    if rows and results.roof is not None:
        session.console.print(show_kernels.table(rows, peers, results.roof), show_kernels.checks(rows, peers), sep="\n")
        for line in show_kernels.notes(rows):
            session.console.print(line, markup=False)
