"""Attention problems by name: a spec as text, its tables, sizes and scalars; operands; the tolerance."""

from dataclasses import dataclass, field

import torch

from mla_compiler import expr as E
from mla_compiler.ir import TILE, AttentionSpec
from mla_compiler.lowering import cpu, reference


@dataclass(frozen=True)
class Case:
    """Fields of AttentionSpec as text. `tables(B, H, T, S)` makes the tables; keys outside [first, last) are never visible."""

    score: str = "0.25*s"
    lo: str = "0"
    hi: str = "inf"
    residue: str = "True"
    sink: str | None = None
    tile: str | None = None
    tables: object = field(default=lambda B, H, T, S: [])
    sizes: object = field(default=lambda T, S: [])
    scalars: tuple = ()

    def spec(self, **others):
        read = {name: getattr(self, name) for name in ("score", "lo", "hi", "sink", "tile")}
        read = {name: E.from_text(text) for name, text in read.items() if text is not None}
        return AttentionSpec(**read, residue=E.from_text(self.residue, condition=True), **others)


def pad(B, H, T, S):
    """Left padding, more in each sequence; none in the last."""
    return torch.arange(S)[None, :] >= (torch.arange(B - 1, -1, -1) * (S // 4))[:, None]


def documents(B, H, T, S):
    return (torch.arange(max(T, S)) * 3 // max(T, S, 1)).expand(B, -1).contiguous()


def a_mask(B, H, T, S):
    torch.manual_seed(3)
    mask = torch.rand(B, 1, T, S) < 0.3
    mask[:, :, :, S // 2:S // 2 + TILE] = True
    mask[:, :, T // 2] = False
    return mask


def bias(B, H, T, S):
    torch.manual_seed(4)
    made = torch.randn(B, H, T, S)
    return made.masked_fill(torch.rand(B, H, T, S) < 0.2, -torch.inf)


def slopes(B, H, T, S):
    return 2.0 ** -torch.arange(1, H + 1)


CASES = {
    "full": Case(),
    "causal": Case(hi="i + 1"),
    "offset": Case(hi="n0 + i + 1", sizes=lambda T, S: [S - T]),
    "counter": Case(hi="T0[()] + i + 1", tables=lambda *n: [torch.tensor(n[3] // 2)]),
    "window": Case(hi="n0 + i + 1", lo="max(0, n0 + i - 6)", sizes=lambda T, S: [max(S - T, 0)]),
    "chunk": Case(lo="8*(i // 8)", hi="8*(i // 8) + 8"),
    "pad": Case(hi="n0 + i + 1", residue="M0[b, j]", tables=lambda *n: [pad(*n)], sizes=lambda T, S: [max(S - T, 0)]),
    "per sequence": Case(hi="T0[b]", tables=lambda B, H, T, S: [torch.arange(B) * S // B]),
    "documents": Case(hi="i + 1", residue="T0[b, i] == T0[b, j]", tables=lambda *n: [documents(*n)]),
    "prefix": Case(hi="max(i + 1, 5)"),
    "odd": Case(residue="((i + j) % 3 != 1) | (j == 0) ^ (h == 1)"),
    "mask": Case(residue="M0[b, 0, i, j]", tables=lambda *n: [a_mask(*n)]),
    "summarized": Case(
        lo="T1[b, 0, i, 0]", hi="T1[b, 0, i, 1]", residue="M0[b, 0, i, j]", tile="T2[b, 0, i//64, j//64]",
        tables=lambda *n: [a_mask(*n), *cpu.summarize(a_mask(*n))],
    ),
    "bias": Case("0.25*s + F0[b, h, i, j]", tables=lambda *n: [bias(*n)]),
    "bias and mask": Case("0.25*s + F0[b, h, i, j]", hi="i + 1", tables=lambda *n: [bias(*n)]),
    "alibi": Case("0.25*s + F0[h]*(j - i)", hi="i + 1", tables=lambda *n: [slopes(*n)]),
    "run-time scale": Case("x0*s + x1*j", scalars=(0.3, -0.01)),
    "negative scale": Case("-0.3*s", hi="i + 1"),
    "softcap": Case("5.0*tanh(0.1*s)", hi="i + 1"),
    "scale by head": Case("F0[h]*s", tables=lambda *n: [slopes(*n)]),
    "sinks": Case(hi="i + 1", sink="F0[h]", tables=lambda *n: [slopes(*n)]),
    "sinks and bias": Case("0.25*s + F0[b, h, i, j]", sink="1.5", tables=lambda *n: [bias(*n)]),
    "capped sinks": Case("5.0*tanh(0.1*s)", lo="i - 3", sink="x0 + i", scalars=(-2.0,)),
    "nothing": Case(lo="5", hi="5"),
    "far": Case(lo="1000000"),
    "nothing, by residue": Case(residue="j < 0*i - 1"),
}

SHAPES = {
    "prefill": (2, 4, 2, 70, 70, 16, 16),
    "decode": (2, 6, 3, 1, 90, 16, 16),
    "short": (1, 4, 4, 5, 33, 16, 16),
    "more queries": (1, 2, 1, 40, 12, 8, 8),
    "unequal dims": (2, 4, 2, 37, 50, 24, 16),
}
"""B, H, Hkv, T, S, D, Dv."""


def operands(shape, dtype, seed=0):
    B, H, Hkv, T, S, D, Dv = shape
    torch.manual_seed(seed)
    q = torch.randn(B, T, H, D, dtype=torch.float64).transpose(1, 2)
    return q.to(dtype), torch.randn(B, Hkv, S, D).to(dtype), torch.randn(B, S, Hkv, Dv).transpose(1, 2).to(dtype)


def problem(case, shape, dtype=torch.float32, **spec):
    """The arguments of flashmla::attend."""
    B, H, Hkv, T, S, *_ = shape
    made = case.spec(group=H // Hkv, **spec)
    return *operands(shape, dtype), case.tables(B, H, T, S), case.sizes(T, S), list(case.scalars), str(made)


def assert_close(out, arguments):
    """Root-mean-square error <= 2 x that of the same formula in the working dtype, or of what no formula escapes:

    rounding each p*v once to that dtype and each logit once to the dtype of the softmax.
    """
    q, k, v, *rest, text = arguments
    truth, low = reference.attend(*arguments), reference.attend(*arguments, dtype=out.dtype)
    logits = torch.cat(reference.logits(q.double(), k.double(), *rest, AttentionSpec.parse(text)), -1)
    largest = torch.where(logits.isfinite(), logits, 0).abs().max()
    eps = (torch.finfo(dtype).eps / 2 for dtype in (out.dtype, torch.promote_types(out.dtype, torch.float32)))
    rounding = (next(eps) + next(eps) * largest) * _rms(reference.attend(q, k, v.abs(), *rest, text))
    assert torch.isfinite(truth).all()
    assert _rms(out - truth) <= 2 * torch.maximum(_rms(low - truth), rounding)


def _rms(x):
    return x.square().mean().sqrt()
