"""Where expanding is always cheaper, K and V are made for some heads at a time, unless all are small, or wanted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mla_compiler import lowering
from mla_compiler.lowering import head_groups
from mla_compiler.options import Options
from mla_compiler.pipeline import Run, run_passes
from tests.harness import assert_within_twice, compiled, watching
from tests.passes.latent_programs import Spelling
from tests.pipeline.graphs import traced
from tests.pipeline.test_run_time_choice import HEADS, NOPE, VALUE, attention, operands, sizes

ALL, SOME = "attend.default", "attend_projected.default"
TEXT = "rank 32 + rope 8, K and V of some heads at a time"


@pytest.fixture
def two_heads(monkeypatch) -> None:
    """A buffer for two of the four heads at 90 keys, of two sequences, in float32; and processors that are always busy."""
    monkeypatch.setattr(head_groups, "BUFFER", 2 * 2 * 90 * 24 * 4)
    monkeypatch.setattr(head_groups, "processors", lambda device: 1)


def padded(q: Tensor, c: Tensor, rope: Tensor, weight: Tensor, length: Tensor) -> Tensor:
    """Left padding, by a mask that keeps every row's own key."""
    keys = torch.arange(c.shape[1])
    seen = (keys >= length[:, None, None, None]) & (keys <= torch.arange(q.shape[2])[:, None])
    seen = seen | (keys == torch.arange(q.shape[2])[:, None])
    return attention(q, c, rope, weight, sdpa=lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, seen))


def prompt(length: int) -> list[Tensor]:
    return operands(length, length)


def called(program, *given: Tensor) -> tuple[list, Tensor]:
    """The sites, and the output."""
    with watching() as seen:
        out = compiled(program)(*given)
    return seen.sites, out


def test_in_groups_where_the_buffer_is_too_small(two_heads) -> None:
    given = prompt(90)
    (site,), out = called(attention, *given)
    assert site.latent == f"expanded, dearer: {TEXT}" and site.config == "hull, 2 of 4 heads at a time"
    assert_within_twice([out], [attention(*given)], [attention(*(x.double() for x in given))])
    assert out.stride() == attention(*given).stride()


def test_all_heads_where_they_fit() -> None:
    given = prompt(90)
    (site,), out = called(attention, *given)
    assert site.latent == "expanded, dearer: rank 32 + rope 8" and site.config == "hull"
    assert_within_twice([out], [attention(*given)], [attention(*(x.double() for x in given))])


def as_many(q: Tensor, c: Tensor, rope: Tensor, weight: Tensor) -> Tensor:
    """As many queries as keys, whatever their number."""
    return attention(q + c[:, None, :, :1], c, rope, weight)


def test_a_prompt_of_any_length(two_heads) -> None:
    with watching() as seen:
        ours = compiled(as_many)
        for length in (90, 40, 200):
            given = prompt(length)
            for x, dim in zip(given, (2, 1, 1), strict=False):
                torch._dynamo.mark_dynamic(x, dim)
            assert_within_twice([ours(*given)], [as_many(*given)], [as_many(*(x.double() for x in given))])
    (site,) = seen.sites
    assert site.latent.startswith("expanded, dearer for") and site.latent.endswith(TEXT) and len(seen.graphs) == 1
    assert site.config == "hull, 2 of 4 heads at a time, at the sizes at hand"


def test_padded(two_heads) -> None:
    given = [*prompt(90), torch.tensor([0, 30])]
    (site,), out = called(padded, *given)
    assert site.latent.endswith(TEXT) and "length" in site.predicate
    assert_within_twice([out], [padded(*given)], [padded(*(x.double() for x in given[:4]), given[4])])


def test_slopes_are_those_of_the_head_itself(two_heads) -> None:
    """A bias that differs between heads, which a group that counts from 0 would take from the first heads."""
    slopes = torch.tensor([-0.5, -0.1, 0.0, 0.3])

    def biased(q, c, rope, weight, slopes):
        distance = torch.arange(c.shape[1]) - torch.arange(q.shape[2])[:, None]
        bias = (slopes[:, None, None] * distance).masked_fill(distance > 0, -torch.inf)
        return attention(q, c, rope, weight, sdpa=lambda q, k, v, mask: torch.softmax(
            q @ k.transpose(-1, -2) * 0.25 + bias, -1) @ v)

    given = [*prompt(90), slopes]
    (site,), out = called(biased, *given)
    assert site.latent.endswith(TEXT) and "h" in site.score
    assert_within_twice([out], [biased(*given)], [biased(*(x.double() for x in given))])


def emitted(program, given: list[Tensor], **options: object) -> str:
    """The operator in the graph."""
    module = traced(program, *given)
    run_passes(Run(module.graph, Options(**options), lowering))
    names = [str(node.target).removeprefix("flashmla.") for node in module.graph.nodes if "flashmla" in str(node.target)]
    assert len(names) == 1
    return names[0]


def test_a_policy_and_an_account_are_of_all_heads(two_heads) -> None:
    given, program = prompt(90), Spelling().program(sizes(90, 90))
    assert emitted(program, given) == SOME
    assert emitted(program, given, sparsity="threshold=0.1") == emitted(program, given, account=True) == ALL


def test_k_and_v_that_the_graph_returns(two_heads) -> None:
    def cached(q, c, rope, weight):
        both = F.linear(c, weight).view(*c.shape[:2], HEADS, NOPE + VALUE).transpose(1, 2)
        k = torch.cat([both[..., :NOPE], rope[:, None].expand(-1, HEADS, -1, -1)], -1)
        return torch.ops.flashmla.sdpa(q, k, both[..., NOPE:], None, 0.0, True, None, False), k

    def written(q, c, rope, weight, cache):
        out, k = cached(q, c, rope, weight)
        cache.copy_(k)
        return out

    given = prompt(90)
    assert emitted(cached, given) == ALL
    assert emitted(lambda *given: cached(*given)[0], given) == SOME
    assert emitted(written, [*given, torch.zeros(2, HEADS, 90, NOPE + 8)]) == ALL
