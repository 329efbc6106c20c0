"""flashmla::attend_latent on the CPU: as attend over [latent; rope], and over chosen tokens as the dense mask says."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler.errors import OperandError
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import cpu_latent
from mla_compiler.lowering import reference as attention
from mla_compiler.lowering.mla import reference

from .cases import CASES, Case, assert_close
from .test_op_contract import assert_fake_is_exact

attend_latent = torch.ops.flashmla.attend_latent.default
SHAPES = {"prefill": (2, 4, 37, 50, 24, 8), "decode": (2, 6, 1, 90, 16, 4), "more queries": (1, 3, 20, 12, 194, 192)}
"""B, H, T, S, R, P."""


def problem(case, shape, dtype=torch.float32, tokens=None, pages=None):
    B, H, T, S, R, P = shape
    torch.manual_seed(0)
    q_latent, q_rope = torch.randn(B, T, H, R + P).to(dtype).transpose(1, 2).split([R, P], -1)
    latent, rope = torch.randn(B, S, R).to(dtype), torch.randn(B, 1, S, P).to(dtype).squeeze(1)
    return (q_latent, q_rope, latent, rope, tokens, pages, case.tables(B, H, T, S), case.sizes(T, S), list(case.scalars),
            str(case.spec()))


def choose(B, T, S, K, seed=1):
    """[B, T, K]: K of S distinct keys, some of them no key at all."""
    g = torch.Generator().manual_seed(seed)
    chosen = torch.rand(B, T, S, generator=g).argsort(-1)[..., :K]
    outside = torch.rand(B, T, K, generator=g)
    return torch.where(outside < 0.1, -1, torch.where(outside > 0.9, S + 3, chosen))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_attention_over_one_key(case, shape):
    for dtype in (torch.float32, torch.bfloat16):
        arguments = problem(case, shape, dtype)
        q_latent, q_rope, latent, rope, _, _, *rest, text = arguments

        spec = str(replace(AttentionSpec.parse(text), group=shape[1]))
        one_key = torch.cat([q_latent, q_rope], -1), torch.cat([latent, rope], -1)[:, None], latent[:, None], *rest, spec
        assert_close(attend_latent(*arguments), one_key)


def assert_near(arguments):
    """Root-mean-square error <= 2 x that of the formula in the working dtype, or of rounding each weighted latent once."""
    out = attend_latent(*arguments)
    truth, low = reference.attend_latent(*arguments), reference.attend_latent(*arguments, dtype=out.dtype)
    latent = arguments[2].double()
    rounding = torch.finfo(out.dtype).eps * (latent.abs().amax() if latent.numel() else torch.tensor(0.0))
    error, allowed = (out - truth).square().mean().sqrt(), (low - truth).square().mean().sqrt()
    assert error <= 2 * torch.maximum(allowed, rounding)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_chosen_tokens(case, shape):
    B, _, T, S, *_ = shape
    for dtype in (torch.float32, torch.bfloat16):
        for count, kind in ((1, torch.int32), (S // 3, torch.int64), (S, torch.int64)):
            assert_near(problem(case, shape, dtype, choose(B, T, S, count).to(kind)))


def test_the_reference_of_chosen_tokens_is_a_dense_mask():
    B, H, T, S, _, _ = shape = SHAPES["prefill"]
    tokens = choose(B, T, S, 9)
    masked = Case(hi="i + 1", residue="M0[b, 0, i, j]", tables=lambda *n: [reference.chosen(tokens, S)])
    q_latent, q_rope, latent, rope, *_ = problem(CASES["causal"], shape)

    dense = attention.attend(torch.cat([q_latent, q_rope], -1), torch.cat([latent, rope], -1)[:, None], latent[:, None],
                             masked.tables(), [], [], str(replace(masked.spec(), group=H)))
    found = reference.attend_latent(*problem(CASES["causal"], shape, tokens=tokens))
    torch.testing.assert_close(found, dense, rtol=1e-12, atol=1e-12)


def test_many_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(cpu_latent, "GATHERED", 2000)
    for name in ("causal", "pad", "sinks", "alibi", "documents"):
        assert_near(problem(CASES[name], SHAPES["prefill"], tokens=choose(2, 37, 50, 11)))


@pytest.mark.parametrize("tokens", [None, choose(2, 3, 128, 17)], ids=["all", "tokens"])
def test_pages(tokens):
    shape = (2, 4, 3, 128, 24, 8)
    q_latent, q_rope, latent, rope, *rest = problem(Case(hi="i + 100"), shape, tokens=tokens)
    pages = torch.tensor([[4, 0], [2, 5]], dtype=torch.int32)
    pools = [torch.full((6, 64, x.shape[-1]), torch.nan) for x in (latent, rope)]
    for pool, x in zip(pools, (latent, rope), strict=True):
        pool[pages.long()] = x.unflatten(1, (2, 64))
    rest[1] = pages
    found = attend_latent(q_latent, q_rope, *pools, *rest)
    rest[1] = None
    assert torch.equal(found, attend_latent(q_latent, q_rope, latent, rope, *rest))


@given(st.tuples(*(st.integers(*ends) for ends in ((1, 3), (1, 4), (0, 5), (0, 9), (1, 7), (1, 5)))), st.data())
@settings(max_examples=60, deadline=None)
def test_any_shape(shape, data):
    B, _, T, S, _, _ = shape
    count = data.draw(st.none() | st.integers(0, S))
    tokens = None if count is None else choose(B, T, S, count)
    for name in ("full", "causal", "pad", "sinks", "nothing"):
        arguments = problem(CASES[name], shape, tokens=tokens)
        assert_fake_is_exact(attend_latent, *arguments)
        if T and S and count != 0:
            assert_near(arguments)


def test_opcheck():
    for tokens in (None, choose(2, 37, 50, 9)):
        torch.library.opcheck(attend_latent, problem(CASES["pad"], SHAPES["prefill"], tokens=tokens))


@pytest.mark.parametrize(("at", "wrong", "message"), [
    (0, torch.randn(2, 4, 37, 23), "with q_latent"), (3, torch.randn(2, 49, 8), "with q_latent"),
    (2, torch.randn(2, 50, 24, dtype=torch.float64), "one dtype"), (4, torch.zeros(2, 36, 3, dtype=torch.int64), "tokens is"),
    (4, torch.zeros(2, 37, 3), "int32 or int64"), (6, [], "only 0 tables"),
])
def test_what_does_not_fit_is_an_error(at, wrong, message):
    arguments = list(problem(CASES["pad"], SHAPES["prefill"]))
    arguments[at] = wrong
    with pytest.raises(OperandError, match=message):
        attend_latent(*arguments)
