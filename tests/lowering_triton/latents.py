"""An attention over latents to try: its spec, its operands, and how far a kernel is from the truth; as `cases.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu, gpu_latent, reference
from mla_compiler.lowering.checks_latent import PAGE
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.fp8 import quantize_latent
from mla_compiler.lowering.gpu_latent import Latents
from mla_compiler.lowering.machine import machine_of
from mla_compiler.lowering.mla.reference import attend_latent

from . import cases

DENSE = Choice("mla", 16, 16, 4, 1)
CHOSEN = Choice("tokens", 16, 16, 4, 1)
LAYOUTS = ("contiguous", "one buffer", "strided")


@dataclass(frozen=True)
class Case:
    """`tables` names functions of `cases`; `chosen` tokens a query, 0 for all; `layout` how the latents lie in memory;
    `packed` in 8 bits, with their rope."""

    spec: str
    tables: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    scalars: tuple[float, ...] = ()
    batch: int = 1
    heads: int = 5
    queries: int = 2
    keys: int = 37
    rank: int = 32
    width: int = 16
    chosen: int = 0
    paged: bool = False
    packed: bool = False
    dtype: torch.dtype = torch.float16
    layout: str = "contiguous"
    choice: Choice | None = DENSE

    def but(self, **changes) -> Case:
        return replace(self, **changes)

    @property
    def head_dim(self) -> int:
        return self.rank


def operands(case: Case) -> tuple[Latents, list[Tensor]]:
    """Latents, on the CPU, and tables. Memory that is no key is NaN."""
    torch.manual_seed(0)
    batch, rows = case.batch, -(-case.keys // PAGE) * PAGE if case.paged else case.keys
    q = torch.randn(batch, case.heads, case.queries, case.rank + case.width).to(case.dtype)
    lead = (batch * rows // PAGE + 2, PAGE) if case.paged else (batch, rows)
    latent, rope = _laid(torch.randn(*lead, case.rank + case.width).to(case.dtype), case)
    latent, rope = (quantize_latent(latent, rope), None) if case.packed else (latent, rope)
    pages = None
    if case.paged:
        order = torch.randperm(lead[0])[: lead[0] - 2].to(torch.int32)
        pages = order.view(batch, -1)
        unused = torch.tensor([page for page in range(lead[0]) if page not in order])
        for x in (latent, rope):
            if x is not None:
                x[unused] = 255 if case.packed else torch.nan
    tokens = _tokens(case, rows) if case.chosen else None
    return (Latents(q[..., : case.rank], q[..., case.rank :], latent, rope, tokens, pages),
            [getattr(cases, name)(case) for name in case.tables])


def _laid(both: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    if case.layout == "one buffer":
        return both[..., : case.rank], both[..., case.rank :]
    if case.layout == "strided":
        both = both.transpose(0, 1).contiguous().transpose(0, 1).repeat_interleave(2, -1)[..., ::2]
        return both[..., : case.rank], both[..., case.rank :]
    return both[..., : case.rank].contiguous(), both[..., case.rank :].contiguous()


def _tokens(case: Case, rows: int) -> Tensor:
    """No key twice; some are none: -1, or beyond the keys."""
    found = torch.stack([torch.randperm(rows)[: case.chosen] for _ in range(case.batch * case.queries)])
    none = torch.rand(found.shape) < 0.1
    found = torch.where(none, torch.where(found % 2 == 0, -1, rows + found), found)
    return found.view(case.batch, case.queries, -1)


def run(case: Case, given: Latents, tables: list[Tensor]) -> Tensor:
    """The kernel's output, in the case's dtype; in the interpreter torch rounds to bfloat16."""
    spec = AttentionSpec.parse(case.spec)
    choice = case.choice or gpu_latent.choose(spec, given, machine_of(given.latent.device))
    exact = torch.float32 if case.dtype == torch.bfloat16 and given.latent.device.type == "cpu" else case.dtype
    shape = (case.batch, case.queries, case.heads, case.rank)
    out = torch.full(shape, torch.nan, dtype=exact, device=given.latent.device).transpose(1, 2)
    gpu_latent.launch(spec, choice, given, gpu.operands(spec, tables, list(case.sizes), list(case.scalars)), out)
    return out.to(case.dtype)


def truth(case: Case, given: Latents, tables: list[Tensor], dtype: torch.dtype = torch.float64, product=torch.matmul) -> Tensor:
    """[B, H, T, R] of `dtype`, by the formula, over all keys; memory that is no key is never touched."""
    return attend_latent(*vars(given).values(), tables, case.sizes, case.scalars, case.spec, dtype, product)


def errors(case: Case, device: str = "cpu") -> tuple[float, float]:
    """(the kernel's, the formula's in the working dtype): largest differences from float64; see `cases.errors`."""
    given, tables = operands(case)
    there = [None if x is None else cases._moved(x, device) if device != "cpu" else x for x in vars(given).values()]
    found = run(case, Latents(*there), [x.to(device) for x in tables])
    exact = case.dtype == torch.float32
    best = truth(case, given, tables)
    formula = truth(case, given, tables, case.dtype, reference.in_order if exact else torch.matmul)
    measured = [(x.cpu().double() - best).abs().max().item() for x in (found, formula)]
    rounding = best.abs().max().item() * torch.finfo(case.dtype).eps
    largest = 0 if case.packed else given.latent.nan_to_num().abs().max().item()
    return measured[0], max(measured[1], rounding, largest * 2**-22 if exact else 0.0)
