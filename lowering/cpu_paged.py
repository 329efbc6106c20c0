"""flashmla::attend_paged on the CPU: flashmla::attend, whose keys and values are gathered over the hull of the rows at work

    k[b, h, j, :]  =  pages_k[pages[b, j // PAGE], h, j % PAGE, :]        times its scale, where the pages are quantised
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..ir import AttentionSpec
from ..ops import output_like
from ..pool import formats
from ..sparsity import EXACTLY
from . import cpu
from .checks_paged import check_paged_operands
from .cpu_plan import plan_of
from .held import Held
from .select import chooses
from .sparse import cpu_bounded
from .torch_index import box


@dataclass(frozen=True)
class InPages(Held):
    """A gathered tensor [B, H, N * PAGE, D], as far as `cpu` asks of one: its shape, and its rows from a to b.

    `hull`: the first key that some query of each row of the batch sees, and one past the last, [B or 1] each. Rows of a batch
    are read over what all of them together see: where one sees nothing its pages hold anything, or are not there.
    """

    hull: tuple[Tensor, Tensor]
    dtype: torch.dtype

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        """Rows [start, start + length), copied: [B, H, length, D]; 0 outside of the hull."""
        assert dim == 2
        page = self.store.shape[2]
        first, last = start // page, -(-(start + length) // page)
        at = self.pages[:, first:last].long()
        x = self.store[at]                                                                      # [B, n, H, PAGE, D]
        if self.scales is not None:
            x = formats.dequantize(x, self.scales[at], self.format, self.dtype)
        j = torch.arange(start, start + length)
        seen = (self.hull[0][:, None] <= j) & (j < self.hull[1][:, None])                       # [B, length]
        rows = x.transpose(1, 2).flatten(2, 3).narrow(2, start - first * page, length)
        return torch.where(seen[:, None, :, None], rows, 0)

    def __getitem__(self, index: Any) -> Tensor:
        """[:, :, start:stop], or [b, h, keys] of keys [N], all of which are there."""
        if isinstance(index[0], int):
            return self._rows(*index)
        start, stop, _ = index[2].indices(self.shape[2])
        return self.narrow(2, start, max(stop - start, 0))

    def _rows(self, b: int, h: int, keys: Tensor) -> Tensor:
        """[N, D]"""
        at, row = self.pages[b, keys // self.store.shape[2]].long(), keys % self.store.shape[2]
        x = self.store[at, h, row]
        return x if self.scales is None else formats.dequantize(x, self.scales[at, h, row], self.format, self.dtype)


def attend_paged(
    q: Tensor, k: Tensor, v: Tensor, k_scales: Tensor | None, v_scales: Tensor | None, pages: Tensor, format: str,
    tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], spec: str, bounds: Tensor | None = None,
) -> Tensor:
    """out [B, H, T, Dv] in the memory order of output_like. Raises OperandError where operands and spec disagree."""
    check_paged_operands(q, k, v, k_scales, v_scales, pages, format, tables, sizes, scalars, spec, bounds=bounds)
    meaning, env, kinds = AttentionSpec.parse(spec), (tables, sizes, scalars), formats.PAIRS[format]
    plain = str(replace(meaning, sparsity=EXACTLY))
    hull = hull_of_batch(q, env, plain)
    keys, values = (
        cast(Tensor, InPages(x, scales, pages, kind.name, hull, q.dtype))
        for x, scales, kind in zip((k, v), (k_scales, v_scales), kinds, strict=True)
    )
    if bounds is None or not chooses(meaning, q.shape[2]) or keys.shape[2] == 0:
        return cpu.attend_checked(q, keys, values, tables, sizes, scalars, plain)
    out, plan = output_like(q, values, meaning.heads_first), plan_of(plain, torch.promote_types(q.dtype, torch.float32))
    return cpu_bounded.attend(
        q, keys, values, Held(k, k_scales, pages, kinds[0].name), hull, bounds, plan, meaning.sparsity, env, out)


def hull_of_batch(q: Tensor, env: tuple[Any, ...], spec: str) -> tuple[Tensor, Tensor]:
    """What some query of each row of the batch may see: [B or 1], first and end."""
    plan = plan_of(spec, torch.promote_types(q.dtype, torch.float32))
    index = box(q.shape[0], q.shape[1], (0, q.shape[2]), (0, 1))[:3]
    lo, hi = (torch.as_tensor(bound(*index, None, *env)) for bound in (plan.lo, plan.hi))
    lo, hi = (x if x.dim() else x.view(1, 1, 1, 1) for x in (lo, hi))
    return lo.amin((1, 2, 3)), hi.amax((1, 2, 3))
