"""A pool is read and written where it lies: the generated code of a decode step has no buffer as large as one layer's pages.

As test_cache_copies of a static cache; only the code is generated here.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch._inductor.utils import get_code
from transformers import DynamicCache

from mla_compiler import KVPool, PooledCache
from tests.harness import BACKEND, watching
from tests.models.architectures import model
from tests.models.expected import needs_newer
from tests.models.scenarios import MAX_LEN, tokens

NAMES = tuple(name for name in ("llama", "gemma2", "deepseek_v3") if not needs_newer(name, "static"))


def opened(name: str, format: str, bounds: bool) -> tuple[object, PooledCache]:
    """The model, and a cache that has taken the prompt, over pages of one layer each, for layers of every window."""
    subject, shapes = model(name), DynamicCache()
    subject(input_ids=tokens(), past_key_values=shapes)
    k, v = shapes.layers[0].keys, shapes.layers[0].values
    pool = KVPool(1, k.shape[1], k.shape[3], v.shape[3], dtype=k.dtype, tokens=64 * 64, format=format, bounds=bounds)
    cache = PooledCache(subject.config, pool=pool, longest=MAX_LEN)
    subject(input_ids=tokens(), past_key_values=cache)
    return subject, cache


def decode_code(name: str, format: str, backend: str, bounds: bool = False) -> tuple[str, int]:
    """Wrapper and kernels of one decode step, as text; the elements of the smallest pages it writes to."""
    with watching() as seen:
        subject, cache = opened(name, format, bounds)
        step = torch.compile(lambda ids: subject(input_ids=ids, past_key_values=cache).logits, backend=backend)
        code = "\n".join(get_code(step, tokens(1)))
    if backend == BACKEND:
        assert {site.pages.removeprefix(f"{format} ") for site in seen.sites} == {"pages of 64"}
    return code, min(x.numel() for store in cache.pool.arena.stores for x in store.tensors())


def large(code: str, size: int) -> list[str]:
    """Buffers of at least `size` elements, and operators that gather."""
    shapes = re.findall(r"empty_strided_\w+\(\(([\d, ]+)\)", code)
    assert shapes and "call(" in code
    found = [shape for shape in shapes if math.prod(int(d) for d in shape.split(",") if d.strip()) >= size]
    return found + re.findall(r"flashmla\.pool_view", code)


@pytest.mark.parametrize("name", NAMES)
def test_no_pages_are_copied_or_gathered(name: str) -> None:
    assert large(*decode_code(name, "plain", BACKEND)) == []


@pytest.mark.parametrize("format", ["int4", "k6v4"])
def test_nor_are_quantised_ones(format: str) -> None:
    assert large(*decode_code("llama", format, BACKEND)) == []


@pytest.mark.parametrize("format", ["plain", "k6v4"])
def test_nor_are_bounds(format: str) -> None:
    """pool_bound reads the old bounds of a page and writes the new ones in place: of the tensors they are the smallest."""
    assert large(*decode_code("llama", format, BACKEND, bounds=True)) == []


def test_the_check_sees_a_gather() -> None:
    assert large(*decode_code("llama", "plain", "inductor")) != []
