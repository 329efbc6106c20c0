"""spec => what its text alone says: score = scale*s + bias or a program of s, bounds and residue as torch programs"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy
import torch

from .. import expr as E
from ..ir import AttentionSpec
from .torch_expr import Program, compile


@dataclass(frozen=True)
class Plan:
    """The programs of one spec. None: the residue is True, there is no bias, no sink, no tile classes.

    `scale` is None unless score = scale*s + bias with a scale that is the same everywhere. `diagonal` is hi - i where
    that is the same everywhere: 1 is causal attention. `uniform`: every query row is treated alike.
    """

    spec: AttentionSpec
    dtype: torch.dtype
    score: Program
    scale: Program | None
    bias: Program | None
    lo: Program
    hi: Program
    residue: Program | None
    sink: Program | None
    tile: Program | None
    diagonal: Program | None
    uniform: bool


@lru_cache(maxsize=4096)
def plan_of(text: str, dtype: torch.dtype) -> Plan:
    """Programs whose real parts are of `dtype`, the type sums are accumulated in."""
    spec = AttentionSpec.parse(text)
    scale, bias = affine(spec.score) or (None, None)
    diagonal = sympy.expand(spec.hi - E.i) if spec.residue == sympy.true and spec.hi != sympy.oo else E.i

    def program(e: sympy.Basic | None) -> Program | None:
        return None if e is None else compile(e, dtype)

    return Plan(
        spec=spec,
        dtype=dtype,
        score=compile(spec.score, dtype),
        scale=program(scale),
        bias=program(bias if bias != 0 else None),
        lo=compile(spec.lo, dtype),
        hi=compile(spec.hi, dtype),
        residue=program(spec.residue if spec.residue != sympy.true else None),
        sink=program(spec.sink),
        tile=program(spec.tile),
        diagonal=program(None if _varies(diagonal) else diagonal),
        uniform=bias in (None, 0) and not any(E.i in e.free_symbols for e in (spec.lo, spec.hi, spec.residue, spec.score)),
    )


def affine(score: sympy.Basic) -> tuple[sympy.Basic, sympy.Basic] | None:
    """(scale, bias) with score = scale*s + bias, neither containing s, scale the same for all b, h, i, j; else None."""
    for form in (score, sympy.expand(score)):
        with_s = [term for term in sympy.Add.make_args(form) if E.s in term.free_symbols]
        scale = sympy.Add(*[term / E.s for term in with_s])
        if E.s not in scale.free_symbols and not _varies(scale):
            return scale, sympy.Add(*[term for term in sympy.Add.make_args(form) if E.s not in term.free_symbols])
    return None


def _varies(e: sympy.Basic) -> bool:
    return bool(e.free_symbols & {E.b, E.h, E.i, E.j})
