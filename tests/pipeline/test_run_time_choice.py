"""Queries and keys of any number: one graph holds both forms of latent attention, and the lengths of a call tell which."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mla_compiler import lowering
from mla_compiler.ir import Reason
from mla_compiler.lowering import projected
from tests.harness import assert_within_twice, compiled, watching
from tests.ops.pages import store
from tests.passes.latent_programs import Sizes, inputs

HEADS, NOPE, ROPE, VALUE, RANK = 4, 8, 8, 8, 32
LENGTHS = [(3, 40), (30, 40), (30, 200), (150, 200), (2, 500)]


def sizes(queries: int, keys: int) -> Sizes:
    return Sizes(2, HEADS, queries, keys, RANK, ROPE, NOPE, VALUE)


def attention(q: Tensor, c: Tensor, rope: Tensor, weight: Tensor, sdpa=F.scaled_dot_product_attention) -> Tensor:
    """Causal to the bottom right; the output as the model's next projection takes it."""
    both = F.linear(c, weight).view(*c.shape[:2], HEADS, NOPE + VALUE).transpose(1, 2)
    k = torch.cat([both[..., :NOPE], rope[:, None].expand(-1, HEADS, -1, -1)], -1)
    rows = torch.arange(q.shape[2], device=q.device)[:, None] + c.shape[1] - q.shape[2]
    mask = torch.arange(c.shape[1], device=q.device) <= rows
    return sdpa(q, k, both[..., NOPE:], mask).transpose(1, 2).flatten(2)


def operands(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    x = inputs(sizes(queries, keys)).to(dtype)
    return [x.q, x.c, x.rope, torch.cat([x.keys, x.values], 1).flatten(0, 1)]


def any_length(given: list[Tensor]) -> list[Tensor]:
    """The same, T and S marked as dynamic."""
    for x, dim in ((given[0], 2), (given[1], 1), (given[2], 1)):
        torch._dynamo.mark_dynamic(x, dim)
    return given


@pytest.fixture
def forms(monkeypatch) -> list[str]:
    """The forms that ran, in order."""
    ran: list[str] = []
    for name in ("absorbed", "expanded"):
        form = getattr(projected, name)
        monkeypatch.setattr(projected, name, lambda *given, name=name, form=form: ran.append(name) or form(*given))
    return ran


def is_absorbed(queries: int, keys: int) -> bool:
    """The costs of costs_latent in float32, by hand, for one head of one sequence."""
    expand = 2 * keys * RANK * (NOPE + VALUE) + 2 * queries * keys * 24 + 800 * 2 * keys * 24
    absorb = 2 * queries * RANK * (NOPE + VALUE) + 2 * queries * keys * (2 * RANK + ROPE) + 800 * queries * 4 * RANK
    return absorb < expand


def by_the_formula(form: str, q: Tensor, c: Tensor, rope: Tensor, weight: Tensor) -> Tensor:
    """The form written out: absorbed, its logits are [q_nope W_uk ; q_rope] . [c ; rope]."""
    if form == "expanded":
        return attention(q, c, rope, weight)
    keys, values = weight.view(HEADS, NOPE + VALUE, RANK).split([NOPE, VALUE], 1)
    s = q[..., :NOPE] @ keys @ c[:, None].mT + q[..., NOPE:] @ rope[:, None].mT
    visible = torch.ones(s.shape[-2:], dtype=torch.bool).tril(s.shape[-1] - s.shape[-2])
    p = (s * (NOPE + ROPE) ** -0.5).masked_fill(~visible, -torch.inf).softmax(-1)
    return (p @ c[:, None] @ values.mT).transpose(1, 2).flatten(2)


def test_one_graph_serves_both_sides_of_the_crossover(forms) -> None:
    wanted = ["absorbed" if is_absorbed(*lengths) else "expanded" for lengths in LENGTHS]
    with watching() as seen:
        ours = compiled(attention)
        for form, lengths in zip(wanted, LENGTHS, strict=True):
            given = any_length(operands(*lengths))
            truth = attention(*(x.double() for x in given))
            assert_within_twice([ours(*given)], [by_the_formula(form, *given)], [truth])
    assert len(seen.graphs) == 1 and forms == wanted and set(forms) == {"absorbed", "expanded"}
    (site,) = seen.sites
    assert site.latent.startswith("either, absorbed where T < 1232*S/(3232 + 3*S)"), site.latent
    assert site.shape.startswith("q [2, 4, s") and site.config.endswith("at the sizes at hand")


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The softmax written out."""
    s = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return torch.softmax(s.masked_fill(~mask, -torch.inf), -1) @ v


@pytest.mark.parametrize("written", [F.scaled_dot_product_attention, by_hand])
def test_both_forms_are_certified(written, forms) -> None:
    with watching() as seen:
        ours = compiled(lambda *given: attention(*given, sdpa=written), **{"flashmla.certificate": True})
        outs = [ours(*any_length(operands(*lengths))) for lengths in ((3, 40), (30, 40))]
    (site,) = seen.sites
    assert site.latent.startswith("either") and 0 < site.certificate < 1e-5
    assert forms == ["absorbed", "expanded"] * 2
    for out, lengths, form in zip(outs, ((3, 40), (30, 40)), forms, strict=False):
        given = operands(*lengths)
        assert out.stride() == attention(*given).stride()
        assert_within_twice([out], [by_the_formula(form, *given)], [attention(*(x.double() for x in given))])


@pytest.mark.parametrize(("absorb", "form"), [("always", "absorbed"), ("never", "expanded")])
def test_a_form_that_is_asked_for_is_no_choice(absorb: str, form: str, forms) -> None:
    with watching() as seen:
        compiled(attention, **{"flashmla.absorb": absorb})(*any_length(operands(3, 40)))
    assert [site.latent.partition(",")[0] for site in seen.sites] == [form]
    assert forms == (["expanded"] if form == "expanded" else [])        # by heads, for a length that is not known


def test_latents_in_pages_are_gathered_for_it(forms) -> None:
    def of_pages(q, latents, ropes, table, lengths, weight):
        c, rope = (torch.ops.flashmla.pool_view(x, None, table, lengths, "plain", x.dtype)[:, 0] for x in (latents, ropes))
        return attention(q, c, rope, weight)

    order = torch.tensor([[3, 0], [1, 4]])
    with watching() as seen:
        ours = compiled(of_pages)
        for queries in (3, 60):
            q, c, rope, weight = operands(queries, 128)
            held = [store(x[:, None], order, 64, 5) for x in (c, rope)]
            torch._dynamo.mark_dynamic(q, 2)
            out = ours(q, *held, order.int(), torch.tensor([128, 128], dtype=torch.int32), weight)
            torch.testing.assert_close(out, attention(q, c, rope, weight))
    (site,) = seen.sites
    assert site.latent.startswith("either") and site.pages == "gathered: latents of either form are read densely"
    assert forms == ["absorbed", "expanded"]


def test_what_has_no_expanded_kernel_is_absorbed(monkeypatch, forms) -> None:
    with watching() as seen:
        monkeypatch.setattr(lowering, "supports", lambda *given: (Reason.HEAD_DIM, "16"))
        compiled(attention)(*any_length(operands(30, 40)))
    (site,) = seen.sites
    assert site.latent.startswith(f"absorbed, expanded {Reason.HEAD_DIM.value}; found 16") and not forms
