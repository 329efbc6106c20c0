"""The pages that each KV head of each sequence attends in a step, chosen by their bounds, before it does. Nothing is read back.

What `flashmla::attend_paged` does of the policy `pages=share`: `bounded` lists the pages, and the decode kernel, whose `chosen`
functions walk a list, takes that in the place of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...sparsity import Sparsity
from ..choice import padded
from ..counters import counters
from ..decode.config import power
from ..held import Held, Layout
from ..launch import launch
from ..machine import Machine, machine_of

CHUNK = 64
"""Pages of a program: at 128k and one sequence of 8 KV heads two programs a processor."""
ROWS, WARPS = 16, 4
WHOLE = 65536


@dataclass(frozen=True)
class Listed(Held):
    """Pages of which each KV head attends those of a list: listed [B, G, N] int64, page << 32 | number."""

    listed: Tensor

    @property
    def layout(self) -> Layout:
        return replace(super().layout, chosen=True)

    def table(self) -> tuple[Tensor, tuple[int, ...]]:
        return self.listed, self.listed.stride()

    def arguments(self) -> tuple[Any, tuple[int, ...]]:
        """As `chosen.py` takes it."""
        (store, scales, _), strides = super().arguments()
        own = self.listed.stride()
        return (store, scales, self.listed), (*strides[:8], own[0], 1, len(store), own[1])


def part_of(policy: Sparsity) -> int:
    """Of 65536, the share of the pages: whole numbers, so that every kernel counts alike."""
    return max(1, round(policy.value * WHOLE))


def kept(pages: int, queries: int, page: int, policy: Sparsity) -> int:
    """How many of the pages of a sequence are kept; `kept.py` has it for kernels."""
    return min(pages, max(-(-pages * part_of(policy) // WHOLE), 2 + -(-queries // page)))


def listed(load: Callable[[Layout], ModuleType], group: int, q: Tensor, bounds: Tensor, pages: Tensor, page: int,
           given: list[Any], upcast: bool) -> Tensor:
    """The list [B, G, N] int64. load: the module of `bounded` for pages of such a layout; given: its operands."""
    batch, heads, queries, head_dim = q.shape
    columns, items = pages.shape[1], batch * (heads // group)
    fixed = constants(group, queries, head_dim, columns, upcast, q.is_cuda and begins_early(machine_of(q.device)))
    scores = q.new_empty(items * fixed["BLOCK_C"], dtype=torch.float32)
    found = q.new_empty(batch, heads // group, columns, dtype=torch.int64)
    arguments = (q, q.stride(), bounds, pages, pages.stride(), scores, found, counters(q.device, items), heads, queries,
                 columns * page, columns, len(bounds), *given)
    module = load(Layout(page=page, chosen=True))
    launch(module.bounded, (items * -(-columns // CHUNK),), arguments, fixed, WARPS, 1, q.device.index)
    return found


def begins_early(machine: Machine) -> bool:
    """Whether a kernel may begin before the one before it has ended."""
    return machine.backend == "cuda" and machine.capability >= (9, 0)


def constants(group: int, queries: int, head_dim: int, columns: int, upcast: bool, early: bool) -> dict[str, Any]:
    """The constexpr arguments of `bounded`."""
    return {"D": head_dim, "GROUP": group, "BLOCK_M": ROWS, "BLOCK_T": power(queries), "BLOCK_D": padded(head_dim),
            "CHUNK": CHUNK, "BLOCK_C": max(CHUNK, power(columns)), "UPCAST": upcast, "EARLY": early}

