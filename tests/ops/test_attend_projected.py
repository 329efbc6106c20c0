"""flashmla::attend_projected: both forms are the same attention, in the memory its fake promises."""

from dataclasses import replace

import pytest
import torch

from mla_compiler.errors import OperandError
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import by_heads, reference

from .cases import CASES
from .test_op_contract import assert_fake_is_exact

attend_projected = torch.ops.flashmla.attend_projected.default
HEADS, RANK, ROPE = 4, 12, 6


def problem(case, gain, queries=9, keys=20, dtype=torch.float32, heads_first=False):
    """K = [6 channels of a part ; rope ; 4 of another], V = 5 and 3 channels; weights are views of one matrix."""
    torch.manual_seed(0)
    q, latent, rope = (torch.randn(shape).to(dtype) for shape in ((2, HEADS, queries, 16), (2, keys, RANK), (2, keys, ROPE)))
    weight = (torch.randn(HEADS, 18, RANK) / RANK**0.5).to(dtype)
    first, second, *values = weight.split([6, 4, 5, 3], 1)
    tables, sizes = case.tables(2, HEADS, queries, keys), case.sizes(queries, keys)
    spec = str(case.spec(heads_first=heads_first))
    return q, latent, rope, [first, second], values, [0, 12], 6, gain, tables, sizes, list(case.scalars), spec


def written(problem, form, dtype):
    """The form in float64, or the same formula in the working dtype."""
    q, latent, rope, keys, values, _, _, _, *env, text = problem
    q, latent, rope, *weights = (x.to(dtype) for x in (q, latent, rope, *keys, *values))
    first, second, value = weights[0], weights[1], torch.cat(weights[2:], 1)
    if form == "expanded":
        parts = (latent[:, None] @ first.mT, rope[:, None].expand(-1, HEADS, -1, -1), latent[:, None] @ second.mT)
        return reference.attend(q, torch.cat(parts, -1), latent[:, None] @ value.mT, *env, text, dtype)
    q_latent = q[..., :6] @ first + q[..., 12:] @ second
    shared = str(replace(AttentionSpec.parse(text), group=HEADS))
    seen = reference.attend(torch.cat([q_latent, q[..., 6:12]], -1), torch.cat([latent, rope], -1)[:, None], latent[:, None],
                            *env, shared, dtype)
    return seen @ value.mT


@pytest.mark.parametrize("gain", [-3, 0, 1])
@pytest.mark.parametrize("name", ["full", "causal", "offset", "pad", "sinks", "softcap", "nothing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_either_form_is_the_attention(name, gain, dtype):
    given, form = problem(CASES[name], gain, dtype=dtype), "absorbed" if gain > 0 else "expanded"
    truth, formula = written(given, form, torch.float64), written(given, form, dtype)
    error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (attend_projected(*given), formula))
    rounding = torch.finfo(dtype).eps * truth.abs().max()
    assert error <= 2 * torch.maximum(allowed, rounding)


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("gain", [0, 1])
def test_fakes_are_exact(heads_first, gain):
    for queries, keys in ((9, 20), (1, 7), (1, 1), (0, 3), (2, 0)):
        assert_fake_is_exact(attend_projected, *problem(CASES["pad"], gain, queries, keys, heads_first=heads_first))


@pytest.mark.parametrize("gain", [0, 1])
def test_opcheck(gain):
    torch.library.opcheck(attend_projected, problem(CASES["causal"], gain))


def test_weights_and_latents_are_read_where_they_lie(monkeypatch):
    """bmm takes the views: no operand of a product is as large as a copy of the latent for every head."""
    given, taken = problem(CASES["full"], 0), []
    bmm = torch.bmm
    monkeypatch.setattr(by_heads.torch, "bmm", lambda x, y, out: taken.append((x, y)) or bmm(x, y, out=out))
    attend_projected(*given)
    assert all(x.data_ptr() == given[1].data_ptr() and x.stride(0) == 0 for x, _ in taken) and len(taken) == 4
    assert {y.untyped_storage().data_ptr() for _, y in taken} == {given[3][0].untyped_storage().data_ptr()}


@pytest.mark.parametrize(("at", "wrong", "message"), [
    (3, [torch.randn(4, 6, 12), torch.randn(4, 4, 11)], r"\[4, size, 12\]"), (4, [], r"\[4, size, 12\]"),
    (6, 5, "not the 16 channels of q"), (5, [0, 11], "not the 16 channels of q"),
])
def test_what_does_not_fit_is_an_error(at, wrong, message):
    given = list(problem(CASES["full"], 0))
    given[at] = wrong
    with pytest.raises(OperandError, match=message):
        attend_projected(*given)
