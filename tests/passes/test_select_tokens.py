"""A dense mask that was scattered from the indices of a topk is the choice itself; any other scatter stays a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mla_compiler.ir import Site
from tests.passes.latent_programs import Sizes, Spelling, inputs
from tests.pipeline.graphs import piped, sdpa, traced

N = Sizes(batch=2, heads=3, queries=4, keys=9, rank=5, rope=2, nope=4, value=6)
CHOSEN = 4
LATENT = torch.ops.flashmla.attend_latent.default


def scores() -> Tensor:
    """[B, T, S], all different; the last queries of the keys, so that causality binds."""
    drawn = torch.randn(N.batch, N.queries, N.keys, generator=torch.Generator().manual_seed(5))
    return drawn.masked_fill(~causal(), -torch.inf)


def causal() -> Tensor:
    return torch.arange(N.keys) <= torch.arange(N.queries)[:, None] + N.keys - N.queries


def _hidden(s: Tensor) -> Tensor:
    """As DeepSeek-V3.2 writes it: true where not chosen."""
    chosen = s.topk(CHOSEN, dim=-1).indices.to(torch.int32)
    return ~chosen.new_ones(s.shape, dtype=torch.bool).scatter(-1, chosen.long(), False)


def _shown(s: Tensor) -> Tensor:
    return torch.zeros_like(s, dtype=torch.bool).scatter(2, s.topk(CHOSEN).indices, True)


def _sorted(s: Tensor) -> Tensor:
    chosen = s.argsort(dim=-1, descending=True)[..., :CHOSEN]
    return torch.zeros_like(s, dtype=torch.bool).scatter(-1, chosen, True)


def _shared(s: Tensor) -> Tensor:
    """One choice for all queries of a sequence."""
    chosen = s[:, -1:].topk(CHOSEN).indices.expand(-1, s.shape[1], -1)
    return torch.zeros_like(s, dtype=torch.bool).scatter(-1, chosen, True)


CHOICES = {"hidden": _hidden, "shown": _shown, "sorted": _sorted, "shared": _shared}


def _as_bool(mask: Tensor) -> Tensor:
    return (mask & causal().to(mask.device))[:, None]


def _as_float(mask: Tensor) -> Tensor:
    least = torch.finfo(torch.float32).min
    return torch.where(causal(), 0.0, least).expand(mask.shape).masked_fill(~mask, least)[:, None]


def run(choice, mask_of, absorb: str = "always") -> tuple[list[Site], torch.fx.GraphModule]:
    """The pipeline over a latent attention under the mask; its numbers are those of the program in float64."""
    x, spelling, s = inputs(N), Spelling(), scores()

    def program(s, q, c, rope, weight):
        both = torch.nn.functional.linear(c, weight).view(N.batch, N.keys, N.heads, -1).transpose(1, 2)
        k = torch.cat([both[..., :N.nope], rope[:, None].expand(-1, N.heads, -1, -1)], -1)
        return sdpa(q, k, both[..., N.nope:], mask_of(choice(s)))

    given = (x.q, x.c, x.rope, *spelling.weights(x))
    module = traced(program, s, *given)
    found = piped(module, absorb=absorb)
    truth = torch.nn.functional.scaled_dot_product_attention(*_expanded(x), mask_of(choice(s)).double()
                                                             if mask_of is _as_float else mask_of(choice(s)))
    torch.testing.assert_close(module(s, *given).double(), truth, rtol=1e-5, atol=1e-5)
    return found, module


def _expanded(x) -> tuple[Tensor, Tensor, Tensor]:
    x = x.to(torch.float64)
    k = torch.einsum("bsr,hdr->bhsd", x.c, x.keys)
    rope = x.rope[:, None].expand(-1, N.heads, -1, -1)
    return x.q, torch.cat([k, rope], -1), torch.einsum("bsr,hdr->bhsd", x.c, x.values)


def operators(module: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes]


@pytest.mark.parametrize("mask_of", [_as_bool, _as_float])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_the_mask_is_gone(choice, mask_of) -> None:
    (site,), module = run(choice, mask_of)
    assert site.latent.endswith(f"{CHOSEN} tokens a query") and "residue" not in site.spec and "hi: i + 6" in site.spec
    assert "aten.scatter.value" not in operators(module)
    (attend,) = module.graph.find_nodes(op="call_function", target=LATENT)
    assert tuple(attend.args[4].meta["val"].shape) == (N.batch, N.queries, CHOSEN)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_an_expanded_site_keeps_its_mask(choice) -> None:
    (site,), module = run(choice, _as_bool, absorb="never")
    assert site.latent.startswith("expanded, flashmla.absorb='never'") and "residue" in site.spec
    assert "aten.scatter.value" in operators(module)


def _twice(s: Tensor) -> Tensor:
    """Indices that may repeat."""
    return torch.zeros_like(s, dtype=torch.bool).scatter(-1, s.topk(CHOSEN).indices // 2, True)


def _some_rows(s: Tensor) -> Tensor:
    """Only the first rows are written; the others see what all of them saw before."""
    return torch.zeros_like(s, dtype=torch.bool).scatter(-1, s[:, :2].topk(CHOSEN).indices, True)


def _values(s: Tensor) -> Tensor:
    """The scores chosen, not their places."""
    return torch.zeros_like(s, dtype=torch.bool).scatter(-1, s.nan_to_num(0, 0, 0).topk(CHOSEN).values.abs().long(), True)


def _across(s: Tensor) -> Tensor:
    """The best queries of each key: distinct along the queries, not along the keys."""
    chosen = s.nan_to_num(neginf=-9).topk(2, dim=1).indices
    return torch.zeros(N.batch, 2, N.keys, dtype=torch.bool).scatter(-1, chosen, True)[:, :1].expand(-1, N.queries, -1)


@pytest.mark.parametrize("choice", [_twice, _some_rows, _values, _across])
def test_any_other_scatter_stays_a_mask(choice) -> None:
    (site,), module = run(choice, _as_bool)
    assert site.latent.startswith("absorbed") and "tokens" not in site.latent and "residue" in site.spec
    assert "aten.scatter.value" in operators(module)


def test_a_choice_of_every_key_is_no_condition() -> None:
    def everything(s: Tensor) -> Tensor:
        return torch.zeros_like(s, dtype=torch.bool).scatter(-1, s.topk(N.keys).indices, True)

    (site,), module = run(everything, _as_bool)
    assert "tokens" not in site.latent and "residue" not in site.spec and "aten.scatter.value" not in operators(module)
