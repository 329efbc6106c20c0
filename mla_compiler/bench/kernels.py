"""One attention by every kernel there is: checked against float64 first, then timed.

    rms(kernel - exact) <= 2 x rms(formula in the working dtype - exact)        on a sample of rows
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attentions import COMPILE_S, DECODE, DENSE, Attention
from .bars import BEST, BEST_SDPA, Judged, Limit, judge, missed
from .cases import FLASHMLA
from .compare import Settings
from .failure import why
from .measure import forget, per_call
from .operands import Operands, Sample, copies
from .peers import PEERS, Call, Unfit

MOST_ERROR = 2.0
"""Times the formula's error in the working dtype."""
COMMON = (Limit(COMPILE_S, 10),)
"""Bars of every case."""


@dataclass
class Reading:
    """One kernel on one case. us: median microseconds; error: times the formula's; how: per_call; note: why no number."""

    us: float | None = None
    error: float = 0.0
    compile_s: float = 0.0
    how: str = ""
    note: str = ""


@dataclass
class KernelRow:
    """One case. dense_us: ours on the same operands without documents or sparsity, where the case has some."""

    case: Attention
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
        """TB/s of live keys and values in decode, else TFLOP/s."""
        work = self.case.live_bytes(self.dtype) if self.case.group == DECODE else self.case.flops
        return None if us is None else 1e-6 * work / us

    @property
    def unit(self) -> str:
        return "TB/s" if self.case.group == DECODE else "TFLOP/s"

    def figure(self, unit: str) -> float | None:
        us = self.ours.us
        if us is None:
            return None
        if unit == DENSE:
            return None if self.dense_us is None else self.dense_us / us
        if unit == self.unit:
            return self.rate(us)
        return {"us": us, "ms": us / 1e3, COMPILE_S: self.ours.compile_s}[unit]

    def bars(self) -> list[Judged]:
        return judge(() if self.case.toy else (*self.case.bars, *COMMON), self)


def run_kernels(case: Attention, names: list[str], settings: Settings, say: Callable[[str], object]) -> KernelRow:
    """Ours, then each peer in `names`; what one leaves behind is dropped before the next."""
    row = KernelRow(case, settings.dtype)
    given = copies(case, settings.device, settings.dtype)
    sample = Sample.of(given[0])
    row.readings[FLASHMLA] = _ours(given, sample, settings)
    if (case.documents > 1 or case.sparsity) and row.ours.us is not None:
        dense = [attend(each, case.dense, () if case.documents > 1 else each.tables) for each in given]
        row.dense_us, _ = per_call(dense, settings.device, settings.repeats)
    for name in names:
        say(f"{case.name}: {name}")
        row.readings[name] = _peer(name, given, sample, settings)
        forget(settings.device)
    return row


def attend(given: Operands, spec: str, tables: tuple[Tensor, ...]) -> Call:
    """Our operator bound to its operands."""
    return functools.partial(torch.ops.flashmla.attend, given.q, given.k, given.v, list(tables), [], [], spec)


def _ours(given: list[Operands], sample: Sample, settings: Settings) -> Reading:
    from ..lowering import register

    register()
    with _nothing_on_disk():
        return _attempt([attend(each, each.case.spec, each.tables) for each in given], sample, settings)


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


def _peer(name: str, given: list[Operands], sample: Sample, settings: Settings) -> Reading:
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
        us, how = per_call(calls, settings.device, settings.repeats)
        return Reading(us, error, compile_s, how)
    except Exception as failure:
        return Reading(note=why(failure))


def failures(rows: list[KernelRow]) -> Iterator[str]:
    """What makes the benchmark fail: no right result of ours, or a bar missed."""
    for row in rows:
        if row.ours.us is None:
            yield f"{row.case.name}: flashmla: {row.ours.note}"
        yield from (f"{row.case.name}: {line}" for line in missed(row.bars()))
