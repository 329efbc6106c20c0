"""graph in, graph out: goldens, idempotence, sharing, options."""

from __future__ import annotations

import pytest
import torch

from mla_compiler.errors import VerifyError
from mla_compiler.ir import Reason
from mla_compiler.options import Options
from mla_compiler.pipeline import Run, verify
from tests.pipeline.graphs import piped, sdpa, text, traced


def repeated(x: torch.Tensor, times: int) -> torch.Tensor:
    """repeat_kv, as transformers writes it."""
    b, h, s, d = x.shape
    return x[:, :, None].expand(b, h, times, s, d).reshape(b, h * times, s, d)


def static_decode(q, k, v, keys, values, length, mask):
    """One step through a static cache: write at `length`, attend to all of it under a mask input."""
    at = torch.arange(q.shape[2]) + length
    keys = keys.index_copy(2, at, k)
    values = values.index_copy(2, at, v)
    return sdpa(q, repeated(keys, 2), repeated(values, 2), mask), keys, values


def static_inputs():
    new, cache = (2, 2, 1, 8), (2, 2, 12, 8)
    return (torch.randn(2, 4, 1, 8), torch.randn(new), torch.randn(new), torch.randn(cache), torch.randn(cache),
            torch.tensor(5), torch.ones(2, 1, 1, 12, dtype=torch.bool))


def causal_prefill(x, w):
    q, k, v = (x @ w).view(2, 6, 3, 4, 8).permute(2, 0, 3, 1, 4)
    at = torch.arange(6)
    return sdpa(q, k, v, at[None, :] <= at[:, None]).transpose(1, 2).reshape(2, 6, 32)


def softcapped(q, k, v):
    score = torch.tanh(q @ repeated(k, 2).transpose(2, 3) * 0.125 / 50.0) * 50.0
    score = torch.where(torch.ones(5, 5, dtype=torch.bool).tril(), score, torch.finfo(torch.float32).min)
    return torch.softmax(score, -1) @ repeated(v, 2)


def two_layers(q, k, v, mask):
    return sdpa(sdpa(q, k, v, mask), k, v, mask)


PROGRAMS = {
    "static_decode": (static_decode, static_inputs),
    "causal_prefill": (causal_prefill, lambda: (torch.randn(2, 6, 32), torch.randn(32, 96))),
    "softcapped": (softcapped, lambda: tuple(torch.randn(2, h, 5, 8) for h in (4, 2, 2))),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden_graph(name, golden):
    program, inputs = PROGRAMS[name]
    module = traced(program, *inputs())
    assert [site.status for site in piped(module)] == ["fused"]
    golden(f"graphs/{name}.txt", text(module))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("symbolic", [False, True])
def test_same_value_and_idempotent(name, symbolic):
    program, make = PROGRAMS[name]
    inputs = make()
    module = traced(program, *inputs, symbolic=symbolic)
    before = module(*inputs)
    assert [site.status for site in piped(module)] == ["fused"]
    torch.testing.assert_close(module(*inputs), before)
    once = text(module)
    assert piped(module) == []
    assert text(module) == once


def test_layers_share_one_summary():
    q = torch.randn(1, 2, 3, 8)
    module = traced(two_layers, q, q, q, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    assert len(piped(module)) == 2
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(torch.ops.flashmla.summarize.default) == 1
    assert targets.count(torch.ops.flashmla.attend.default) == 2


def test_no_cache_sized_copy_is_left():
    module = traced(static_decode, *static_inputs())
    piped(module)
    made = [node for node in module.graph.nodes if "clone" in str(node.target) or "repeat" in str(node.target)]
    assert not made, made


@pytest.mark.parametrize(("options", "found"), [
    ({"enable": False}, "flashmla.enable=False"), ({"exclude": ""}, None), ({"kv_splits": 3}, None),
])
def test_options(options, found):
    module = traced(causal_prefill, torch.randn(2, 6, 32), torch.randn(32, 96))
    (site,) = piped(module, **options)
    if found is None:
        assert site.status == "fused"
        assert ("kv_splits: 3" in site.spec) == ("kv_splits" in options)
    else:
        assert site.status == "left" and site.reason == f"{Reason.DISABLED.value}; found {found}"


@pytest.mark.parametrize(("options", "spec", "said"), [
    ({"sparsity": "threshold=0.1"}, "sparsity: threshold=0.1", "threshold=0.1"),
    ({"sparsity": "threshold=0.1; .*: exact"}, "", ""),
    ({"sparsity": "lsh=0.25"}, "sparsity: lsh=0.25", "lsh=0.25"),
    ({"sparsity": "pages.budget=0.01"}, "", f"exact instead of pages.budget=0.01: {Reason.SPARSITY.value}"),
])
def test_a_policy_becomes_part_of_the_spec_or_the_report_says_why_not(options, spec, said):
    (site,) = piped(traced(causal_prefill, torch.randn(2, 6, 32), torch.randn(32, 96)), **options)
    assert site.status == "fused"
    assert spec in site.spec and ("sparsity" in site.spec) == bool(spec)
    assert site.sparsity.startswith(said) and bool(site.sparsity) == bool(said)


def test_a_broken_graph_is_refused():
    module = traced(two_layers, *(torch.randn(1, 2, 3, 8),) * 3, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    node = next(node for node in module.graph.nodes if node.op == "call_function")
    del node.meta["val"]
    with pytest.raises(VerifyError, match="carries no value"):
        verify(module.graph, "emit")


def test_an_unknown_size_leaves_the_site():
    """A size that no input carries cannot be handed to a kernel."""
    module = traced(two_layers, *(torch.randn(1, 2, 3, 8),) * 3, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    run = Run(module.graph, Options(), None)
    from mla_compiler.passes.build import Builder

    anchor = next(node for node in module.graph.nodes if node.op == "call_function")
    with pytest.raises(LookupError, match="no node holds"):
        import sympy

        Builder(run.graph, anchor).integer(sympy.Symbol("u99", integer=True))


@pytest.mark.parametrize("change", [lambda x: 2 * x, lambda x: x.flip(2), lambda x: x[:, :1].expand_as(x)])
def test_the_logarithm_of_another_sum_is_no_softmax(change):
    def program(q, k, v):
        x = q @ k.mT
        return torch.exp(x - torch.log(change(x).exp().sum(-1, keepdim=True))) @ v

    (site,) = piped(traced(program, *(torch.randn(2, 3, 5, 8) for _ in "qkv")))
    assert site.status == "left" and site.reason.startswith(Reason.SOFTMAX.value)
