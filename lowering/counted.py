"""flashmla::attend of a site that keeps an account: runs it under the policy to be tried, and notes what was left out"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ..errors import OptionError
from ..ir import AttentionSpec
from ..ledger import LEDGER, Call
from ..sparsity import Sparsity
from .sparse.config import unserved

Run = Callable[[AttentionSpec], tuple[Tensor, Call]]
"""How the device runs a spec, whose site is set, and counts."""


def attend(run: Run, spec: AttentionSpec) -> Tensor:
    """out of `spec`, or of what is tried in its place. OptionError where no kernel serves that."""

    def under(policy: Sparsity) -> tuple[Tensor, Call]:
        refused = unserved(replace(spec, sparsity=policy))
        if refused:
            raise OptionError(f"{spec.site}: no kernel for {refused}", f"it was compiled with {spec.sparsity}")
        return run(replace(spec, sparsity=policy))

    if LEDGER.observer is not None:
        LEDGER.observer(spec.site, under)
    policy = LEDGER.policy(spec.site, spec.sparsity)
    out, call = under(policy)
    LEDGER.note(spec.site, policy, call)
    return out

