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
from . import gpu, tma
from .checks_latent import PAGE, check_latent_operands
from .choice import Choice, padded
from .launch import launch as start
from .machine import Machine, machine_of
from .mla import hopper_launch as hopper
from .mla.config import Shape
from .mla.config import candidates as tiles
from .mla.hopper_launch import addressable, serves
from .prefill.config import room
from .select import DTYPES

MERGED_COLUMNS = 128


@dataclass(frozen=True)
class Latents:
    """q_latent [B, H, T, R], q_rope [B, H, T, P]; latent, rope [B, S, .] or, with pages [B, S / 64], [PAGES, 64, .];
    tokens [B, T, K]."""

    q_latent: Tensor
    q_rope: Tensor
    latent: Tensor
    rope: Tensor
    tokens: Tensor | None = None
    pages: Tensor | None = None

    @property
    def keys(self) -> int:
        """S."""
        return self.latent.shape[1] if self.pages is None else PAGE * self.pages.shape[1]


def attend_latent(
    q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor, tokens: Tensor | None, pages: Tensor | None,
    tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], spec: str,
) -> Tensor:
    """The op. OperandError where operands and spec disagree."""
    check_latent_operands(q_latent, q_rope, latent, rope, tokens, pages, tables, sizes, scalars, spec, DTYPES)
    meaning = AttentionSpec.parse(spec)
    given = Latents(q_latent, q_rope, latent, rope, tokens, pages)
    out = output_like(q_latent, latent, heads_first=False)
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
    facts = (*given.q_latent.shape, gpu.rounded(given.keys), given.rope.shape[2], tokens, given.pages is not None)
    return gpu.fastest(spec, options, facts, out.dtype, device, lambda choice: launch(spec, choice, given, operands, out))


def choose(spec: AttentionSpec, given: Latents, machine: Machine) -> Choice:
    """The family and configuration for these operands."""
    return candidates(spec, given, machine)[0]


def candidates(spec: AttentionSpec, given: Latents, machine: Machine) -> tuple[Choice, ...]:
    """Every configuration worth timing, the one that is taken without timing first."""
    shape = shape_of(given)
    family = "mla" if given.tokens is None else "tokens"
    fast = (
        serves(spec, shape.rank, shape.rope, given.latent.dtype, machine) and room(spec) == (128, 128)
        and addressable(given.q_latent, given.q_rope, given.latent, given.rope) and not gpu.interpreted()
    )
    plain = tiles(family, shape, spec.kv_splits, machine)
    return (*tiles(f"{family}_hopper", shape, spec.kv_splits, machine), plain[0]) if fast else plain


def shape_of(given: Latents) -> Shape:
    """What decides the configuration."""
    batch, heads, queries, rank = given.q_latent.shape
    width, itemsize = given.rope.shape[2], given.latent.itemsize
    if given.tokens is None:
        return Shape(batch, heads * queries, given.keys, rank, width, itemsize)
    return Shape(batch * queries, heads, given.tokens.shape[2], rank, width, itemsize)


def launch(spec: AttentionSpec, choice: Choice, given: Latents, operands: list[Any], out: Tensor) -> None:
    """Runs `choice` into out [B, H, T, R], of any strides; the Hopper kernel's out has a unit stride in R."""
    batch, heads, queries, rank = given.q_latent.shape
    splits, shape = choice.kv_splits, shape_of(given)
    parts, lse = out, None
    if splits > 1:
        parts = out.new_empty((splits, batch, heads, queries, rank), dtype=torch.float32)
        lse = out.new_empty((splits, batch, heads, queries), dtype=torch.float32)
    sizes = [batch, heads, queries, given.keys, *([] if given.tokens is None else [shape.keys]), splits]
    kernel = getattr(gpu.kernel(spec, choice.family), choice.family)
    grid = (splits * -(-shape.rows // choice.block_m) * shape.items,)
    arguments = (*_operands(choice, given), parts, out.stride(), lse, *sizes, *operands)
    fixed = constants(choice, rank, shape.rope, given.pages is not None, gpu.upcast(given.latent.dtype))
    with torch.cuda.device_of(out):
        if choice.family in hopper.FAMILIES:  # a descriptor is more than `start` knows to tell apart
            kernel[grid](*arguments, **fixed, num_warps=choice.warps, maxnreg=tma.REGISTERS)
        else:
            start(kernel, grid, arguments, fixed, choice.warps, choice.stages, out.device.index)
        if lse is not None:
            _merge(parts, lse, out)


def _operands(choice: Choice, given: Latents) -> list[Any]:
    """The arguments of a kernel before its output."""
    queries = _with_strides(given.q_latent, given.q_rope)
    pages = _with_strides(given.pages) if given.pages is not None else [None, (0, 0)]
    if choice.family == "mla_hopper":
        wanted = hopper.tiles(given.q_latent.shape[3], given.rope.shape[2], choice.block_n)
        latents = [tma.describe(getattr(given, name), *tile) for name, tile in wanted.items()]
    else:
        latents = _with_strides(given.latent, given.rope, *([] if given.tokens is None else [given.tokens]))
    return [*queries, *latents, *pages]


def _merge(parts: Tensor, lse: Tensor, out: Tensor) -> None:
    from .mla.merge import merge

    splits, batch, heads, queries, rank = parts.shape
    rows, block = batch * heads * queries, min(MERGED_COLUMNS, padded(rank))
    start(merge, (rows * -(-rank // block),), (parts, lse, out, out.stride(), rows, heads, queries, splits),
          {"R": rank, "BLOCK_R": block}, 4, 3, out.device.index)


def _with_strides(*tensors: Tensor) -> list[Any]:
    return [argument for tensor in tensors for argument in (tensor, tensor.stride())]


def constants(choice: Choice, rank: int, width: int, paged: bool, upcast: bool = False) -> dict[str, Any]:
    """The constexpr arguments of a kernel."""
    in_parts = choice.kv_splits > 1
    if choice.family in hopper.FAMILIES:
        return hopper.constants(rank, width, choice.block_n, choice.stages, paged, in_parts)
    return {
        "R": rank, "P": width, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n, "BLOCK_R": padded(rank),
        "BLOCK_P": padded(width), "STAGES": choice.stages, "IN_PAGES": paged, "IN_PARTS": in_parts,
        "UPCAST": upcast,
    }
