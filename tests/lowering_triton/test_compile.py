"""Every kernel compiles for every architecture, without a GPU, to tensor core instructions; on sm_90 nothing spills."""

import re

import pytest
import torch

from mla_compiler.errors import OptionError
from mla_compiler.ir import AttentionSpec, Site
from mla_compiler.lowering.build import build
from mla_compiler.lowering.compile import compile_kernel, compile_spec, kernels_of_sites
from mla_compiler.lowering.compile_beside import compile_listing
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.select import candidates, choose

from .attentions import CASES

CAUSAL = AttentionSpec.parse("score: 0.125*s; hi: i + 1; group: 4")
PRODUCT = {"sm_80": "mma.sync", "sm_89": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}


def compiled(spec, queries, dim, arch, dtype=torch.bfloat16, value_dim=None):
    choice = choose(spec, 1, 8 * spec.group, queries, 8192, dim, value_dim or dim, dtype, MACHINES[arch])
    return compile_kernel(spec, choice, dim, value_dim or dim, dtype, arch)


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize("queries", [1, 4096])
def test_every_architecture(arch, queries):
    kernel = compiled(CAUSAL, queries, 128, arch)
    code = kernel.amdgcn or kernel.ptx
    assert PRODUCT[arch if queries > 1 or arch in ("sm_90", "gfx942") else "sm_80"] in code
    assert kernel.registers > 0 and 0 < kernel.shared <= MACHINES[arch].shared_memory
    assert ("tt.dot" in kernel.ttir or "hopper" in kernel.name) and "ttg.num-warps" in kernel.ttgir and kernel.llir
    assert arch != "sm_90" or kernel.spills == 0 or kernel.name == "hopper"
    assert bool(kernel.cubin) == bool(kernel.sass) == (arch != "gfx942")


@pytest.mark.parametrize("dims", [(64, 64), (192, 128), (256, 256)], ids=str)
@pytest.mark.parametrize("queries", [1, 4096])
def test_nothing_spills_on_hopper(dims, queries):
    kernel = compiled(CAUSAL, queries, dims[0], "sm_90", value_dim=dims[1])
    assert kernel.spills == 0 or "hopper" in kernel.name          # test_hopper.py and test_decode_hopper.py look closer


@pytest.mark.parametrize("name", ["documents", "mask, summarised"])
def test_nothing_spills_under_a_mask(name):
    for queries in (1, 4096):
        kernel = compiled(AttentionSpec.parse(CASES[name].spec), queries, 128, "sm_90")
        assert kernel.spills == 0 or kernel.name == "hopper"      # test_hopper.py looks closer


def unwritten(sass: str) -> list[str]:
    """Instructions that read a uniform register which nothing before them has written, matrix products apart."""
    written, found = set(), []
    for line in sass.splitlines():
        match = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)\s+(.*?);", line)
        if not match or match[1].startswith("HGMMA"):
            continue
        first, *rest = (part.strip() for part in re.sub(r"^(UP\d, )+", "", match[2]).split(","))
        target = re.fullmatch(r"UR(\d+)", first)
        read = {int(at) for at in re.findall(r"\bUR(\d+)", ",".join(rest if target else [first, *rest]))}
        found += [line.strip()] if read - written else []
        if target:
            width = 4 if ".128" in match[1] else 2 if ".64" in match[1] or "WIDE" in match[1] else 1
            written |= set(range(int(target[1]), int(target[1]) + width))
    return found


@pytest.mark.parametrize("dims", [(64, 16), (32, 16), (64, 32), (128, 16), (16, 64), (192, 128)], ids=str)
def test_the_assembler_reads_nothing_unwritten(dims):
    """What choice.padded_value is there for."""
    assert unwritten(compiled(CAUSAL, 4096, dims[0], "sm_90", torch.float16, dims[1]).sass) == []


def test_float32_is_float32():
    kernel = compiled(CAUSAL, 4096, 128, "sm_90", torch.float32)
    assert kernel.spills == 0 and "tf32" not in kernel.ptx and "fma.rn.f32" in kernel.ptx


