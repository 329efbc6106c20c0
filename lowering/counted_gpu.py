"""flashmla::attend on a GPU: `gpu.attend`, and an account of it where the site keeps one

Then the plain kernels run, which note the steps of their tiles, and `mass` measures what those left out. Nothing is read back.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ir import AttentionSpec
from ..ledger import Call
from ..ops import output_like
from ..sparsity import EXACTLY
from . import counted, gpu, printed
from .checks import check_operands
from .choice import Choice, padded
from .decode import config as decode
from .launch import launch
from .machine import machine_of
from .prefill import config as prefill
from .select import DTYPES, choose
from .sparse.config import of_few_queries


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str
) -> Tensor:
    """The op. Shapes: see AttentionSpec. OperandError where operands and spec disagree."""
    meaning = AttentionSpec.parse(spec)
    if not meaning.site:
        return gpu.attend(q, k, v, tables, sizes, scalars, spec)
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        return gpu.attend(q, k, v, tables, sizes, scalars, str(replace(meaning, site="")))
    check_operands(q, k, v, tables, sizes, scalars, spec, DTYPES)
    return counted.attend(partial(_counted, q, k, v, (tables, sizes, scalars)), meaning)


def _counted(q: Tensor, k: Tensor, v: Tensor, env: tuple[Any, ...], spec: AttentionSpec) -> tuple[Tensor, Call]:
    out = output_like(q, v, spec.heads_first)
    choice = plain_choice(spec, q, k, v)
    call = new_call(choice, spec, q, k, v)
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_(), call
    run(choice, spec, q, k, v, env, out, call)
    return out, call


def plain_choice(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Choice:
    """Of the kernels that count."""
    sizes = (*q.shape[:3], k.shape[2], q.shape[3], v.shape[3])
    choice = choose(replace(spec, site=""), *sizes, q.dtype, machine_of(q.device))
    if choice.family == "decode_hopper":
        shape = decode.Shape(q.shape[0], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], q.itemsize)
        return decode.configure(spec, shape, False, machine_of(q.device))
    if choice.family == "hopper":
        return prefill.configure(q.shape[3], v.shape[3], q.itemsize, prefill.room(spec), machine_of(q.device))
    return choice


def new_call(choice: Choice, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Of an attention of which nothing has been computed."""
    batch, heads, queries, head_dim = q.shape
    packed = spec.group if choice.family == "decode" else 1
    rows, columns = -(-packed * queries // choice.block_m), -(-k.shape[2] // choice.block_n) + 1
    steps = q.new_zeros(batch, heads // packed, rows, columns, dtype=torch.uint8)
    dropped = q.new_zeros(batch, heads, queries, dtype=torch.float32)
    tile = (min(queries, choice.block_m), choice.block_n)
    return Call(steps, dropped, tile, (head_dim, v.shape[3]), k.itemsize, reads_v=choice.family == "prefill")


def run(choice: Choice, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, env: tuple[Any, ...], out: Tensor,
        call: Call) -> None:
    """Writes out, and the steps and dropped of `call`."""
    spec = of_few_queries(spec) if choice.family == "decode" else spec
    plain = replace(spec, sparsity=EXACTLY, site="")
    given = gpu.operands(spec, *map(list, env))
    _, slots, rows, columns = call.steps.shape
    packed = q.shape[1] // slots
    account = [call.steps, slots, rows, columns, packed, q.shape[2]] if spec.sparsity != EXACTLY else []
    gpu.launch(spec, choice, q, k, v, [*given, *account], out)
    align = 1 if choice.family == "decode" else choice.block_n
    arguments = (q, q.stride(), k, k.stride(), call.steps, call.dropped, q.shape[1], q.shape[2], k.shape[2], align, columns,
                 *given[:len(printed.operands(plain))])
    fixed = constants(spec, choice, q.shape[3], packed, gpu.upcast(q.dtype))
    with torch.cuda.device_of(q):
        launch(gpu.kernel(plain, "mass").mass, (call.steps.shape[0] * slots * rows,), arguments, fixed, choice.warps, 1,
               q.device.index)


def constants(spec: AttentionSpec, choice: Choice, head_dim: int, packed: int, upcast: bool) -> dict[str, Any]:
    """The constexpr arguments of `mass`."""
    return {
        "D": head_dim, "GROUP": packed, "KV_GROUP": spec.group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n,
        "BLOCK_D": padded(head_dim), "ALL": spec.sparsity == EXACTLY, "UPCAST": upcast,
    }
