"""A model whose cache is filled with random keys and values, in pages and in a static cache: the same numbers

    compiled steps over either, checked:    rms(logits - truth) <= 2 x rms(eager's - truth)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..pool.cache import PooledCache
from .cases import Case
from .compare import Settings
from .pool import PAGE
from .serving import Serving, Wrong
from .work import Work, random_llama

MOST_ERROR = 2.0
"""Times eager's."""


def model_of(case: Serving, settings: Settings) -> Any:
    return random_llama(case.shape, settings.device, settings.dtype)


def work_of(model: Any, case: Serving, rows: int) -> Work:
    """A static cache of `rows` sequences, filled up to the context."""
    return Work.of(model, Case(case.name, rows, case.context, case.longest))


@torch.no_grad()
def pooled(work: Work, case: Serving) -> PooledCache:
    """The same keys and values in pages; sequences beyond those of `work` have others."""
    cache = PooledCache(work.model.config, tokens=case.batch * -(-case.written // PAGE) * PAGE, longest=case.longest)
    fill(cache, work, case)
    return cache


@torch.no_grad()
def fill(cache: PooledCache, work: Work, case: Serving) -> None:
    for number, layer in enumerate(work.layers):
        cache.update(*(_more(x[:, :, : case.context], case.batch) for x in (layer.keys, layer.values)), number)


def _more(x: Tensor, batch: int) -> Tensor:
    return torch.cat([x, x.new_empty((batch - len(x), *x.shape[1:])).normal_()])


def mode_of(settings: Settings) -> str:
    """As transformers compiles its steps: in CUDA graphs."""
    return settings.mode or ("default" if settings.device == "cpu" else "reduce-overhead")


def check(name: str, found: Tensor, eager: Tensor, truth: Tensor) -> float:
    """The error as a multiple of eager's. Raises Wrong where it is above MOST_ERROR; NaN is."""
    error, yardstick = (_rms(x.double() - truth) for x in (found, eager))
    if not error <= MOST_ERROR * yardstick:
        raise Wrong(f"{name}: wrong: {error / yardstick:.3g} x eager's error")
    return error / yardstick


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()

