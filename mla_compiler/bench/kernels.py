"""One attention by every kernel there is: checked against float64 first, then timed.

    rms(kernel - exact) <= 2 x rms(formula in the working dtype - exact)        on a sample of rows
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .cases import FLASHMLA
from .compare import NONE, Settings
from .failure import why
from .kernel_rows import KernelRow, Reading
from .measure import Run, forget, in_turns, per_call
from .peers import PEERS, Call, Unfit
from .sampling import AnyCase, AnyOperands, Sample, copies, operands

MOST_ERROR = 2.0
"""Times the formula's error in the working dtype."""


def run_kernels(
    case: AnyCase, names: list[str], settings: Settings, say: Callable[[str], object], compiled: Mapping[str, float] = NONE,
) -> KernelRow:
    """Ours, then each peer in `names`; what one leaves behind is dropped before the next. compiled: seconds of the first
    call of those that were compiled beforehand. What the case has no memory for is a row of failures."""
    row, dense = KernelRow(case, settings.dtype), None
    try:
        given = copies(case, settings.device, settings.dtype)
        sample = Sample.of(given[0])
        row.readings[FLASHMLA] = _ours(given, sample, settings, compiled.get(FLASHMLA))
        if case.dense and row.ours.us is not None:
            dense = per_call([each.ours(dense=True) for each in given], settings.device, settings.repeats)
            row.dense_us = dense.us
        for name in names:
            say(f"{case.name}: {name}")
            row.readings[name] = _peer(name, given, sample, settings)
            row.readings[name].compile_s = compiled.get(name, row.readings[name].compile_s)
            forget(settings.device)
        _again_in_turns(row, dense, settings)
    except Exception as failure:  # the next case can still be measured
        row.readings = {name: Reading(note=why(failure)) for name in (FLASHMLA, *names)} | row.readings
    return row


def _again_in_turns(row: KernelRow, dense: Run | None, settings: Settings) -> None:
    """The times of those that a CUDA graph holds, once more and beside each other."""
    readings = [reading for reading in row.readings.values() if reading.run is not None and reading.how == "graph"]
    runs = [reading.run for reading in readings if reading.run is not None] + ([dense] if dense is not None else [])
    if settings.device != "cpu" and len(runs) > 1 and all(run.how == "graph" for run in runs):
        times = in_turns(runs, settings.repeats)
        for reading, us in zip(readings, times, strict=False):
            reading.us = us
        row.dense_us = times[-1] if dense is not None else None
    for reading in row.readings.values():
        reading.run = None                                          # and the memory of its graph


def first_call_of(case: AnyCase, column: str, settings: Settings) -> float:
    """Seconds of the first call, ours compiled anew."""
    given = operands(case, settings.device, settings.dtype)
    if column != FLASHMLA:
        return sum(_first_call(way[0], settings.device)[0] for way in PEERS[column].bind([given]))
    _register()
    with _nothing_on_disk():
        seconds, _ = _first_call(given.ours(), settings.device)
        if case.dense:
            given.ours(dense=True)()
    return seconds


def _register() -> None:
    from ..lowering import register

    register()


def _ours(given: Sequence[AnyOperands], sample: Sample, settings: Settings, compiled: float | None) -> Reading:
    _register()
    calls = [each.ours() for each in given]
    if compiled is not None:
        reading = _attempt(calls, sample, settings)
        reading.compile_s = compiled
        return reading
    with _nothing_on_disk():
        return _attempt(calls, sample, settings)


@contextmanager
def _nothing_on_disk() -> Iterator[None]:
    """Triton compiles even what it has on disk, so that a first call shows its price; what this process holds is found."""
    before = os.environ.get("TRITON_ALWAYS_COMPILE")
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TRITON_ALWAYS_COMPILE")
        os.environ.update({} if before is None else {"TRITON_ALWAYS_COMPILE": before})


def _first_call(call: Call, device: str) -> tuple[float, Tensor]:
    """Seconds and result."""
    start = time.perf_counter()
    out = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def _peer(name: str, given: list[AnyOperands], sample: Sample, settings: Settings) -> Reading:
    """The fastest right way of those the peer can be called in; why there is none, if there is none."""
    peer = PEERS[name]
    if peer.absent(settings.device):
        return Reading(note="absent")
    try:
        ways = peer.bind(given)
    except Unfit as refusal:
        return Reading(note=f"no kernel: {refusal}")
    except Exception as failure:
        return Reading(note=why(failure))
    found = [_attempt(calls, sample, settings) for calls in ways]
    timed = [reading for reading in found if reading.us is not None]
    return min(timed, key=lambda reading: reading.us or 0.0) if timed else found[0]


def _attempt(calls: list[Call], sample: Sample, settings: Settings) -> Reading:
    """Compiled, checked, timed; or why not, which for a peer is a result to show and for us makes the benchmark fail."""
    try:
        compile_s, out = _first_call(calls[0], settings.device)
        error = sample.error(out)
        if not error <= MOST_ERROR:
            return Reading(None, error, compile_s, note=f"wrong: {error:.3g} x the formula's error")
        run = per_call(calls, settings.device, settings.repeats)
        return Reading(run.us, error, compile_s, run.how, run=run)
    except Exception as failure:
        return Reading(note=why(failure))
