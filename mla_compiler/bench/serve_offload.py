"""Decoding while layers lie on the host in turn: how much of the copying the other layers' work hides

    100 x (copy + step - together) / copy

    step       of a cache that lies in the arena whole, eager as an offloaded one must be
    copy       of the bytes that come back in a step, from pinned memory, with nothing beside it
    together   a step of a cache whose layers take turns: each goes, its last page written out, and the next comes meanwhile

By the wall clock, several steps at a time, the device idle at both ends; the three take turns. A copy can hide only behind as
much work. A layer of one sequence of 32k tokens is 134 MB, and takes many times longer over the bus than a step takes to read
it; so one layer in eight lies on the host, and comes back while seven run. Pages are of 256 tokens: no kernel reads them where
attention is eager, and the host has a quarter of them to count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.profiler import profile, record_function

from ..pool import KVPool
from ..pool.cache import PooledCache
from .serve_model import fill, model_of, work_of
from .serving import HIDDEN, Serving, Wrong
from .work import Work

if TYPE_CHECKING:
    from .session import Session

PAGE = 256
CHECKED, STEPS, ROUNDS = 3, 8, 5
"""Steps whose logits are compared; steps of a timed run; runs of each, after one that is not timed."""


def run(case: Serving, names: list[str], session: Session) -> dict[str, float]:
    """Only ours is there to be measured, whatever columns are named."""
    session.say(f"{case.name}: the caches")
    work = work_of(model_of(case, session.settings), case, case.batch)
    here, away = (_cache(work, case, offload) for offload in (0, case.offload))
    _check(work, here, away)
    session.say(f"{case.name}: timing")
    calls = _repeated(_step(work, here)), _repeated(_copies(work, case)), _repeated(_step(work, away))
    rounds = [[_ms(call) for call in calls] for _ in range(1 + ROUNDS)][1:]
    step, copy, together = (statistics.median(times) / STEPS for times in zip(*rounds, strict=True))
    if session.given.trace is not None:
        _trace(_step(work, away), session.given.trace)
    hidden = 100 * (copy + step - together) / copy
    return {"ms a step": step, "ms of copies": copy, "ms of both together": together, HIDDEN: hidden}


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


def _copies(work: Work, case: Serving) -> Callable[[], None]:
    """What comes back in a step: keys and values of so many layers."""
    like = work.layers[0].keys[:, :, : case.context]
    there = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
    here = torch.empty(like.shape, dtype=like.dtype, device=like.device)

    def copies() -> None:
        for _ in range(2 * case.offload):
            here.copy_(there, non_blocking=True)

    return copies


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


def _trace(step: Callable[[], object], path: Path) -> None:
    """Two steps for chrome://tracing: the copies on a stream of their own, beside the kernels."""
    _wait()
    with profile() as seen:
        for _ in range(2):
            with record_function("step"):
                step()
        _wait()
    seen.export_chrome_trace(str(path))
