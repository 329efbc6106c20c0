"""Everything compiled before anything is measured, in processes beside each other; the code waits in the caches on disk

    first_calls(jobs) -> {(group, case, column): seconds of the first call}

What is measured later finds its code, and shows these seconds as the price of its first call. A job that fails is no result:
its column compiles when its turn comes, and fails there for all to see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from .cases import EAGER, FLASHMLA, FLEX, Case
from .compare import Settings, run_column
from .failure import why
from .kernels import first_call_of
from .measure import forget
from .models import model_of
from .peers import PEERS
from .sampling import AnyCase

MOST_PROCESSES, THREADS = 12, 4
"""Processes; and threads of each, for Inductor's own workers."""
MODEL_GIB, KERNEL_GIB = 20, 5
"""Of device memory that a process takes at most."""


Seconds = dict[tuple[str, str, str], float]


@dataclass(frozen=True)
class Job:
    """One column of one case."""

    name: str
    case: Case | AnyCase
    column: str
    settings: Settings
    tiny: bool = False

    @property
    def group(self) -> str:
        return "model" if isinstance(self.case, Case) else self.case.group

    @property
    def gib(self) -> int:
        return MODEL_GIB if isinstance(self.case, Case) else KERNEL_GIB


def jobs_of_models(cases: Iterable[Case], asked: Sequence[str] | None, settings: Settings, tiny: bool) -> list[Job]:
    """asked: the columns of --columns, None for all."""
    return [Job(case.name, case.shrunk(64) if tiny else case, name, settings, tiny) for case in cases for name in case.columns
            if name != EAGER and (asked is None or name in asked)]


def jobs_of_kernels(cases: Iterable[AnyCase], asked: Sequence[str] | None, settings: Settings, tiny: bool) -> list[Job]:
    """Of kernels ours compile, and FlexAttention."""
    return [Job(case.name, case.shrunk() if tiny else case, name, settings, tiny) for case in cases for name in (FLEX, FLASHMLA)
            if name == FLASHMLA or (case.group in PEERS[name].groups and (asked is None or name in asked)
                                    and not PEERS[name].absent(settings.device))]


def processes(asked: int | None, device: str) -> int:
    """How many to start: as asked, else by the cores of a machine with a GPU."""
    if asked is not None:
        return asked
    return 0 if device == "cpu" else min(MOST_PROCESSES, max(1, (os.cpu_count() or 1) - 2))


def first_calls(jobs: Sequence[Job], most: int, say: Callable[[str], None]) -> Seconds:
    """Runs the jobs in at most `most` processes, fewer where device memory is short."""
    found: Seconds = {}
    for gib in dict.fromkeys(job.gib for job in jobs):
        mine = [job for job in jobs if job.gib == gib]
        workers = min(most, len(mine), _room(mine[0].settings.device, gib))
        say(f"{len(mine)} columns are compiled in {workers} processes")
        found.update(_in_processes(mine, workers, say))
    return found


def _room(device: str, gib: int) -> int:
    """Processes that device memory has room for."""
    return MOST_PROCESSES if device == "cpu" else max(1, torch.cuda.mem_get_info()[0] // (gib << 30))


def _in_processes(jobs: Sequence[Job], workers: int, say: Callable[[str], None]) -> Seconds:
    found: Seconds = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare) as pool:
        waiting: dict[Future[float], Job] = {pool.submit(first_call, job): job for job in jobs}
        for future in as_completed(waiting):
            job = waiting[future]
            try:
                found[job.group, job.name, job.column] = future.result()
            except Exception as failure:  # the column's own turn will show it
                say(f"{job.name}: {job.column}: not compiled beforehand: {failure}")
    return found


def _prepare() -> None:
    """In a new process."""
    from torch._inductor import config

    torch.set_num_threads(THREADS)
    config.compile_threads = THREADS


def first_call(job: Job) -> float:
    """Seconds of the job's first call in this process, which compiles. RuntimeError says why there is none."""
    try:
        if isinstance(job.case, Case):
            return run_column(model_of(job.case, job.settings, job.tiny), job.case, job.column, job.settings)
        return first_call_of(job.case, job.column, job.settings)
    except Exception as failure:  # what torch raises need not survive the way to another process
        raise RuntimeError(why(failure)) from None
    finally:
        forget(job.settings.device)
