"""Whatever the spelling, attention over a latent is absorbed; what it computes lies within the bound of absorb_mla."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mla_compiler.ir import Reason, Site
from tests.passes.latent_programs import JOINS, ORDERS, PROJECTIONS, SOURCES, Inputs, Sizes, Spelling, inputs
from tests.pipeline.graphs import piped, sdpa, traced

SMALL = Sizes(batch=2, heads=3, queries=1, keys=7, rank=5, rope=2, nope=4, value=6)
LATENT = torch.ops.flashmla.attend_latent.default


def sizes() -> st.SearchStrategy[Sizes]:
    few = st.integers(2, 5)
    return st.builds(Sizes, batch=st.integers(1, 3), heads=few, queries=st.integers(1, 4), keys=st.integers(2, 9),
                     rank=st.integers(2, 9), rope=few, nope=few, value=st.integers(2, 7))


spellings = st.builds(Spelling, *(st.sampled_from(sorted(table)) for table in (PROJECTIONS, ORDERS, JOINS, SOURCES)))


def bound(x: Inputs, c: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """The docstring of absorb_mla, for both forms, and what the logits' error does to the weights: a factor exp(2 delta)."""
    u = torch.finfo(dtype).eps
    nope = x.keys.shape[1]
    width, rank, keys = x.q.shape[-1], c.shape[-1], c.shape[1]
    products = torch.einsum("bhtd,hdr,bsr->bhts", x.q[..., :nope].abs(), x.keys.abs(), c.abs())
    products = products + torch.einsum("bhtd,bsd->bhts", x.q[..., nope:].abs(), x.rope.abs())
    delta = (width + rank) * u * products.max().item() / width**0.5
    values = torch.einsum("hdr,bsr->bhsd", x.values.abs(), c.abs()).max().item()
    return ((keys + rank + 2) * u + torch.expm1(torch.tensor(2 * delta)).item() + 4 * u) * values


def check(spelling: Spelling, n: Sizes, **options: object) -> list[Site]:
    """Absorbed, and within the bound of what the program computes in float64."""
    x = inputs(n)
    program, given_to = spelling.program(n), (x.q, x.c, x.rope, *spelling.weights(x))
    module = traced(program, *given_to)
    found = piped(module, absorb="always", certificate=True, **options)
    assert [site.latent[:8] for site in found] == ["absorbed"], found
    assert sum(node.target is LATENT for node in module.graph.nodes) == 1
    wide = x.to(torch.float64)
    truth = program(wide.q, wide.c, wide.rope, *spelling.weights(wide))
    out = module(*given_to)
    assert out.shape == truth.shape and out.stride() == program(*given_to).stride()
    allowed = bound(wide, SOURCES[spelling.source](wide.c), truth, torch.float32)
    assert (out.double() - truth).abs().max().item() <= allowed
    assert 0 <= found[0].certificate < 1e-4
    return found


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_projections_and_orders(projection: str, order: str) -> None:
    check(Spelling(projection, order), SMALL)


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("source", SOURCES)
def test_joins_and_sources(join: str, source: str) -> None:
    check(Spelling(join=join, source=source), SMALL)


@given(spellings, sizes())
@settings(max_examples=40, deadline=None)
def test_any_spelling_of_any_size(spelling: Spelling, n: Sizes) -> None:
    check(spelling, n)


def test_weights_are_views() -> None:
    """Between a weight and its product there is nothing but views: nothing of its size is written in a step."""
    x = inputs(SMALL)
    for name in PROJECTIONS:
        spelling = Spelling(name)
        module = traced(spelling.program(SMALL), x.q, x.c, x.rope, *spelling.weights(x))
        piped(module, absorb="always")
        views = {"view", "slice", "select", "permute", "transpose", "t"}
        for weight in list(module.graph.find_nodes(op="placeholder"))[3:]:
            reached = list(weight.users)
            assert reached
            while reached:
                node = reached.pop()
                operator = node.target._schema.name.partition("::")[2]
                assert operator in views or operator == "bmm", node.format_node()
                reached += [] if operator == "bmm" else list(node.users)


def left(program, *given_to: Tensor, **options: object) -> str:
    """What the report says of the one site, whose graph is as it would be without absorption."""
    module, plain = traced(program, *given_to), traced(program, *given_to)
    (site,) = piped(module, **{"absorb": "always", **options})
    piped(plain, absorb="never")
    assert site.status == "fused" and str(module.graph) == str(plain.graph)
    return site.latent


def latent_attention(project):
    """q [2, 3, 1, 6], c [2, 7, 5], rope [2, 7, 2]; `project`: (c, weight [3 * 10, 5], bias) -> [2, 7, 30]"""
    def attention(q, c, rope, weight, extra):
        both = project(c, weight, extra).view(2, 7, 3, 10).transpose(1, 2)
        k = torch.cat([both[..., :4], rope[:, None].expand(-1, 3, -1, -1)], -1)
        return sdpa(q, k, both[..., 4:])

    return attention


def operands(extra: Tensor, weight: Tensor | None = None) -> tuple[Tensor, ...]:
    x = inputs(SMALL)
    weight = torch.randn(30, 5) if weight is None else weight
    return x.q, x.c, x.rope, weight, extra


def test_a_bias_is_left() -> None:
    why = left(latent_attention(lambda c, w, bias: torch.nn.functional.linear(c, w, bias)), *operands(torch.randn(30)))
    assert why.startswith(f"expanded: {Reason.BIAS.value}")


def test_a_dequantised_weight_is_left() -> None:
    program = latent_attention(lambda c, w, scale: torch.nn.functional.linear(c, w.float() * scale))
    why = left(program, *operands(torch.rand(30, 1), torch.randint(-9, 9, (30, 5), dtype=torch.int8)))
    assert why.startswith(f"expanded: {Reason.WEIGHT.value}") and "mul" in why


def test_a_scaled_product_is_left() -> None:
    why = left(latent_attention(lambda c, w, scale: (c @ w.T) * scale), *operands(torch.rand(30)))
    assert why.startswith(f"expanded: {Reason.WEIGHT.value}")


def test_values_of_another_latent_are_left() -> None:
    def attention(q, c, rope, weight, other):
        k = torch.nn.functional.linear(c, weight[:12]).view(2, 7, 3, 4).transpose(1, 2)
        v = torch.nn.functional.linear(other, weight[12:]).view(2, 7, 3, 6).transpose(1, 2)
        return sdpa(q, torch.cat([k, rope[:, None].expand(-1, 3, -1, -1)], -1), v)

    why = left(attention, *operands(torch.randn(2, 7, 5)))
    assert why.startswith(f"expanded: {Reason.LATENT.value}")


def test_keys_without_a_rope_part_are_left() -> None:
    def attention(q, c, rope, weight, extra):
        both = torch.nn.functional.linear(c, weight).view(2, 7, 3, 10).transpose(1, 2)
        return sdpa(q[..., :4], both[..., :4], both[..., 4:])

    assert left(attention, *operands(torch.zeros(1))).startswith(f"expanded: {Reason.ROPE.value}")


def test_ordinary_attention_is_not_spoken_of() -> None:
    def attention(q, k, v):
        return sdpa(q, k, v)

    assert left(attention, *(torch.randn(2, 3, 7, 4) for _ in range(3))) == ""
