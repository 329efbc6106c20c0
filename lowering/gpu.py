"""flashmla::attend and flashmla::summarize on a GPU: choose, generate, launch. Nothing is read back to the host.

The same code runs on CPU tensors under TRITON_INTERPRET=1. Triton is imported at the first call.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..ir import TILE, AttentionSpec
from ..ops import output_like
from . import codegen, modules
from .checks import check_operands
from .choice import Choice, padded
from .hopper import launch as hopper
from .machine import machine_of
from .prefill import config as prefill
from .select import DTYPES, choose, is_dense


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str
) -> Tensor:
    """The op. Shapes: see AttentionSpec. OperandError where operands and spec disagree."""
    check_operands(q, k, v, tables, sizes, scalars, spec, DTYPES)
    meaning = AttentionSpec.parse(spec)
    out = output_like(q, v, meaning.heads_first)
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_()
    batch, heads, queries, head_dim = q.shape
    choice = choose(meaning, batch, heads, queries, k.shape[2], head_dim, v.shape[3], q.dtype, machine_of(q.device))
    launch(meaning, choice, q, k, v, operands(meaning, tables, sizes, scalars), out)
    return out


def launch(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> None:
    """Runs `choice` into out [B, H, T, DV], of any strides."""
    with torch.cuda.device_of(q):
        if choice.family == "hopper":
            return _hopper(spec, choice, q, k, v, given, out)
        if choice.family == "prefill":
            return _prefill(spec, choice, q, k, v, given, out)
        return _decode(spec, choice, q, k, v, given, out)


def _hopper(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> None:
    """By TMA, or by the plain kernel where TMA cannot address a tensor."""
    if not hopper.describable(q, k, v, out):
        plain = prefill.configure(q.shape[3], v.shape[3], q.itemsize, is_dense(spec), machine_of(q.device))
        return _prefill(spec, plain, q, k, v, given, out)
    return hopper.launch(kernel(spec, "hopper"), spec.group, choice, q, k, v, given, out)


def _prefill(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> None:
    batch, heads, queries, _ = q.shape
    grid = (batch * heads * -(-queries // choice.block_m),)
    kernel(spec, "prefill").prefill[grid](
        q, q.stride(), k, k.stride(), v, v.stride(), out, out.stride(), heads, queries, k.shape[2], *given,
        **blocks(spec, choice, q, v), num_warps=choice.warps, num_stages=choice.stages,
    )


def _decode(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> None:
    batch, heads, queries, _ = q.shape
    kv_heads, splits, value_dim = heads // spec.group, choice.kv_splits, v.shape[3]
    grid = (splits * -(-spec.group * queries // choice.block_m) * batch * kv_heads,)
    parts = q.new_empty((splits, batch, heads, queries, value_dim), dtype=torch.float32) if splits > 1 else out
    lse = q.new_empty((splits, batch, heads, queries) if splits > 1 else 1, dtype=torch.float32)
    kernel(spec, "decode").decode[grid](
        q, q.stride(), k, k.stride(), v, v.stride(), parts, out.stride(), lse, batch, heads, queries, k.shape[2], splits,
        *given, **blocks(spec, choice, q, v), IN_PARTS=splits > 1, num_warps=choice.warps, num_stages=choice.stages,
    )
    if splits > 1:
        from .decode.merge import merge

        rows = batch * heads * queries
        merge[(rows,)](parts, lse, out, out.stride(), rows, heads, queries, splits, DV=value_dim,
                       BLOCK_DV=padded(value_dim), num_warps=2)


def summarize(mask: Tensor) -> tuple[Tensor, Tensor]:
    """mask [B?, H?, T?, S] bool -> hull [B?, H?, T?, 2] int32, classes [B?, H?, T?/TILE, S/TILE] int8."""
    *lead, rows, columns = mask.shape
    hull = mask.new_empty([*lead, rows, 2], dtype=torch.int32)
    classes = mask.new_empty([*lead, -(-rows // TILE), -(-columns // TILE)], dtype=torch.int8)
    if mask.numel() == 0:
        return hull.zero_(), classes.zero_()
    from .summary.kernel import summarize as kernel_

    four = mask[(None,) * (4 - mask.dim())]
    block_rows = min(TILE, 1 << (rows - 1).bit_length())
    with torch.cuda.device_of(mask):
        kernel_[(four.shape[0] * four.shape[1] * classes.shape[-2],)](
            four, four.stride(), hull, classes, four.shape[1], rows, columns, R=block_rows, W=max(2, 64 // block_rows),
            num_warps=4,
        )
    return hull, classes


# ------------------------------------------------------------------------------------------------------------ arguments


def kernel(spec: AttentionSpec, family: str) -> ModuleType:
    """The imported module of the spec's kernel."""
    return modules.load(codegen.source(spec, family), family)


def blocks(spec: AttentionSpec, choice: Choice, q: Tensor, v: Tensor) -> dict[str, Any]:
    """The constexpr arguments that both kernels have."""
    head_dim, value_dim = q.shape[3], v.shape[3]
    return {
        "D": head_dim, "DV": value_dim, "GROUP": spec.group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n,
        "BLOCK_D": padded(head_dim), "BLOCK_DV": padded(value_dim), "STAGES": choice.stages,
        "UPCAST": q.dtype == torch.bfloat16 and interpreted(),
    }


def operands(spec: AttentionSpec, tables: list[Tensor], sizes: list[int], scalars: list[float]) -> list[Any]:
    """Values for `codegen.operands(spec)`."""
    values: dict[str, Any] = {f"n{at}": size for at, size in enumerate(sizes)}
    values.update((f"x{at}", scalar) for at, scalar in enumerate(scalars))
    for name in spec.tables:
        tensor = tables[int(name[1:])]
        values[name] = tensor
        values.update((f"{name}_length{dim}", length) for dim, length in enumerate(tensor.shape))
        values.update((f"{name}_stride{dim}", stride) for dim, stride in enumerate(tensor.stride()))
    return [values[name] for name in codegen.operands(spec)]


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
