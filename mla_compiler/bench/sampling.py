"""Operands in as many copies as no cache holds at once, and a sample of the exact answer, in float64.

    error(out) = rms(out - exact) / rms(formula in the working dtype - exact)      on the sampled rows
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attentions import ATTENTIONS, DECODE, POOL, PREFILL, Attention
from .latents import LATENT, LATENTS, Latent
from .operands import Operands
from .operands_latent import LatentOperands
from .pool import PAGED
from .sparse import SPARSE

AnyCase = Attention | Latent
AnyOperands = Operands | LatentOperands
CASES: dict[str, tuple[AnyCase, ...]] = {
    **{group: tuple(case for case in ATTENTIONS if case.group == group) for group in (PREFILL, DECODE)}, LATENT: LATENTS,
    "sparse": SPARSE, POOL: PAGED,
}
"""The kernels' cases, by group."""
CACHE_BYTES = 3 * 50 * 2**20
"""Copies are rotated until they take this: three times the 50 MB of an H100's L2."""


def operands(case: AnyCase, device: str, dtype: torch.dtype, seed: int = 0) -> AnyOperands:
    if isinstance(case, Latent):
        return LatentOperands.random(case, device, dtype, seed)
    return Operands.random(case, device, dtype, seed)


def copies(case: AnyCase, device: str, dtype: torch.dtype) -> list[Any]:
    """The first is what is checked; on a CPU, and of a toy, it is the only one."""
    number = 1 if device == "cpu" or case.toy else rotation(case, dtype)
    return [operands(case, device, dtype, seed) for seed in range(number)]


def rotation(case: AnyCase, dtype: torch.dtype) -> int:
    """How many copies no cache holds at once."""
    return math.ceil(CACHE_BYTES / case.read_bytes(dtype))


@dataclass(frozen=True)
class Sample:
    """Rows of the answer in float64, and how far the formula, in the working dtype with its softmax in float32, is from them
    (root mean square)."""

    given: Any
    rows: list[tuple[Any, Tensor]]
    formula_error: float

    @classmethod
    def of(cls, given: AnyOperands, seed: int = 0) -> Sample:
        made: Any = given
        rows = [(place, made.formula(place, torch.float64)) for place in made.places(torch.Generator().manual_seed(seed))]
        squares = [(made.formula(place, made.q.dtype) - exact).square().mean() for place, exact in rows]
        return cls(given, rows, torch.stack(squares).mean().sqrt().item())

    def error(self, out: Tensor) -> float:
        """Root mean square distance of out [B, H, T, Dv] from the exact rows, over the formula's. NaN stays NaN."""
        squares = [(self.given.pick(out, place).double() - exact).square().mean() for place, exact in self.rows]
        error = torch.stack(squares).mean().sqrt().item()
        return error / self.formula_error if self.formula_error else 0.0 if error == 0 else math.inf
