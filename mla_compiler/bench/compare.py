"""One case in every column: checked against a more exact dtype first, then timed.

    rms(column - truth) <= 2 x rms(eager - truth)          truth: float32 for bfloat16, float64 for float32
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cases import EAGER, FLASHMLA, FLEX, INDUCTOR, Case
from .failure import why
from .measure import forget, interleaved, measure
from .one_head import OneHeadAtATime
from .rows import Cell, Row
from .work import TRUTH, Work

NONE: Mapping[str, float] = {}
BACKEND = {INDUCTOR: "inductor", FLEX: "inductor", FLASHMLA: "flashmla"}


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


def run_case(
    model: Any, case: Case, columns: list[str], settings: Settings, say: Callable[[str], None],
    compiled: Mapping[str, float] = NONE,
) -> Row:
    """Every column in turn, compiled code and memory dropped in between. compiled: seconds of the first call of those columns
    that were compiled beforehand. What the case has no memory for is a row of failures."""
    row = Row(case)
    try:
        work = Work.of(model, case)
        row.needed = work.bytes
        say(f"{case.name}: the truth, in {str(TRUTH[settings.dtype])[6:]}")
        truth = truth_of(work, settings)
    except torch.OutOfMemoryError as failure:  # the other cases can still be measured
        return Row(case, {name: Cell(failure=f"nothing to check against: {why(failure)}") for name in columns})
    for name in columns:
        forget(settings.device)
        say(f"{case.name}: {name}")
        row.cells[name] = _attempt(work, name, truth, settings)
        row.cells[name].compile_s = compiled.get(name, row.cells[name].compile_s)
    forget(settings.device)
    return row


def run_column(model: Any, case: Case, name: str, settings: Settings) -> float:
    """Seconds of the first call of one column, which compiles."""
    work = Work.of(model, case)
    with _attention(work.model, _implementation(name)):
        seconds, _ = _first_call(work, _forward(work.model, name, settings.mode_of(case)))
    return seconds


def run_interleaved(model: Any, case: Case, columns: list[str], settings: Settings, say: Callable[[str], None]) -> Row:
    """Every column compiled first, then timed in turns: for a machine whose speed drifts."""
    work, row = Work.of(model, case), Row(case)
    truth, forwards = truth_of(work, settings), {}
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
        with _attention(work.model, _implementation(name)):
            forward = _forward(work.model, name, settings.mode_of(work.case))
            cell = _checked(work, forward, truth)
            with torch.no_grad():
                cell.timing = measure(_bind(work, forward), work.rewind, settings.device, settings.repeats)
            return cell
    except Exception as failure:
        return Cell(failure=why(failure))


def truth_of(work: Work, settings: Settings) -> Tensor:
    """Logits [B, vocab] of a copy of the model in a more exact dtype, as float64."""
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
    seconds, logits = _first_call(work, forward)
    return Cell(compile_s=seconds, error=(logits - truth).square().mean().sqrt().item())


def _first_call(work: Work, forward: Callable[..., Any]) -> tuple[float, Tensor]:
    """Seconds, and logits in float64, read back to the host."""
    work.rewind()
    start = time.perf_counter()
    with torch.no_grad():
        logits = work.step(forward).double()
    logits.sum().item()
    return time.perf_counter() - start, logits


def _implementation(column: str) -> str:
    """transformers' name of the attention that a column's model has."""
    return "flex_attention" if column == FLEX else "sdpa"


class _attention:
    """The model switched to another attention implementation of transformers, and back."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name, self.before = model, name, model.config._attn_implementation

    def __enter__(self) -> None:
        self.model.set_attn_implementation(self.name)

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self.before)
