"""softmax over what is visible  =>  softmax over what of it is kept        spec, policy  =>  spec.sparsity

The layer's policy, from the options, becomes part of the spec; which tiles it leaves out is decided by the kernel, from the
numbers. A policy that no kernel serves here leaves the attention exact, with the reason.

Needs: a spec with its masks summarised: a policy that chooses tiles beforehand has to know which are wholly visible.
Keeps: the graph; the spec where the policy is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..ir import AttentionSpec, Reason, Rejected
from ..sparsity import EXACTLY, Sparsity

Served = Callable[[AttentionSpec], tuple[Reason, str] | None]
"""Why there is no kernel for a spec, or None."""


def match(name: str, spec: AttentionSpec, wanted: Sparsity, unsuited: str, served: Served) -> AttentionSpec | Rejected:
    """The spec under the policy `wanted`; `unsuited`: what it is that no policy serves, if it is."""
    if wanted == EXACTLY:
        return spec
    if unsuited:
        return Rejected(name, Reason.SPARSITY, unsuited)
    sparse = replace(spec, sparsity=wanted)
    refused = served(sparse)
    return Rejected(name, *refused) if refused else sparse
