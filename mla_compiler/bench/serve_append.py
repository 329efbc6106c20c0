"""One token of every sequence and layer written into pages, by itself, beside the compiled step that does it among other things

    100 x time of the appends / time of a step

The appends of all layers are launched one by one, as Inductor compiles one of them alone, in a CUDA graph of their own. In the
step each is part of a kernel that also turns the keys (RoPE), so what is measured is at least what appending adds to a step.
The first rows of the step's logits are checked, for which a more exact copy of the model finds memory; rows do not meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..pool.cache import PooledCache
from ..pool.ops import POOL
from .cases import FLASHMLA
from .compare import Settings, truth_of
from .measure import forget, measure, per_call
from .serve_model import check, mode_of, model_of, pooled, work_of
from .serving import OF_STEP, Serving, Wrong
from .work import Work

if TYPE_CHECKING:
    from .session import Session

ROWS = 2
"""Sequences whose logits are checked."""


def run(case: Serving, names: list[str], session: Session) -> dict[str, float]:
    """Only ours is there to be measured, whatever columns are named."""
    settings, say = session.settings, session.say
    work = work_of(model_of(case, settings), case, min(ROWS, case.batch))
    say(f"{case.name}: the truth")
    truth = truth_of(work, settings)
    forget(settings.device)
    work.rewind()
    with torch.no_grad():
        eager = work.step(work.model)
    work.rewind()
    cache = pooled(work, case)
    say(f"{case.name}: a step")
    step = _step(work, case, cache, settings)
    error = check("a step", step()[: work.case.batch], eager, truth)
    step_ms = measure(step, lambda: None, settings.device, min(settings.repeats, case.tokens // 4)).ms
    say(f"{case.name}: appends")
    us = per_call([_appends(cache, case)], settings.device, settings.repeats).us
    return {"ms a step": step_ms, "us of appends": us, OF_STEP: us / step_ms / 10, "x eager's error": error}


def _step(work: Work, case: Serving, cache: PooledCache, settings: Settings) -> Callable[[], Tensor]:
    """Logits [B, vocab] of one more token of every sequence."""
    forward = torch.compile(work.model.forward, backend=FLASHMLA, fullgraph=True, dynamic=False, mode=mode_of(settings))
    more = torch.randint(work.model.config.vocab_size, (case.batch - len(work.ids), 1), device=work.ids.device)
    ids = torch.cat([work.ids, more])

    @torch.no_grad()
    def step() -> Tensor:
        logits: Tensor = forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1]

    return step


def _write(k_pages: Tensor, v_pages: Tensor, table: Tensor, lengths: Tensor, k: Tensor, v: Tensor) -> None:
    POOL.pool_append(k_pages, table, lengths, k)
    POOL.pool_append(v_pages, table, lengths, v)


def _appends(cache: PooledCache, case: Serving) -> Callable[[], None]:
    """Writes the last token of every sequence anew, in every layer. Raises Wrong where the pages do not hold it afterwards."""
    batch, pool = cache.batch, cache.pool
    assert batch is not None and pool is not None
    g, write = pool.geometry, torch.compile(_write, fullgraph=True, dynamic=False)
    table, before = batch.slate.tables[0], batch.slate.lengths - 1
    new = [torch.randn(2, case.batch, 1, g.kv_heads, g.k_dim, dtype=g.dtype, device=g.device).transpose(2, 3)
           for _ in pool.arena.stores]
    arguments: list[tuple[Any, ...]] = [
        (store.k, store.v, table, before, *kv) for store, kv in zip(pool.arena.stores, new, strict=True)]

    @torch.no_grad()
    def appends() -> None:
        for each in arguments:
            write(*each)

    appends()
    for store, kv in zip(pool.arena.stores, new, strict=True):
        if not all(torch.equal(x, y) for x, y in zip(store.read(table, batch.length - 1, batch.length), kv, strict=True)):
            raise Wrong("an append: the pages do not hold what was written")
    return appends
