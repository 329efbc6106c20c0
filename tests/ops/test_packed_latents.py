"""flashmla::quantize_latent and packed latents on the CPU: as attend_latent over what is unpacked, to the bit."""

import pytest
import torch

from mla_compiler.errors import OperandError
from mla_compiler.lowering import fp8
from mla_compiler.lowering.mla import reference

from .cases import CASES
from .test_attend_latent_cpu import assert_near, attend_latent, choose, problem
from .test_op_contract import assert_fake_is_exact

quantize_latent = torch.ops.flashmla.quantize_latent.default
SHAPE = (2, 4, 7, 50, 512, 64)


def packed(case, tokens=None, dtype=torch.bfloat16):
    """(operands with packed latents, the same with unpacked ones)"""
    q_latent, q_rope, latent, rope, *rest = problem(CASES[case], SHAPE, dtype, tokens=tokens)
    found = quantize_latent(latent, rope)
    return (q_latent, q_rope, found, None, *rest), (q_latent, q_rope, *fp8.dequantize(found, 512, dtype, dtype), *rest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [None, choose(2, 7, 50, 9)], ids=["all", "tokens"])
@pytest.mark.parametrize("case", ["full", "causal", "pad", "sinks", "nothing"])
def test_as_over_what_is_unpacked(case, tokens, dtype):
    arguments, plain = packed(case, tokens, dtype)
    assert torch.equal(attend_latent(*arguments), attend_latent(*plain))
    exact = reference.attend_latent(*arguments)
    wide = fp8.dequantize(arguments[2], 512, dtype, torch.float64)
    assert torch.equal(exact, reference.attend_latent(*arguments[:2], *wide, *arguments[4:]))


def test_near_the_truth():
    arguments, plain = packed("causal", choose(2, 7, 50, 9))
    assert_near(plain)
    out, truth = attend_latent(*arguments), reference.attend_latent(*arguments)
    low = reference.attend_latent(*arguments, dtype=torch.bfloat16)
    assert (out - truth).square().mean() <= 4 * (low - truth).square().mean()


def test_pages():
    shape = (2, 4, 3, 128, 512, 64)
    q_latent, q_rope, latent, rope, *rest = problem(CASES["full"], shape, torch.bfloat16)
    found = quantize_latent(latent, rope)
    pages = torch.tensor([[4, 0], [2, 5]], dtype=torch.int32)
    pool = torch.full((6, 64, 656), 255, dtype=torch.uint8)
    pool[pages.long()] = found.unflatten(1, (2, 64))
    whole = attend_latent(q_latent, q_rope, found, None, *rest)
    rest[1] = pages
    assert torch.equal(attend_latent(q_latent, q_rope, pool, None, *rest), whole)


def test_the_layout_is_656_bytes():
    torch.manual_seed(0)
    latent, rope = torch.randn(3, 5, 512).bfloat16() * torch.logspace(-9, 9, 512), torch.randn(3, 5, 64).bfloat16()
    found = quantize_latent(latent, rope)
    assert found.shape == (3, 5, 656) and torch.equal(found[..., 528:].view(torch.bfloat16), rope)
    scales = found[..., 512:528].view(torch.float32)
    torch.testing.assert_close(scales * 448, latent.float().unflatten(-1, (4, 128)).abs().amax(-1))
    back, _ = fp8.dequantize(found, 512, torch.bfloat16, torch.float64)
    step = scales.double().repeat_interleave(128, -1) * 2.0**-10
    assert ((back - latent.double()).abs() <= latent.double().abs() * 2.0**-4 * (1 + 2.0**-20) + step * (1 + 2.0**-20)).all()


def test_zeros_stay_zeros_and_what_is_not_finite_stays_so():
    latent = torch.zeros(1, 512)
    latent[0, 128], latent[0, 300], latent[0, 511] = torch.nan, torch.inf, 2.0**-140
    back, _ = fp8.dequantize(quantize_latent(latent, torch.zeros(1, 64).half()), 512, torch.float16, torch.float32)
    assert not back[0, :128].any() and not back[0, 384:].any()
    assert not back[0, 128].isfinite() and not back[0, 300].isfinite()


def test_contracts():
    latent, rope = torch.randn(2, 3, 512), torch.randn(2, 3, 64).bfloat16()
    for given in ((latent, rope), (latent[:, :0], rope[:, :0]), (latent.transpose(0, 1), rope.transpose(0, 1))):
        assert_fake_is_exact(quantize_latent, *given)
    torch.library.opcheck(quantize_latent, (latent, rope))
    for tokens in (None, choose(2, 7, 50, 9)):
        arguments, _ = packed("pad", tokens)
        assert_fake_is_exact(attend_latent, *arguments)
        torch.library.opcheck(attend_latent, arguments)


@pytest.mark.parametrize(("change", "message"), [
    ({3: torch.randn(2, 50, 64).bfloat16()}, "rope is None where latent is packed"),
    ({2: torch.randn(2, 50, 512).bfloat16()}, "rope is None where latent is packed"),
    ({2: torch.zeros(2, 50, 640, dtype=torch.uint8)}, "have 656 bytes"),
    ({2: torch.zeros(3, 50, 656, dtype=torch.uint8)}, "with q_latent"),
    ({2: torch.zeros(2, 50, 660, dtype=torch.uint8)[..., 4:]}, "multiples of 16 bytes"),
    ({0: torch.randn(2, 4, 7, 512), 1: torch.randn(2, 4, 7, 64)}, "16 bits"),
    ({0: torch.randn(2, 4, 7, 500).bfloat16()}, "a multiple of 128"),
])
def test_what_does_not_fit_is_an_error(change, message):
    arguments = list(packed("full")[0])
    for at, wrong in change.items():
        arguments[at] = wrong
    with pytest.raises(OperandError, match=message):
        attend_latent(*arguments)


@pytest.mark.parametrize(("latent", "rope", "message"), [
    (torch.zeros(2, 500), torch.zeros(2, 64).half(), "a multiple of 128"),
    (torch.zeros(2, 512), torch.zeros(2, 64), "float16"), (torch.zeros(2, 512), torch.zeros(2, 3).half(), "of 16"),
    (torch.zeros(2, 512), torch.zeros(3, 64).half(), r"latent is \[..., R\]"),
])
def test_what_cannot_be_packed_is_an_error(latent, rope, message):
    with pytest.raises(OperandError, match=message):
        quantize_latent(latent, rope)
