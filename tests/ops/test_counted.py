"""On the CPU what is counted is what was computed, and what was dropped is its share of the softmax."""

import math
from dataclasses import replace

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.ledger import COMPUTED, LEDGER, LEFT_OUT, WEIGHED, Call
from mla_compiler.lowering import counted_cpu, reference
from mla_compiler.lowering.cpu import attend
from mla_compiler.lowering.sparse import reference as R
from mla_compiler.lowering.sparse.cpu import KEYS, ROWS

from .cases import CASES
from .test_sparsity import turning

POLICIES = ["exact", "threshold=0.02", "error_budget=0.05", "pages.share=0.02", "pages.share=0.005+threshold=0.3"]


@pytest.fixture
def counted():
    """counted(arguments): (out, the account of this one call)."""
    calls: list[Call] = []

    def run(q, k, v, tables, sizes, scalars, text):
        with_site = str(replace(AttentionSpec.parse(text), site="here"))
        return counted_cpu.attend(q, k, v, tables, sizes, scalars, with_site), calls.pop()

    noted, LEDGER.note = LEDGER.note, lambda site, policy, call: calls.append(call)
    yield run
    LEDGER.note = noted


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["full", "causal", "pad", "summarized", "sinks", "softcap", "window"])
def test_what_is_counted(counted, name, policy):
    arguments = turning((2, 4, 2, 300, 600, 16, 16), CASES[name], policy)
    if name == "pad" and policy.startswith("pages"):
        return
    q, k, _, *rest, text = arguments
    spec = AttentionSpec.parse(text)
    out, call = counted(*arguments)
    assert torch.equal(out, attend(*arguments))
    (exact, sink), (working, _) = (reference.logits(q.to(t), k.to(t), *rest, spec) for t in (torch.float64, torch.float32))
    seen = R.in_tiles(reference.visible(spec, 2, 4, 300, 600, *rest).double().flatten(0, 2) - 1, KEYS).unflatten(0, (2, 4, 300))
    for b, h, first in ((b, h, first) for b in range(2) for h in range(4) for first in range(0, 300, ROWS)):
        rows, found = slice(first, first + ROWS), call.steps[b, h, first // ROWS]
        assert torch.equal(found > 0, (seen[b, h, rows] == 0).any(-1).any(0))
        hidden = (found == COMPUTED).repeat_interleave(KEYS)[:600]
        truth, formula = (share(a[b, h, rows], sink[b, h, rows].to(a.dtype), hidden) for a in (exact, working))
        error, allowed = ((x - truth).abs().max() for x in (call.dropped[b, h, rows], formula))
        assert error <= 2 * max(allowed, torch.finfo(torch.float32).eps)
    steps = set(call.steps.unique().tolist())
    if name not in ("full", "causal", "sinks"):
        return  # a window may leave nothing to leave out
    if not policy.startswith("pages"):
        assert (WEIGHED in steps) == (policy != "exact")
    assert (LEFT_OUT in steps) == policy.startswith("pages")


def share(a, sink, hidden):
    gone = a.masked_fill(hidden, -math.inf).logsumexp(-1)
    return torch.where(gone == -math.inf, 0, (gone - torch.cat([a, sink], -1).logsumexp(-1)).exp())


def test_few_queries_are_counted_as_they_run(counted):
    """A step of decoding chooses no pages: the threshold that would follow them is what it has."""
    q, k, v, *rest = turning((1, 4, 2, 300, 600, 16, 16), CASES["full"], "pages.share=0.02+threshold=0.05")
    out, call = counted(q[:, :, -1:], k, v, *rest)
    assert torch.equal(out, attend(q[:, :, -1:], k, v, *rest))
    assert call.steps.shape == (1, 4, 1, 10) and call.tile == (1, KEYS) and set(call.steps.unique().tolist()) == {2, 3}
