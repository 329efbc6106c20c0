"""Choice  =>  the launch of the decode kernel. Nothing is read back to the host, nothing is set to zero."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..choice import Choice
from ..held import Held
from ..held import arguments as arguments_of
from ..launch import launch as start
from .counters import counters


def launch(module: ModuleType, group: int, choice: Choice, q: Tensor, k: Tensor | Held, v: Tensor | Held, given: list[Any],
           blocks: dict[str, Any], out: Tensor) -> None:
    """q [B, H, T, D], k [B, H/group, S, D], v [B, H/group, S, DV] -> out [B, H, T, DV]. `given`: the spec's operands."""
    batch, heads, queries, _ = q.shape
    items = -(-group * queries // choice.block_m) * batch * (heads // group)
    programs = choice.programs or choice.kv_splits * items
    slots = 2 * programs if choice.programs else programs if choice.kv_splits > 1 else 0
    workspace = q.new_empty(max(1, slots * choice.block_m * (v.shape[3] + 1)), dtype=torch.float32)
    arguments = (q, q.stride(), *arguments_of(k), *arguments_of(v), out, out.stride(), workspace, counters(q.device, items),
                 batch, heads, queries, k.shape[2], choice.kv_splits, *given)
    start(module.decode, (programs,), arguments, {**blocks, **constants(choice)}, choice.warps, choice.stages, q.device.index)


def constants(choice: Choice) -> dict[str, Any]:
    """The constexpr arguments that prefill has not."""
    return {"BALANCED": choice.programs > 0, "BLOCK_B": choice.block_b, "BLOCK_T": choice.block_t, "BLOCK_R": choice.block_r}
