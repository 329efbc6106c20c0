"""Packed latents, 656 bytes a token: unpacked in the kernel, in Triton's interpreter and compiled for every architecture."""

import re
from dataclasses import replace

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import fp8, gpu_latent
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.compile_latent import compile_latent
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.mla.config import Shape, configure
from mla_compiler.lowering.mla.exchange_launch import line

from .latents import CHOSEN, DENSE, Case, operands
from .test_latent import CASES, check
from .test_latent_compile import LIVE

PACKED = {"packed": True, "rank": 512, "width": 64, "dtype": torch.bfloat16}
SCORE = "score: 0.07*s"


@pytest.mark.parametrize("name, paged", [("live length", True), ("window", False), ("padding", False), ("sinks", True)])
@pytest.mark.parametrize("chosen", [0, 21])
def test_the_formula_on_what_is_unpacked(interpreted, name, chosen, paged):
    """The truth is the formula on the codes and scales in float64; twice the error of the formula in bfloat16 is allowed."""
    case = CASES[name]
    case = case.but(spec=case.spec.replace("0.25", "0.07"), choice=CHOSEN if chosen else DENSE, chosen=chosen, paged=paged)
    check(interpreted, case.but(**PACKED))


@pytest.mark.parametrize("chosen", [0, 70])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pages_in_parts(interpreted, chosen, dtype):
    choice = Choice("tokens" if chosen else "mla", 16, 64, 8, 2, 2)
    case = Case(f"{SCORE}; hi: T0[b] + i + 1", ("lengths",), batch=2, heads=20, keys=200, chosen=chosen, choice=choice)
    check(interpreted, case.but(**{**PACKED, "dtype": dtype, "paged": True}))


def test_other_dims(interpreted):
    """512 channels are four scales; a rope part of 8 channels is one row of 16 bytes."""
    check(interpreted, Case(SCORE, **{**PACKED, "width": 8}))


def test_every_code_is_read_by_its_bits(interpreted):
    """All 254 finite codes through the kernel that has no conversion of its own: a key of one code gives it back."""
    latents, codes = interpreted(_one_key_a_code)
    assert torch.equal(latents, codes)


def _one_key_a_code():
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    packed = torch.zeros(len(codes), 1, 656, dtype=torch.uint8)
    packed[:, :, :512] = codes[:, None, None]
    packed[:, :, 512:528] = torch.ones(4).view(torch.uint8)
    q = torch.zeros(len(codes), 1, 1, 576, dtype=torch.float16)
    out = gpu_latent.attend_latent(q[..., :512], q[..., 512:], packed, None, None, None, [], [], [], "score: s")
    return out[:, 0, 0, ::100], codes.view(torch.float8_e4m3fn).half()[:, None].expand(-1, 6)


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize("family", ["mla", "tokens"])
@pytest.mark.parametrize("heads", [16, 128])
def test_every_architecture(arch, family, heads):
    """From sm_89 on by the target's conversion; before, and for AMD, whose e4m3 is another, by bits."""
    machine = MACHINES[arch]
    choice = configure(family, Shape(4, heads, 8192, 512, 64, 2, packed=True), 0, machine)
    kernel = compile_latent(LIVE, choice, 512, 64, torch.bfloat16, arch, paged=True, packed=True)
    text = kernel.amdgcn or kernel.ptx
    assert ("e4m3x2" in text) == (fp8.conversion(machine) == 2) == (arch in ("sm_89", "sm_90", "sm_100"))
    assert arch != "gfx942" or "cvt_f32_fp8" not in text and "cvt_pk_f32_fp8" not in text
    assert 0 < kernel.shared <= machine.shared_memory and kernel.spills <= (180 if arch == "sm_100" else 40)


def test_which_kernel_takes_packed_latents():
    """Hopper's, where all keys are seen and rows lie as they were packed; for chosen tokens and elsewhere the plain one."""
    case = Case(SCORE, batch=2, **PACKED)
    for chosen, family in ((0, "packed_exchange"), (9, "tokens")):
        given = operands(case.but(chosen=chosen))[0]
        assert gpu_latent.choose(LIVE, given, MACHINES["sm_90"]).family == family
        assert gpu_latent.choose(LIVE, given, MACHINES["sm_100"]).family == family.replace("packed_exchange", "mla")
        assert gpu_latent.shape_of(given).key_bytes == 656
    given = operands(case)[0]
    apart = torch.nn.functional.pad(given.latent, (0, 16))[..., :656]
    assert gpu_latent.choose(LIVE, replace(given, latent=apart), MACHINES["sm_90"]).family == "mla"
    padding = AttentionSpec.parse(CASES["padding"].spec)
    assert gpu_latent.choose(padding, given, MACHINES["sm_90"]).family == "mla"


@pytest.mark.parametrize("heads", [16, 128])
@pytest.mark.parametrize("shared", [False, True])
def test_the_hopper_kernel_unpacks_in_registers(heads, shared):
    """Codes in words of 16 bytes, by the target's conversion, into 16-byte stores; what loads spills a few scalars."""
    choice = Choice("packed_exchange", 64, 64, 4, 2)
    choice = line(LIVE, choice.family, 4, heads, 1, 8192, MACHINES["sm_90"]) if shared else choice
    kernel = compile_latent(LIVE, choice, 512, 64, torch.bfloat16, "sm_90", paged=True, heads=heads)
    assert kernel.shared <= MACHINES["sm_90"].shared_memory and kernel.registers * 384 <= 65536
    assert len(re.findall(r"ld\.global(?:\.\w+)*\.v4\.b32", kernel.ptx)) == 24 and "cvt.rn.f16x2.e4m3x2" in kernel.ptx
    assert kernel.ptx.count("prefetch.global.L2") == 8
    if not kernel.sass:
        pytest.skip("no disassembler")
    unpacks = [piece for piece in re.split(r"\n\.L_\w+:", kernel.sass) if piece.count("E4M3") > 16]
    assert unpacks and all(len(re.findall(r"\b(?:STL|LDL)\b", piece)) <= 20 for piece in unpacks)
    assert sum(piece.count("STS.128") for piece in unpacks) >= 32
