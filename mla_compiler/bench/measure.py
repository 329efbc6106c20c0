"""Medians: milliseconds of one call (CUDA events on a GPU, the wall clock on a CPU) and peak memory in bytes."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .failure import why

WARMUP = 3
MOST_MS, FEWEST = 2000.0, 5
"""Timed calls of one column take about so long at most, and are so many at least."""
RUN_MS, MOST_ROUNDS = 2.0, 64
"""A timed run of short calls: about so many milliseconds, at most so many rounds."""


@dataclass(frozen=True)
class Timing:
    """ms: median of the calls, milliseconds; peak: bytes allocated at most during them, 0 where it is not known."""

    ms: float
    peak: int = 0


def measure(call: Callable[[], object], before: Callable[[], object], device: str, repeats: int) -> Timing:
    """`call`, `repeats` times after a warm-up, each preceded by `before`, which is not timed; fewer times where that is long.

    The peak is that of the warm-up too: a CUDA graph takes its memory when it is recorded, and nothing when it is replayed.
    """
    if device == "cpu":
        times = [_wall(call, before) for _ in range(WARMUP)]
        return Timing(statistics.median(_wall(call, before) for _ in range(enough(times[-1], repeats))))
    torch.cuda.reset_peak_memory_stats()
    first = [_events(call, before) for _ in range(WARMUP)]
    torch.cuda.synchronize()
    pairs = [_events(call, before) for _ in range(enough(first[-1][0].elapsed_time(first[-1][1]), repeats))]
    torch.cuda.synchronize()
    return Timing(statistics.median(a.elapsed_time(b) for a, b in pairs), torch.cuda.max_memory_allocated())


def enough(ms: float, repeats: int) -> int:
    """How many calls of `ms` milliseconds are timed, of the `repeats` asked for."""
    return min(repeats, max(FEWEST, int(MOST_MS / max(ms, 1e-3))))


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


@dataclass(frozen=True)
class Run:
    """us: microseconds of a call; how: "graph", "clock", or "events: why" where a CUDA graph cannot hold the calls.
    replay: what was timed, `count` calls; held: what a graph reads and does not keep alive."""

    us: float
    how: str
    replay: Callable[[], object]
    count: int
    held: object = None


def per_call(calls: Sequence[Callable[[], object]], device: str, repeats: int) -> Run:
    """One of `calls`, which take turns: median of `repeats` runs of about 2 ms."""
    for call in calls:
        call()
    if device == "cpu":
        us = 1e3 * statistics.median(_wall(call, _nothing) for _ in range(repeats) for call in calls)
        return Run(us, "clock", lambda: [call() for call in calls], len(calls))
    rough = measure(lambda: [call() for call in calls], _nothing, device, WARMUP).ms / len(calls)
    rounds = min(MOST_ROUNDS, max(1, math.ceil(RUN_MS / (rough * len(calls)))))

    def run() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    replay, how = _captured(run)
    count = rounds * len(calls)
    return Run(1e3 * measure(replay, _nothing, device, repeats).ms / count, how, replay, count, calls)


def in_turns(runs: Sequence[Run], repeats: int) -> list[float]:
    """Microseconds of a call of each, on a GPU: medians of `repeats` rounds in which every run has its turn.

    What is timed minutes apart meets other clocks and another temperature, which is worth a percent.
    """
    pairs = [[_events(run.replay, _nothing) for run in runs] for _ in range(repeats)]
    torch.cuda.synchronize()
    return [1e3 * statistics.median(a.elapsed_time(b) for a, b in each) / run.count
            for run, each in zip(runs, zip(*pairs, strict=True), strict=True)]


def _captured(run: Callable[[], object]) -> tuple[Callable[[], object], str]:
    """What replays the launches of `run`; `run` itself, and why, if something cannot be captured: only a try can tell."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as failure:
        torch.cuda.synchronize()
        return run, f"events: {why(failure)}"
    return graph.replay, "graph"


def _nothing() -> None:
    """Before a call that needs no preparation."""


def forget(device: str) -> None:
    """Drop what was compiled and what nothing refers to any more, the memory of CUDA graphs with it."""
    torch.compiler.reset()
    if device != "cpu":
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()  # torch 2.11 resets those of its own backend alone
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
