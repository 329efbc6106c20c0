"""One case in every column: checked against a more exact dtype first, then timed.

    rms(column - truth) <= 2 x rms(eager - truth)          truth: float32 for bfloat16, float64 for float32
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .bars import Judged, judge, missed
from .cases import EAGER, FLASHMLA, FLEX, INDUCTOR, NEEDED, Case
from .failure import why
from .measure import Timing, forget, interleaved, measure
from .one_head import OneHeadAtATime
from .work import TRUTH, Work

BACKEND = {INDUCTOR: "inductor", FLEX: "inductor", FLASHMLA: "flashmla"}


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


@dataclass(frozen=True)
class Settings:
    """How to run: device, dtype of the model, torch.compile's mode, timed calls a column.

    Without a mode, decode on a GPU runs in CUDA graphs in every compiled column, as transformers' generate compiles it: a step
    of few tokens takes the host longer to launch than the GPU to do.
    """

    device: str
    dtype: torch.dtype
    mode: str = ""
    repeats: int = 20

    def mode_of(self, case: Case) -> str:
        return self.mode or ("reduce-overhead" if case.decode and self.device != "cpu" else "default")


def run_case(model: Any, case: Case, columns: list[str], settings: Settings, say: Callable[[str], None]) -> Row:
    """Every column in turn, compiled code and memory dropped in between."""
    work = Work.of(model, case)
    row = Row(case, needed=work.bytes)
    say(f"{case.name}: the truth, in {str(TRUTH[settings.dtype])[6:]}")
    try:
        truth = _truth(work, settings)
    except torch.OutOfMemoryError as failure:  # the other cases can still be measured
        return Row(case, {name: Cell(failure=f"nothing to check against: {why(failure)}") for name in columns})
    for name in columns:
        forget(settings.device)
        say(f"{case.name}: {name}")
        row.cells[name] = _attempt(work, name, truth, settings)
    forget(settings.device)
    return row


def run_interleaved(model: Any, case: Case, columns: list[str], settings: Settings, say: Callable[[str], None]) -> Row:
    """Every column compiled first, then timed in turns: for a machine whose speed drifts."""
    work, row = Work.of(model, case), Row(case)
    truth, forwards = _truth(work, settings), {}
    for name in columns:
        say(f"{case.name}: compiling {name}")
        forwards[name] = _forward(model, name, settings.mode_of(case))
        row.cells[name] = _checked(work, forwards[name], truth)
    say(f"{case.name}: timing")
    with torch.no_grad():
        calls = {name: _bind(work, forward) for name, forward in forwards.items()}
        for name, timing in interleaved(calls, work.rewind, settings.repeats, each=8).items():
            row.cells[name].timing = timing
    forget(settings.device)
    return row


def _attempt(work: Work, name: str, truth: Tensor, settings: Settings) -> Cell:
    """The cell, or the failure to fill it: that a peer cannot compile a case is a result to show."""
    try:
        with _attention(work.model, "flex_attention" if name == FLEX else "sdpa"):
            forward = _forward(work.model, name, settings.mode_of(work.case))
            cell = _checked(work, forward, truth)
            with torch.no_grad():
                cell.timing = measure(_bind(work, forward), work.rewind, settings.device, settings.repeats)
            return cell
    except Exception as failure:
        return Cell(failure=why(failure))


def _truth(work: Work, settings: Settings) -> Tensor:
    exact = work.converted(TRUTH[settings.dtype])
    with torch.no_grad(), OneHeadAtATime():
        return exact.step(exact.model).double()


def _forward(model: Any, name: str, mode: str) -> Callable[..., Any]:
    if name == EAGER:
        return model  # type: ignore[no-any-return]
    return torch.compile(model, backend=BACKEND[name], mode=mode, dynamic=False)


def _bind(work: Work, forward: Callable[..., Any]) -> Callable[[], object]:
    return lambda: work.step(forward)


def _checked(work: Work, forward: Callable[..., Any], truth: Tensor) -> Cell:
    """Seconds of the first call, which compiles, and the error of its result."""
    work.rewind()
    start = time.perf_counter()
    with torch.no_grad():
        logits = work.step(forward).double()
    error = (logits - truth).square().mean().sqrt().item()
    return Cell(compile_s=time.perf_counter() - start, error=error)


class _attention:
    """The model switched to another attention implementation of transformers, and back."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name, self.before = model, name, model.config._attn_implementation

    def __enter__(self) -> None:
        self.model.set_attn_implementation(self.name)

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self.before)


def failures(rows: list[Row]) -> Iterator[str]:
    """What makes the benchmark fail: our result wrong or absent, or a bar missed. A peer that is wrong is only shown."""
    for row in rows:
        yield from (f"{row.case.name}: {name} is wrong" for name in row.wrong() if name == FLASHMLA)
        if FLASHMLA in row.cells and row.cells[FLASHMLA].failure:
            yield f"{row.case.name}: flashmla: {row.cells[FLASHMLA].failure}"
        yield from (f"{row.case.name}: {line}" for line in missed(row.bars()))
