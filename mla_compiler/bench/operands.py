"""Random operands of an attention, in as many copies as no cache holds at once; a sample of its answer in float64.

    p = softmax(scale q kᵀ where visible)      out = p v
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .attentions import DECODE, WIDTH, Attention

CACHE_BYTES = 3 * 50 * 2**20
"""Copies are rotated until they take this: three times the 50 MB of an H100's L2."""
PAIRS, ROWS = 16, 32
"""(sequence, KV head) pairs sampled, and query rows in each, beside the first and the last."""


@dataclass(frozen=True)
class Operands:
    """q [B, H, T, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], the tables of the spec. Memory as models have it:

    [B, T, H, D] from a projection; a cache is [B, Hkv, S, D].
    """

    case: Attention
    q: Tensor
    k: Tensor
    v: Tensor
    tables: tuple[Tensor, ...]

    @classmethod
    def random(cls, case: Attention, device: str, dtype: torch.dtype, seed: int = 0) -> Operands:
        torch.manual_seed(seed)

        def tensor(heads: int, length: int, dim: int, cache: bool = False) -> Tensor:
            shape = (case.batch, heads, length, dim) if cache else (case.batch, length, heads, dim)
            made = torch.randn(shape, device=device, dtype=dtype)
            return made if cache else made.transpose(1, 2)

        cache = case.group == DECODE
        q = tensor(case.heads, case.queries, case.head_dim)
        k, v = (tensor(case.kv_heads, case.keys, dim, cache) for dim in (case.head_dim, case.value_dim))
        if case.every > 1:
            _matter(q, k, case.every)
        return cls(case, q, k, v, _tables(case, device))


def _matter(q: Tensor, k: Tensor, every: int) -> None:
    """Written into the first channel: logits of one tile of WIDTH keys in `every`, the first among them, are 31 higher."""
    reach = 16.0
    q[..., 0] = reach
    tiles = torch.arange(k.shape[2], device=k.device) // WIDTH
    k[..., 0] = torch.where(tiles % every == 0, 0.5, -0.5) * 31 * k.shape[3]**0.5 / reach


def _tables(case: Attention, device: str) -> tuple[Tensor, ...]:
    if case.group == DECODE:
        return (torch.tensor([length - case.queries for length in case.lengths], device=device),)
    if case.documents > 1:
        return ((torch.arange(case.keys, device=device) // case.document)[None],)
    return ()


def copies(case: Attention, device: str, dtype: torch.dtype) -> list[Operands]:
    """The first is what is checked; on a CPU, and of a toy, it is the only one."""
    number = 1 if device == "cpu" or case.toy else rotation(case, dtype)
    return [Operands.random(case, device, dtype, seed) for seed in range(number)]


def rotation(case: Attention, dtype: torch.dtype) -> int:
    """How many copies no cache holds at once."""
    read = case.live_bytes(dtype) + case.batch * case.heads * case.queries * case.head_dim * dtype.itemsize
    return math.ceil(CACHE_BYTES / read)


@dataclass(frozen=True)
class Sample:
    """Rows of the answer in float64: (sequence, KV head, queries, exact [group, rows, Dv]), and how far the formula, in the
    working dtype with its softmax in float32, is from them (root mean square)."""

    rows: list[tuple[int, int, Tensor, Tensor]]
    formula_error: float

    @classmethod
    def of(cls, given: Operands, seed: int = 0) -> Sample:
        case, rows, squares = given.case, [], []
        random = torch.Generator().manual_seed(seed)
        last = case.batch * case.kv_heads - 1
        chosen = {0, last, *torch.randint(last + 1, (PAIRS,), generator=random).tolist()}
        for b, h in sorted(divmod(at, case.kv_heads) for at in chosen):
            at = torch.randint(case.queries, (ROWS,), generator=random)
            i = torch.cat([at, torch.tensor([0, case.queries - 1])]).unique().to(given.q.device)
            exact = formula(given, b, h, i, torch.float64)
            rows.append((b, h, i, exact))
            squares.append((formula(given, b, h, i, given.q.dtype) - exact).square().mean())
        return cls(rows, torch.stack(squares).mean().sqrt().item())

    def error(self, out: Tensor) -> float:
        """Root mean square distance of out [B, H, T, Dv] from the exact rows, over the formula's. NaN stays NaN."""
        squares = []
        for b, h, i, exact in self.rows:
            group = exact.shape[0]
            squares.append((out[b, h * group:(h + 1) * group][:, i].double() - exact).square().mean())
        error = torch.stack(squares).mean().sqrt().item()
        return error / self.formula_error if self.formula_error else 0.0 if error == 0 else math.inf


def formula(given: Operands, b: int, h: int, i: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows i of the query heads of KV head h, sequence b: products in `dtype`, softmax in at least float32 -> float64."""
    case, group = given.case, given.case.sharing
    seen = case.visible(b, i[:, None], torch.arange(case.keys, device=i.device)[None])  # [R, S]
    q = given.q[b, h * group:(h + 1) * group][:, i].to(dtype)  # [group, R, D]
    s = (q @ given.k[b, h].to(dtype).T).to(torch.promote_types(dtype, torch.float32)) * case.scale
    p = s.masked_fill(~seen, -math.inf).softmax(-1).to(dtype)
    return (p @ given.v[b, h].to(dtype)).double()
