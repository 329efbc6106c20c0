"""Inputs of any size from a seed, and the check that every spelling goes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from tests.harness import Float64, assert_within_twice, compiled, root_mean_square, watching
from tests.spellings.spelling import Inputs


def inputs(
    batch: int = 2, queries: int = 7, keys: int = 7, heads: int = 4, kv_heads: int = 2, width: int = 8,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> Inputs:
    """Normal q, k, v; two or three documents a row; the lengths of the rows differ."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    numbers = torch.randint(0, 2, (batch, keys), generator=generator).cumsum(-1)
    lengths = torch.randint(1, keys + 1, (batch,), generator=generator)
    return Inputs(
        normal(batch, queries, heads * width), normal(batch, keys, kv_heads * width), normal(batch, keys, kv_heads * width),
        slopes=0.5 ** torch.arange(1, heads + 1), sinks=normal(heads), bias=normal(7, heads),
        lengths=lengths, documents=numbers, heads=heads, kv_heads=kv_heads,
    ).to(dtype)


def check(program: Callable[[Inputs], Tensor], *draws: Inputs) -> None:
    """Value within twice eager's error from float64 over all draws; one attention seen, and fused.

    The draws have one shape: of a few outputs alone, eager's largest error says little of the formula's, so that of several
    draws the root mean square is compared.
    """
    with watching() as seen:
        forward = compiled(program)
        found = [forward(given) for given in draws]
        eager = [program(given) for given in draws]
        with Float64():
            truth = [program(given.to(torch.float64)) for given in draws]
    if len(draws) == 1:
        assert_within_twice(found, eager, truth)
    else:
        assert root_mean_square(found, truth) <= 2 * root_mean_square(eager, truth)
    assert found[0].dtype == eager[0].dtype
    seen.assert_each_graph(1, Counter())
