"""`flashmla calibrate`, from its flags to the file"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from .. import __version__
from ..errors import OptionError
from ..sparsity import FILE_FORMAT, Sparsity
from .curves import SHORT, Curve, curves, family, weigh, weighed
from .search import TRIES, Measured, Policies, compare, search
from .subject import Outcome, Subject
from .texts import Windows, load, windows


def run(given: argparse.Namespace) -> int:
    """0 if a policy was found and written, 1 if none keeps to the bound. Raises OptionError for what cannot be done."""
    console, tried = Console(width=None if sys.stdout.isatty() else 150, highlight=False), family(given.policy)
    with _progress(console) as progress:
        work = _work(given, tried[0], progress)
        found = search(work.weighed(tried), given.loss, work.calibrating)
        held_out = work.held_out(found[0]) if found else None
    if found is None or held_out is None:
        console.print(f"nothing written: none of {TRIES} tries kept to {given.loss:.2%}")
        return 1
    write(given.out, found[0], {
        "model": given.model.name, "policy": given.policy, "texts": [path.name for path in given.texts], "bound": given.loss,
        "tokens": given.tokens, "windows": given.windows, "device": work.device, "version": __version__,
        "calibrated": _facts(found[1]), "held_out": _facts(held_out),
    })
    console.print(*(f"{layer}: {policy}" for layer, policy in found[0].items()), sep="\n")
    console.print(f"calibrated: {found[1]}", f"held out:   {held_out}", f"wrote {given.out}: "
                  f'options={{"flashmla.policy": "{given.out}"}}', sep="\n", markup=False)
    return 0


def _work(given: argparse.Namespace, policy: Sparsity, progress: Progress) -> Work:
    """The model and its windows, on the device."""
    if given.tokens < 2 or given.windows < 1:
        raise OptionError(f"--tokens {given.tokens} --windows {given.windows}", "at least 2 tokens and 1 window")
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load(given.model, device)
    text = windows(tokenizer, given.texts, given.tokens, given.windows)
    text = Windows(*(tuple(ids.to(device) for ids in part) for part in (text.calibrating, text.held_out)))
    return Work(Subject(model, policy), text, given.layers, progress)


class Work:
    """What is measured of one model on its windows, each with a line of progress; `sites`: those that count, by a pattern."""

    def __init__(self, subject: Subject, text: Windows, sites: str, progress: Progress) -> None:
        self.subject, self.text, self.sites, self.progress = subject, text, sites, progress
        self.device, self.exact = text.calibrating[0].device.type, list[Outcome]()

    def weighed(self, policies: Sequence[Sparsity]) -> list[Curve]:
        """The curves of the layers on the first window, their weights on the first SHORT tokens of it."""
        first, short = self.text.calibrating[0], self.text.calibrating[0][:SHORT]
        with self.step("curves of the layers", 2) as step:
            layers = self.subject.layers(short, self.sites)
            step.advance("what each layer leaves out")
            found = curves(self.subject, first, policies, layers)
        with self.step("loss of each layer", len(layers) + 1) as step:
            exact, weights = self.subject.run(short), []
            for curve in found:
                step.advance(f"loss of {curve.layer}")
                weights.append(weigh(self.subject, short, exact, curve))
        return weighed(found, weights)

    def calibrating(self, policies: Policies) -> Measured:
        if not self.exact:
            self.exact = self.all_of("exact", self.text.calibrating, {})
        found = compare(self.exact, self.all_of("trial", self.text.calibrating, policies), self.text.calibrating, self.sites)
        self.progress.console.print(f"  {found}", markup=False)
        return found

    def held_out(self, policies: Policies) -> Measured:
        exact = self.all_of("held out, exact", self.text.held_out, {})
        return compare(exact, self.all_of("held out", self.text.held_out, policies), self.text.held_out, self.sites)

    def all_of(self, name: str, windows: Sequence[Tensor], policies: Policies) -> list[Outcome]:
        with self.step(name, len(windows)) as step:
            found = []
            for ids in windows:
                found.append(self.subject.run(ids, policies))
                step.advance(name)
        return found

    def step(self, name: str, total: int) -> Step:
        return Step(self.progress, name, total)


class Step:
    """One bar; where there is no terminal, one line when it is done."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.progress, self.name, self.began = progress, name, time.monotonic()
        self.task = progress.add_task(name, total=total)

    def advance(self, what: str) -> None:
        self.progress.update(self.task, advance=1, description=what)

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.remove_task(self.task)
        self.progress.console.print(f"{time.monotonic() - self.began:6.1f} s  {self.name}")


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


def _facts(found: Measured) -> dict[str, float]:
    return {"loss": found.loss, "standard_error": found.upper - found.loss, "pv_left_out": found.pv,
            "work_left_out": found.work, "agreement": found.agreement, "accuracy": found.accuracy}


def write(path: Path, policies: Policies, about: dict[str, Any]) -> None:
    """What `sparsity.Rules.read` reads; `about` is for people."""
    layers = {layer: str(policy) for layer, policy in policies.items()}
    path.write_text(json.dumps({"format": FILE_FORMAT, "about": about, "layers": layers}, indent=1) + "\n", encoding="utf-8")
