"""What of a policy there is a kernel for, and what it comes to where there are few queries."""

from __future__ import annotations

from dataclasses import replace

import sympy

from ... import expr as E
from ...ir import AttentionSpec
from ...sparsity import EXACTLY, Sparsity

LEAST_TILE = 16
"""Keys of the smallest tile, which lies in one page where pages are chosen."""


def unserved(spec: AttentionSpec) -> str:
    """Why no kernel keeps to the spec's policy, in words; nothing if one does."""
    if not spec.sparsity.selects:
        return ""
    if spec.sparsity.measure == "budget":
        return f"{spec.sparsity}: the bounds of pages prove next to nothing"
    if spec.residue != sympy.true and spec.tile is None:
        return f"{spec.sparsity} under a mask of which it is not known what tiles it leaves whole"
    if not grows(spec.score):
        return f"{spec.sparsity} of a score that does not grow with q.k"
    return ""


def unserved_in_pages(spec: AttentionSpec, page: int) -> str:
    """The same of a step over pages of `page` tokens: whole pages are chosen, so many of them, by their bounds."""
    policy = spec.sparsity
    if policy == EXACTLY:
        return ""
    if (policy.policy, policy.measure, policy.then) != ("pages", "", 0.0):
        return f"{policy} of keys and values in pages, of which pages=share alone is served"
    if page % LEAST_TILE:
        return f"{policy} in pages of {page} tokens, no multiple of {LEAST_TILE}"
    if spec.residue != sympy.true:
        return f"{policy} under a mask that says more than where the visible keys begin and end"
    if spec.kv_splits or E.h in spec.lo.free_symbols | spec.hi.free_symbols:
        return f"{policy} of keys that are divided head by head" if not spec.kv_splits else f"{policy} with kv_splits"
    return "" if grows(spec.score) else f"{policy} of a score that does not grow with q.k"


def grows(score: sympy.Basic) -> bool:
    """Whether the score is, as far as its form tells, no less where q.k is greater: c*s + bias or c*tanh(d*s) + bias."""
    with_s = [term for term in sympy.Add.make_args(score) if E.s in term.free_symbols]
    if len(with_s) != 1:
        return False
    factor, rest = with_s[0].as_independent(E.s, as_Add=False)
    inner = rest.args[0] if isinstance(rest, sympy.tanh) else rest
    slope = inner.as_independent(E.s, as_Add=False)
    return slope[1] == E.s and not factor.is_negative and not slope[0].is_negative


def of_few_queries(spec: AttentionSpec) -> AttentionSpec:
    """The spec where what is chosen beforehand would cost as much as it saves: the threshold that follows is left of it.

    The boxes of a cache are made from all its keys: a step of decoding, which reads each key once, would read them twice.
    """
    if not spec.sparsity.selects:
        return spec
    then = spec.sparsity.then
    return replace(spec, sparsity=Sparsity("threshold", "", then) if then else EXACTLY)
