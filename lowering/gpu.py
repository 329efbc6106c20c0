"""flashmla::attend and flashmla::summarize on a GPU: choose, generate, launch. Nothing is read back to the host.

The same code runs on CPU tensors under TRITON_INTERPRET=1. Triton is imported at the first call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..ir import TILE, AttentionSpec
from ..ops import output_like
from ..sparsity import EXACTLY
from . import codegen, modules, tma, tune
from .checks import check_operands
from .choice import Choice, padded, padded_value
from .decode import launch as decode
from .hopper import launch as hopper
from .launch import launch as start
from .machine import machine_of
from .prefill import config as prefill
from .select import DTYPES, candidates, choose
from .sparse import listing
from .sparse.config import of_few_queries


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str
) -> Tensor:
    """The op. Shapes: see AttentionSpec. OperandError where operands and spec disagree."""
    check_operands(q, k, v, tables, sizes, scalars, spec, DTYPES)
    meaning = AttentionSpec.parse(spec)
    out = output_like(q, v, meaning.heads_first)
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_()
    given = operands(meaning, tables, sizes, scalars)
    launch(meaning, _choice(meaning, q, k, v, given, out), q, k, v, given, out)
    return out


def _choice(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> Choice:
    """What select takes; with `autotune` what is fastest for these operands, into an `out` that is written anew."""
    shape = (*q.shape[:3], k.shape[2], q.shape[3], v.shape[3])
    if not spec.autotune or interpreted():
        return choose(spec, *shape, q.dtype, machine_of(q.device))
    options = candidates(spec, *shape, q.dtype, machine_of(q.device))
    texts = [codegen.source(spec, family) for family in dict.fromkeys(choice.family for choice in options)]
    rounded = (*shape[:3], 1 << (shape[3] - 1).bit_length(), *shape[4:])
    key = tune.key_of(spec, rounded, q.dtype, *tune_facts(q.device), *texts)
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        return tune.known(key) or options[0]
    return tune.best(key, options, lambda choice: milliseconds(lambda: launch(spec, choice, q, k, v, given, out)))


def milliseconds(call: Callable[[], None]) -> float:
    """Median of a call on the GPU, its second-level cache cleared before each."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=5, rep=25, return_mode="median"))


@lru_cache(maxsize=64)
def tune_facts(device: torch.device) -> tuple[str, ...]:
    """The GPU, and the versions that make its code."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name, torch.__version__, triton.__version__


def launch(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> None:
    """Runs `choice` into out [B, H, T, DV], of any strides."""
    if choice.family == "decode" and spec.sparsity.selects:
        spec = of_few_queries(spec)
        given = given[:len(codegen.operands(spec))]
    with torch.cuda.device_of(q):
        if choice.family == "hopper":
            _hopper(spec, choice, q, k, v, given, out)
        elif choice.family == "prefill":
            _prefill(spec, choice, q, k, v, given, out)
        else:
            constants = blocks(spec, choice, q.shape[3], v.shape[3], upcast(q.dtype))
            decode.launch(kernel(spec, "decode"), spec.group, choice, q, k, v, given, constants, out)


def _hopper(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> None:
    """By TMA, or by the plain kernel where TMA cannot address a tensor."""
    if not tma.describable(q, k, v, out):
        plain = prefill.configure(q.shape[3], v.shape[3], q.itemsize, prefill.room(spec), machine_of(q.device))
        return _prefill(spec, plain, q, k, v, given, out)
    return hopper.launch(kernel(spec, "hopper"), spec.group, choice, q, k, v, given, out)


def _prefill(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> None:
    if spec.sparsity.selects:
        plain = replace(spec, sparsity=EXACTLY, site="")
        own = given[:len(codegen.operands(plain))]
        given = [*given, *listing.listed(partial(kernel, plain), spec, choice, q, k, own, upcast(q.dtype))]
    batch, heads, queries, head_dim = q.shape
    grid = (batch * heads * -(-queries // choice.block_m),)
    arguments = (q, q.stride(), k, k.stride(), v, v.stride(), out, out.stride(), heads, queries, k.shape[2], *given)
    constants = blocks(spec, choice, head_dim, v.shape[3], upcast(q.dtype))
    start(kernel(spec, "prefill").prefill, grid, arguments, constants, choice.warps, choice.stages, q.device.index)


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
        start(kernel_, (four.shape[0] * four.shape[1] * classes.shape[-2],),
              (four, four.stride(), hull, classes, four.shape[1], rows, columns),
              {"R": block_rows, "W": max(2, 64 // block_rows)}, 4, 1, mask.device.index)
    return hull, classes


# ------------------------------------------------------------------------------------------------------------ arguments


def kernel(spec: AttentionSpec, family: str) -> ModuleType:
    """The imported module of the spec's kernel."""
    return modules.load(codegen.source(spec, family), family)


def blocks(spec: AttentionSpec, choice: Choice, head_dim: int, value_dim: int, upcast: bool = False) -> dict[str, Any]:
    """The constexpr arguments that both kernels have."""
    return {
        "D": head_dim, "DV": value_dim, "GROUP": spec.group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n,
        "BLOCK_D": padded(head_dim), "BLOCK_DV": padded_value(head_dim, value_dim), "STAGES": choice.stages,
        "UPCAST": upcast,
    }


def upcast(dtype: torch.dtype) -> bool:
    """Whether products are taken in float32: the interpreter has none in bfloat16."""
    return dtype == torch.bfloat16 and interpreted()


def operands(spec: AttentionSpec, tables: list[Tensor], sizes: list[int], scalars: list[float]) -> list[Any]:
    """Values for `codegen.operands(spec)`, but for the list of tiles."""
    values: dict[str, Any] = {f"n{at}": size for at, size in enumerate(sizes)}
    values["least"] = spec.sparsity.log2_limit
    values.update((f"x{at}", scalar) for at, scalar in enumerate(scalars))
    for name in _tables(spec):
        tensor = tables[int(name[1:])]
        values[name] = tensor
        values.update((f"{name}_length{dim}", length) for dim, length in enumerate(tensor.shape))
        values.update((f"{name}_stride{dim}", stride) for dim, stride in enumerate(tensor.stride()))
    return [values[name] for name in codegen.operands(spec) if name in values]


@lru_cache(maxsize=1024)
def _tables(spec: AttentionSpec) -> tuple[str, ...]:
    return spec.tables


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
