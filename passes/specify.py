"""value = where(mask, score, hidden)  =>  AttentionSpec(score, lo, hi, residue)

Needs: Attention.value over E.s. Keeps: the graph; a value that is not a program of one s is rejected.
"""

from __future__ import annotations

import sympy

from .. import expr as E
from ..ir import AttentionSpec, Reason, Rejected
from .attention import Attention
from .raise_mask import raise_mask, split_mask


def rewrite(site: Attention, kv_splits: int, autotune: bool = False) -> tuple[sympy.Basic, AttentionSpec] | Rejected:
    """Split the mask from the score, raise it to a hull and a residue: the predicate as read, and the spec."""
    predicate, score = split_mask(site.value, site.mask_dtype)
    if not score.has(E.s):
        return Rejected(site.anchor.name, Reason.SCORE, E.to_text(score))
    if predicate.has(E.s):
        return Rejected(site.anchor.name, Reason.MASK, "a mask that depends on the scores")
    raised = raise_mask(predicate, site.sizes.ranges, site.sizes.keys)
    return predicate, AttentionSpec(
        score=score, lo=raised.lo, hi=raised.hi, residue=raised.residue, sink=site.sink,
        heads_first=site.handwritten, kv_splits=kv_splits, autotune=autotune,
    )
