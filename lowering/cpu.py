"""flashmla::* on the CPU, in ATen: reads the hull and nothing else

    attend     rows in blocks, each over its own hull: SDPA's kernel where score = scale*s + bias, else the softmax written out
    summarize  hull and tile classes of a bool mask, for whoever needs them later
    sdpa       F.scaled_dot_product_attention, in the memory order its fake promises
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OperandError
from ..ir import TILE, AttentionSpec
from ..ops import output_like, sdpa_output_like
from ..sparsity import EXACTLY
from .checks import check_operands
from .cpu_plan import Plan, plan_of
from .cpu_rows import FEW_ROWS, Hull, Rows, exact, fused, hull_of, merge, sink_of
from .sparse import cpu as sparse
from .sparse.config import of_few_queries
from .torch_index import box

BLOCK_ROWS = 256
"""Query rows that share one hull. A multiple of TILE."""

LOGITS = 1 << 21
"""Elements of a block of logits that is written to memory: 8 MiB of float32, about a last-level cache."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str
) -> Tensor:
    """out [B, H, T, Dv] in the memory order of output_like. Raises OperandError where operands and spec disagree."""
    check_operands(q, k, v, tables, sizes, scalars, spec)
    return attend_checked(q, k, v, tables, sizes, scalars, spec)


def attend_checked(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], spec: str
) -> Tensor:
    """`attend`, its operands known to be right."""
    out = output_like(q, v, AttentionSpec.parse(spec).heads_first)
    return attend_into(q, k, v, tables, sizes, scalars, spec, out)


def attend_into(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], spec: str,
    out: Tensor,
) -> Tensor:
    """The same into out [B, H, T, Dv], of any strides."""
    plan = plan_of(spec, torch.promote_types(q.dtype, torch.float32))
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_()
    env = (tables, sizes, scalars)
    if plan.spec.sparsity != EXACTLY:
        if plan.spec.sparsity.selects and q.shape[2] <= FEW_ROWS:
            return attend_into(q, k, v, tables, sizes, scalars, str(of_few_queries(plan.spec)), out)
        return sparse.attend(q, k, v, plan, env, out)
    scale = _fused_scale(q, v, plan, env)
    if scale is not None and _is_causal(q, plan, env):
        seen = min(q.shape[2], k.shape[2])
        return out.copy_(F.scaled_dot_product_attention(
            q, k[:, :, :seen], v[:, :, :seen], is_causal=True, scale=scale, enable_gqa=plan.spec.group > 1))
    step = _block_rows(q, k, plan, scale)
    if step >= q.shape[2]:
        _attend_rows(Rows(plan, q, k, v, 0, env), scale, out)
        return out
    for first in range(0, q.shape[2], step):
        block = Rows(plan, q[:, :, first:first + step], k, v, first, env)
        _attend_rows(block, scale, out[:, :, first:first + step])
    return out


def _fused_scale(q: Tensor, v: Tensor, plan: Plan, env: tuple) -> float | None:
    """The scale to give to SDPA; None if the softmax has to be written out."""
    if plan.scale is None or plan.spec.kv_splits > 1 or q.shape[3] != v.shape[3]:
        return None
    if q.shape[2] <= FEW_ROWS and (plan.sink is not None or q.dtype is torch.float16):
        return None  # a sink would copy the keys; float16 products are emulated: float32 is quicker
    scale = float(plan.scale(None, None, None, None, *env))
    return scale if scale > 0 else None


def _is_causal(q: Tensor, plan: Plan, env: tuple) -> bool:
    """Exactly `j <= i`, with nothing else to ask."""
    if plan.diagonal is None or plan.bias is not None or plan.sink is not None or q.shape[2] == 1:
        return False
    if plan.diagonal(None, None, None, None, *env) != 1:
        return False
    lo = plan.lo(*box(q.shape[0], q.shape[1], (0, q.shape[2]), (0, 1))[:3], None, *env)
    return bool((lo <= 0).all()) if isinstance(lo, Tensor) else lo <= 0


def _block_rows(q: Tensor, k: Tensor, plan: Plan, scale: float | None) -> int:
    if scale is None:
        return max(1, min(BLOCK_ROWS, LOGITS // (q.shape[0] * q.shape[1] * k.shape[2])))
    return q.shape[2] if plan.uniform else BLOCK_ROWS


def _attend_rows(rows: Rows, scale: float | None, out: Tensor) -> None:
    """Writes out [B, H, R, Dv] for one block of rows."""
    hull = hull_of(rows)
    if hull is None:
        out.zero_()
    elif scale is not None:
        fused(rows, hull, scale, out)
    else:
        parts = [exact(rows, hull, start, stop) for start, stop in _split(hull, rows.plan.spec.kv_splits)]
        out.copy_(merge(parts, sink_of(rows)))


def _split(hull: Hull, kv_splits: int) -> list[tuple[int, int]]:
    """The hull in `kv_splits` parts of equal length, the last ones shorter or missing."""
    length = -(-(hull.stop - hull.start) // max(kv_splits, 1))
    return [(start, min(start + length, hull.stop)) for start in range(hull.start, hull.stop, length)]


def summarize(mask: Tensor) -> tuple[Tensor, Tensor]:
    """mask [B, H, T, S] bool -> hull [B, H, T, 2] int32, (0, 0) in a row without any; classes [B, H, T/64, S/64] int8."""
    if mask.dtype is not torch.bool or mask.dim() != 4:
        raise OperandError(f"summarize: the mask is bool [B, H, T, S]; found {mask.dtype} {list(mask.shape)}")
    *lead, length, keys = mask.shape
    at = torch.arange(keys, dtype=torch.int32)
    seen = mask.any(-1)
    hull = mask.new_zeros(*lead, length, 2, dtype=torch.int32)
    if mask.numel():
        hull[..., 0] = torch.where(mask, at, keys).amin(-1).where(seen, 0)
        hull[..., 1] = torch.where(mask, at + 1, 0).amax(-1)
    bits = mask.view(torch.int8)
    some, every = _by_tiles(bits, torch.amax, 0), _by_tiles(bits, torch.amin, 1)
    return hull, some + every


def _by_tiles(bits: Tensor, extreme: Callable[..., Tensor], beyond: int) -> Tensor:
    """int8 [..., T, S] -> [..., T/TILE, S/TILE]; positions past the end count as `beyond`. Keys first: one pass over memory."""
    bits = F.pad(bits, (0, -bits.shape[-1] % TILE), value=beyond).unflatten(-1, (-1, TILE))
    bits = extreme(bits, -1)
    return extreme(F.pad(bits, (0, 0, 0, -bits.shape[-2] % TILE), value=beyond).unflatten(-2, (-1, TILE)), -2)


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool, scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """F.scaled_dot_product_attention, in the memory order of sdpa_output_like."""
    found = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    out = sdpa_output_like(q, k, v, enable_gqa)
    return found if found.stride() == out.stride() else out.copy_(found)