def test_offsets_are_64_bit():
    """Rows of K are addressed by a 64-bit product of position and stride."""
    kernel = compiled(CAUSAL, 4096, 64, "sm_80")
    assert "arith.extsi" in kernel.ttir and "tensor<128x64xi64>" in kernel.ttir


@pytest.mark.parametrize("arch", MACHINES)
def test_summarize_compiles(arch):
    from mla_compiler.lowering.summary.kernel import summarize

    types = {"mask": "*u1", "hull": "*i32", "classes": "*i8"}
    assert build(summarize, types, {"R": 64, "W": 2}, arch, 4, 2).asm["llir"]


@pytest.mark.parametrize("text", ["", "; kv_splits: 3", "; sink: F0[h]"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_decode_loads_16_bytes_at_once_and_never_waits_for_the_last(arch, text):
    spec = AttentionSpec.parse(str(CAUSAL) + text)
    for queries in (1, 8, 16):
        found = candidates(spec, 1, 32, queries, 8192, 128, 128, torch.bfloat16, MACHINES[arch])
        packed = next(choice for choice in found if choice.family == "decode")
        kernel = compile_kernel(spec, packed, 128, 128, torch.bfloat16, arch)
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global .*?, (0x10|0x8|0x4),", kernel.ptx)
        assert set(copies) == {"0x10"}
        waits = [int(groups) for groups in re.findall(r"cp\.async\.wait_group\s+(\d+)", kernel.ptx)]
        assert max(waits) >= 2 and kernel.spills == 0


def test_the_kernels_of_a_report_come_once_each():
    shape = "q [1, 8, 4096, 64], k [1, 2, 4096, 64], v [1, 2, 4096, 64]"
    site = Site(0, "attend", status="fused", spec=str(CAUSAL), shape=shape, dtype="bfloat16", kernel="cpu", config="hull")
    step = shape.replace("8, 4096", "8, 1")
    other = Site(1, "attend", status="fused", spec=str(CAUSAL), shape=step, dtype="bfloat16")
    wide = Site(2, "attend", status="fused", spec=str(CAUSAL), shape=shape.replace("64]", "512]"), dtype="bfloat16")
    latents = shape.replace("k [1, 2", "latent [1").replace("v [1, 2", "rope [1")
    by_heads = Site(3, "attend", status="fused", spec=str(CAUSAL), shape=latents, dtype="bfloat16", latent="expanded, dearer")
    found = kernels_of_sites([site, site, other, wide, by_heads], "sm_90")
    assert [kernel.name for kernel in found] == ["hopper", "decode_hopper"]
    assert all(kernel.source and kernel.ptx for kernel in found)


def test_without_a_shape_both_families_are_compiled():
    assert [kernel.name for kernel in compile_spec(CAUSAL, 64, 64, torch.float16, "sm_90")] == ["hopper", "decode_hopper"]


def test_an_unknown_architecture_is_an_error():
    with pytest.raises(OptionError, match="sm_70"):
        compile_spec(CAUSAL, 64, 64, torch.float16, "sm_70")


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize("policy", ["threshold=0.1", "error_budget=0.01", "pages.share=0.05+threshold=0.1"])
def test_what_leaves_tiles_out_compiles_for_every_architecture(arch, policy):
    spec = AttentionSpec.parse(f"{CAUSAL}; sparsity: {policy}")
    kernels = [compiled(spec, queries, 128, arch) for queries in (4096, 1)]
    assert PRODUCT[arch] in (kernels[0].amdgcn or kernels[0].ptx)
    if spec.sparsity.selects:
        choice = choose(spec, 1, 32, 4096, 4096, 128, 128, torch.bfloat16, MACHINES[arch])
        kernels.append(compile_listing(spec, choice, 128, torch.bfloat16, arch))
    for kernel in kernels:
        assert kernel.registers > 0 and kernel.shared <= MACHINES[arch].shared_memory
        small = 8 * (kernel.name == "decode")
        assert kernel.spills <= small or arch != "sm_90" or kernel.name == "hopper"     # test_hopper_threshold.py looks closer
