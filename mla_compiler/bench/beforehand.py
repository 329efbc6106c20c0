"""Everything compiled before anything is measured, in processes beside each other; the code waits in the caches on disk

    first_calls(jobs) -> {(group, case, column): seconds of the first call}

What is measured later finds its code, and shows these seconds as the price of its first call. A job that fails is no result:
its column compiles when its turn comes, and fails there for all to see.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
CONTEXT_GIB = 2
"""Of device memory that a process takes beside its operands: the driver's, and what is compiled."""


Seconds = dict[tuple[str, str, str], float]


@dataclass(frozen=True)
class Job:
    """One column of one case of a group."""

    name: str
    case: Case | AnyCase
    column: str
    settings: Settings
    tiny: bool = False
    group: str = "model"

    @property
    def gib(self) -> float:
        """Of device memory, roughly; a peer may copy what it reads."""
        if isinstance(self.case, Case):
            return self.case.gib
        return CONTEXT_GIB + 2 * self.case.read_bytes(self.settings.dtype) / 2**30


def jobs_of_models(cases: Iterable[Case], asked: Sequence[str] | None, settings: Settings, tiny: bool) -> list[Job]:
    """asked: the columns of --columns, None for all."""
    return [Job(case.name, case.shrunk(64) if tiny else case, name, settings, tiny) for case in cases for name in case.columns
            if name != EAGER and (asked is None or name in asked)]


def jobs_of_kernels(
    group: str, cases: Iterable[AnyCase], asked: Sequence[str] | None, settings: Settings, tiny: bool,
) -> list[Job]:
    """Of kernels ours compile, and FlexAttention."""
    flex = group in PEERS[FLEX].groups and (asked is None or FLEX in asked) and not PEERS[FLEX].absent(settings.device)
    names = (FLEX, FLASHMLA) if flex else (FLASHMLA,)
    return [Job(case.name, case.shrunk() if tiny else case, name, settings, tiny, group) for case in cases for name in names]


def processes(asked: int | None, device: str, tiny: bool = False) -> int:
    """How many to start: as asked, else by the cores of a machine with a GPU, none for toys."""
    if asked is not None:
        return asked
    return 0 if device == "cpu" or tiny else min(MOST_PROCESSES, max(1, (os.cpu_count() or 1) - 2))


def first_calls(jobs: Sequence[Job], most: int, say: Callable[[str], None]) -> Seconds:
    """Runs the jobs in at most `most` processes, the largest first, as many at once as device memory has room for."""
    found: Seconds = {}
    waiting, running = sorted(jobs, key=lambda job: -job.gib), dict[Future[float], Job]()
    free = _free(jobs[0].settings.device)
    say(f"{len(jobs)} columns are compiled in {min(most, len(jobs))} processes")
    with ProcessPoolExecutor(min(most, len(jobs)), get_context("spawn"), _prepare) as pool:
        while waiting or running:
            while (job := _next(waiting, list(running.values()), most, free)) is not None:
                waiting.remove(job)
                running[pool.submit(first_call, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    found[job.group, job.name, job.column] = future.result()
                except Exception as failure:  # the column's own turn will show it
                    say(f"{job.name}: {job.column}: not compiled beforehand: {failure}")
    return found


def _next(waiting: Sequence[Job], running: Sequence[Job], most: int, free: float) -> Job | None:
    """The first that fits beside those that run; alone, any does."""
    if not running:
        return next(iter(waiting), None)
    left = free - sum(job.gib for job in running)
    return next((job for job in waiting if job.gib <= left), None) if len(running) < most else None


def _free(device: str) -> float:
    """GiB of device memory."""
    return math.inf if device == "cpu" else torch.cuda.mem_get_info()[0] / 2**30


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
