"""Medians: milliseconds of one call (CUDA events on a GPU, the wall clock on a CPU) and peak memory in bytes."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARMUP = 3


@dataclass(frozen=True)
class Timing:
    """ms: median of the calls, milliseconds; peak: bytes allocated at most during them, 0 where it is not known."""

    ms: float
    peak: int = 0


def measure(call: Callable[[], object], before: Callable[[], object], device: str, repeats: int) -> Timing:
    """`call`, `repeats` times after a warm-up, each preceded by `before`, which is not timed."""
    for _ in range(WARMUP):
        before()
        call()
    if device == "cpu":
        return Timing(statistics.median(_wall(call, before) for _ in range(repeats)))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    pairs = [_events(call, before) for _ in range(repeats)]
    torch.cuda.synchronize()
    return Timing(statistics.median(a.elapsed_time(b) for a, b in pairs), torch.cuda.max_memory_allocated())


def interleaved(
    calls: dict[str, Callable[[], object]], before: Callable[[], object], rounds: int, each: int
) -> dict[str, Timing]:
    """CPU: `rounds` rounds in which every call has its turn of `each` times; medians. A slow minute hits all alike."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        before()
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            seen[name] += [_wall(call, before) for _ in range(each)]
    return {name: Timing(statistics.median(times)) for name, times in seen.items()}


def _wall(call: Callable[[], object], before: Callable[[], object]) -> float:
    before()
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _events(call: Callable[[], object], before: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    before()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return start, end


def forget(device: str) -> None:
    """Drop what was compiled and what nothing refers to any more."""
    torch.compiler.reset()
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
