"""Decoding while layers lie on the host in turn: how much of the copying the other layers' work hides

    100 x (time that copies run - time that copies run and no kernel does) / time that copies run

of the copies that bring layers back, in a trace of several steps: what a kernel runs beside is hidden, and a copy that the
device waits for is not, nor one beside which the host has nothing launched. A step of a cache that lies in the arena whole is
timed beside, in turns, by the wall clock; eager, as an offloaded one must be. A copy can hide only behind as much work: a layer
of one sequence of 32k tokens is 134 MB, and takes many times longer over the bus than a step takes to read it; so one layer in
eight lies on the host, and comes back while seven run. Pages are of 256 tokens: no kernel reads them where attention is eager,
and the host has a quarter of them to count.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import profile, record_function

from ..pool import KVPool
from ..pool.cache import PooledCache
from .serve_model import fill, model_of, work_of
from .serving import HIDDEN, Serving, Wrong
from .work import Work

if TYPE_CHECKING:
    from .session import Session

PAGE = 256
CHECKED, STEPS, ROUNDS, TRACED = 3, 8, 5, 4
"""Steps whose logits are compared; steps of a timed run; runs of each, after one that is not timed; steps of a trace."""
KINDS = {"cuda": DeviceType.CUDA, "cpu": DeviceType.CPU}
NO_WORK = "Memcpy HtoD", "Memcpy DtoH", "step", "flashmla::"
"""Names on the device of what goes over the bus, and of the ranges of a step and of the pool."""
COPIES = {"cuda": "Memcpy HtoD", "cpu": "flashmla::pool.bring"}


def run(case: Serving, names: list[str], session: Session) -> dict[str, float]:
    """Only ours is there to be measured, whatever columns are named."""
    session.say(f"{case.name}: the caches")
    work = work_of(model_of(case, session.settings), case, case.batch)
    here, away = (_cache(work, case, offload) for offload in (0, case.offload))
    _check(work, here, away)
    session.say(f"{case.name}: timing")
    calls = _repeated(_step(work, here)), _repeated(_step(work, away))
    rounds = [[_ms(call) for call in calls] for _ in range(1 + ROUNDS)][1:]
    step, together = (statistics.median(times) / STEPS for times in zip(*rounds, strict=True))
    copies, alone = _traced(_step(work, away), session.given.trace)
    if not copies:
        raise Wrong("layers on the host: no copy of them was traced")
    return {"ms a step": step, "ms a step, layers on the host": together, "ms of copies": copies,
            "ms of copies alone": alone, HIDDEN: 100 * (copies - alone) / copies}


def _cache(work: Work, case: Serving, offload: int) -> PooledCache:
    """Full up to the context. The arena has room for two of the layers that take turns."""
    config, model = work.model.config, work.model
    tokens = -(-case.written // PAGE) * PAGE * case.batch
    pool = KVPool(
        1, config.num_key_value_heads, config.head_dim, dtype=model.dtype, device=model.device, page=PAGE,
        tokens=tokens * (case.layers - offload + 2 * (offload > 0)), host_tokens=(tokens + PAGE) * offload)
    cache = PooledCache(config, pool=pool, offload=offload)
    fill(cache, work, case)
    return cache


def _step(work: Work, cache: PooledCache) -> Callable[[], Tensor]:
    """Logits [B, 1, vocab] of one more token."""

    @torch.no_grad()
    def step() -> Tensor:
        logits: Tensor = work.model(input_ids=work.ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits

    return step


def _check(work: Work, here: PooledCache, away: PooledCache) -> None:
    """Raises Wrong unless both caches give the same logits, to the bit, and one of them lies on the host."""
    steps = _step(work, here), _step(work, away)
    for _ in range(CHECKED):
        if not torch.equal(*(step() for step in steps)):
            raise Wrong("layers on the host: other logits than of those in the arena")
    if away.pool is None or away.pool.ledger.shelf is None or not away.pool.ledger.shelf.slots.held:
        raise Wrong("layers on the host: nothing lies there")


def _repeated(call: Callable[[], object]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(STEPS):
            call()

    return calls


def _ms(call: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return 1e3 * (time.perf_counter() - start)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _traced(step: Callable[[], object], path: Path | None) -> tuple[float, float]:
    """(ms that copies of layers to the device run, ms that they run alone) of a step; the trace, for chrome://tracing.

    Without a GPU the copies are the calls that make them, and nothing runs beside.
    """
    _wait()
    with profile() as seen:
        for _ in range(TRACED):
            with record_function("step"):
                step()
        _wait()
    if path is not None:
        seen.export_chrome_trace(str(path))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spans = [(x.name, x.time_range.start, x.time_range.end) for x in seen.events() if x.device_type == KINDS[device.type]]
    copies = [span[1:] for span in spans if span[0].startswith(COPIES[device.type])]
    kernels = [span[1:] for span in spans if device.type == "cuda" and not span[0].startswith(NO_WORK)]
    return covered(copies) / TRACED / 1e3, (covered(copies + kernels) - covered(kernels)) / TRACED / 1e3


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of spans (start, end)."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
