"""flashmla::attend_latent on a GPU: choose, generate, launch. Nothing is read back to the host.

The same code runs on CPU tensors under TRITON_INTERPRET=1. Triton is imported at the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ir import AttentionSpec
from ..ops import output_like
from . import fp8, gpu, tma
from .checks_latent import PAGE, check_latent_operands
from .choice import Choice, padded
from .launch import launch as start
from .machine import Machine, machine_of
from .mla import exchange_launch as exchange
from .mla.config import LINE_PARTS, Shape, merging
from .mla.config import candidates as tiles
from .mla.workspace import Workspace
from .mla.workspace import workspace as workspace_of
from .select import DTYPES


@dataclass(frozen=True)
class Latents:
    """q_latent [B, H, T, R], q_rope [B, H, T, P]; latent, rope [B, S, .] or, with pages [B, S / 64], [PAGES, 64, .];
    tokens [B, T, K]. Without rope, latent is packed: uint8 [.., R + R/32 + 2 P]."""

    q_latent: Tensor
    q_rope: Tensor
    latent: Tensor
    rope: Tensor | None
    tokens: Tensor | None = None
    pages: Tensor | None = None

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """latent, rope and, of packed latents, whose latent is bytes, the scales; views."""
        if self.rope is not None:
            return self.latent, self.rope, None
        found = fp8.fields(self.latent, self.q_latent.shape[3], self.q_latent.dtype)
        return found.codes, found.rope, found.scales

    @property
    def keys(self) -> int:
        """S."""
        return self.latent.shape[1] if self.pages is None else PAGE * self.pages.shape[1]


def attend_latent(
    q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor | None, tokens: Tensor | None, pages: Tensor | None,
    tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], spec: str,
) -> Tensor:
    """The op. OperandError where operands and spec disagree."""
    check_latent_operands(q_latent, q_rope, latent, rope, tokens, pages, tables, sizes, scalars, spec, DTYPES)
    meaning = AttentionSpec.parse(spec)
    given = Latents(q_latent, q_rope, latent, rope, tokens, pages)
    out = output_like(q_latent, q_latent, heads_first=False)
    if out.numel() == 0 or given.keys == 0 or (tokens is not None and tokens.shape[2] == 0):
        return out.zero_()
    operands = gpu.operands(meaning, list(tables), list(sizes), list(scalars))
    launch(meaning, _choice(meaning, given, operands, out), given, operands, out)
    return out


def _choice(spec: AttentionSpec, given: Latents, operands: list[Any], out: Tensor) -> Choice:
    """As `choose`; with `autotune` what is fastest for these operands, into an `out` that is written anew."""
    options, device = candidates(spec, given, machine_of(out.device)), out.device
    if not spec.autotune or gpu.interpreted():
        return options[0]
    tokens = None if given.tokens is None else given.tokens.shape[2]
    facts = (*given.q_latent.shape, gpu.rounded(given.keys), given.q_rope.shape[3], tokens, given.pages is not None,
             given.rope is None)
    return gpu.fastest(spec, options, facts, out.dtype, device, lambda choice: launch(spec, choice, given, operands, out))


def choose(spec: AttentionSpec, given: Latents, machine: Machine) -> Choice:
    """The family and configuration for these operands."""
    return candidates(spec, given, machine)[0]


def candidates(spec: AttentionSpec, given: Latents, machine: Machine) -> tuple[Choice, ...]:
    """Every configuration worth timing, the one that is taken without timing first."""
    q, packed = given.q_latent, given.rope is None
    latent, rope, _ = given.fields
    dense = given.latent.stride(1) == given.latent.shape[2] if packed else tma.describable(latent)
    by_tma = not gpu.interpreted() and dense and tma.describable(q, given.q_rope, rope)
    tokens = None if given.tokens is None else given.tokens.shape[2]
    sizes = (given.keys, given.q_rope.shape[3])
    return configurations(spec, tuple(q.shape), *sizes, tokens, q.dtype, machine, packed=packed, by_tma=by_tma)


def configurations(
    spec: AttentionSpec, q_latent: tuple[int, ...], keys: int, rope: int, tokens: int | None, dtype: torch.dtype,
    machine: Machine, *, packed: bool = False, by_tma: bool = True
) -> tuple[Choice, ...]:
    """For q_latent [B, H, T, R] and `keys` keys with `rope` channels, `tokens` of them a query, all of them where TMA can
    address them (by_tma). Sizes alone: what is being compiled has no addresses."""
    shape = shape_for(q_latent, keys, rope, tokens, dtype.itemsize, packed)
    family = "mla" if tokens is None else "tokens"
    plain = tiles(family, shape, spec.kv_splits, machine)
    if not by_tma or (packed and tokens is not None) or not exchange.serves(spec, shape, dtype, machine):
        return plain
    batch, heads, queries, _ = q_latent
    family = "packed" if packed else family
    family = exchange.family_of(family, heads, queries)
    return (*exchange.candidates(spec, family, (batch, heads, queries), shape, machine), plain[0])


def shape_for(q_latent: tuple[int, ...], keys: int, rope: int, tokens: int | None, itemsize: int, packed: bool) -> Shape:
    """What decides the configuration."""
    batch, heads, queries, rank = q_latent
    if tokens is None:
        return Shape(batch, heads * queries, keys, rank, rope, itemsize, packed)
    return Shape(batch * queries, heads, tokens, rank, rope, itemsize, packed)


def shape_of(given: Latents) -> Shape:
    """Of these operands."""
    tokens = None if given.tokens is None else given.tokens.shape[2]
    facts = given.q_latent.itemsize, given.rope is None
    return shape_for(tuple(given.q_latent.shape), given.keys, given.q_rope.shape[3], tokens, *facts)


def launch(spec: AttentionSpec, choice: Choice, given: Latents, operands: list[Any], out: Tensor) -> None:
    """Runs `choice` into out [B, H, T, R], of any strides; of the exchange kernels, such as TMA can write."""
    if choice.family in exchange.FAMILIES:
        _exchange(spec, choice, given, operands, out)
        return
    batch, heads, queries, rank = given.q_latent.shape
    splits, shape = choice.kv_splits, shape_of(given)
    parts, lse = out, None
    if splits > 1:
        parts = out.new_empty((splits, batch, heads, queries, rank), dtype=torch.float32)
        lse = out.new_empty((splits, batch, heads, queries), dtype=torch.float32)
    sizes = [batch, heads, queries, given.keys, *([] if given.tokens is None else [shape.keys]), splits]
    kernel = getattr(gpu.kernel(spec, choice.family), choice.family)
    grid = (splits * -(-shape.rows // choice.block_m) * shape.items,)
    latent, rope, scales = given.fields
    latents = (latent, rope, *([] if given.tokens is None else [given.tokens]))
    arguments = (*_with_strides(given.q_latent, given.q_rope, *latents), *_or_none(given.pages, 2), *_or_none(scales, 3),
                 parts, out.stride(), lse, *sizes, *operands)
    form = 0 if scales is None else fp8.conversion(machine_of(out.device))
    fixed = constants(choice, rank, shape.rope, given.pages is not None, gpu.upcast(given.q_latent.dtype), form)
    with torch.cuda.device_of(out):
        start(kernel, grid, arguments, fixed, choice.warps, choice.stages, out.device.index)
        if lse is not None:
            rows = batch * heads * queries
            _merge(Workspace(parts, lse, None), out, 1, rows, rows, splits)


def _exchange(spec: AttentionSpec, choice: Choice, given: Latents, operands: list[Any], out: Tensor) -> None:
    """The kernels whose blocks share a line of key tiles, or have one of kv_splits parts of an item."""
    batch, heads, queries, rank = given.q_latent.shape
    shape, lanes = shape_of(given), exchange.lanes(choice, *given.q_latent.shape[1:3])
    workspace = workspace_of(choice, shape.items, lanes, rank, out)
    sizes = [batch, heads, queries, given.keys]
    latent, rope, scales = given.fields
    if given.tokens is None:
        sizes += [choice.kv_splits]
    else:
        tiles = -(-shape.keys // choice.block_n)
        sizes += [shape.keys, choice.kv_splits, *exchange.shares(shape.items, tiles, max(1, choice.programs // lanes))]
    tensors = {"q_latent": given.q_latent, "q_rope": given.q_rope, "latent": latent, "rope": rope, "out": out}
    by_tma = exchange.described(choice, tensors)
    if given.tokens is not None:
        latents = _with_strides(latent, rope, given.tokens)
    else:
        words = [by_tma["latent"]] if scales is None else [latent.view(torch.int32), scales, scales.stride()]
        latents = [*words, by_tma["rope"]]
    kept: tuple[Any, ...] = (None, None, None)
    if workspace is not None:
        parts = exchange.describe(workspace.parts, *exchange.part(choice, heads, queries, rank))
        kept = (parts, workspace.lse, workspace.cuts)
    arguments = (by_tma["q_latent"], by_tma["q_rope"], *latents, *_or_none(given.pages, 2), by_tma["out"], *kept,
                 *sizes, *operands)
    fixed = exchange.constants(choice, heads, rank, shape.rope, given.pages is not None)
    kernel = getattr(gpu.kernel(spec, choice.family), choice.family)
    with torch.cuda.device_of(out):
        kernel[choice.programs or choice.kv_splits * lanes * shape.items,](
            *arguments, **fixed, num_warps=choice.warps, maxnreg=exchange.registers(choice), launch_pdl=True)
        if workspace is not None:
            splits = choice.kv_splits if workspace.cuts is None else max(LINE_PARTS, choice.programs // lanes // shape.items)
            block_h = exchange.box(choice, heads)
            rows = choice.block_m * lanes if lanes > 1 or given.tokens is not None else block_h * queries
            chosen = given.tokens is not None
            _merge(workspace, out, shape.items, choice.block_m * lanes, rows, splits, block_h, chosen)


def _or_none(x: Tensor | None, dims: int) -> list[Any]:
    return _with_strides(x) if x is not None else [None, (0,) * dims]


def _merge(workspace: Workspace, out: Tensor, items: int, rows: int, count: int, splits: int, block_h: int = 0,
           chosen: bool = False) -> None:
    """`count` rows of each item, part p of row r at p * `rows` + r; `splits`: how many parts, or how many to expect."""
    from .mla.merge import merge

    _, heads, queries, rank = out.shape
    early = block_h > 0 and not gpu.interpreted()
    block_p, warps = merging(splits, rank)
    arguments = (workspace.parts, workspace.lse, workspace.cuts, out, out.stride(), rows, count, heads, queries, splits)
    start(merge, (items * count,), arguments,
          {"R": rank, "BLOCK_R": padded(rank), "BLOCK_P": block_p, "BLOCK_H": block_h, "CHOSEN": chosen, "EARLY": early},
          warps, 3, out.device.index, **({"launch_pdl": True} if early else {}))


def _with_strides(*tensors: Tensor) -> list[Any]:
    return [argument for tensor in tensors for argument in (tensor, tensor.stride())]


def constants(choice: Choice, rank: int, width: int, paged: bool, upcast: bool = False, form: int = 0) -> dict[str, Any]:
    """The constexpr arguments of a plain kernel; form: as `fp8.conversion`, 0 of latents that are not packed."""
    return {
        "R": rank, "P": width, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n, "BLOCK_R": padded(rank),
        "BLOCK_P": padded(width), "STAGES": choice.stages, "IN_PAGES": paged, "IN_PARTS": choice.kv_splits > 1,
        "UPCAST": upcast, "FP8": form,
    }
