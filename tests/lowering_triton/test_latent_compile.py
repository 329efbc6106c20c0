"""The latent kernels with DeepSeek's dims, compiled for every architecture without a GPU; what they became on sm_90."""

import re

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu_latent
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.compile import compile_latent
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.mla.config import Shape, configure
from mla_compiler.lowering.mla.exchange_launch import line
from mla_compiler.lowering.mla.hopper_launch import serves

from .latents import Case, operands
from .test_compile import PRODUCT
from .test_latent import CASES

LIVE = AttentionSpec.parse("score: 0.07*s; hi: T0[b] + i + 1")
H100 = MACHINES["sm_90"]


def compiled(family, arch, heads=128, dtype=torch.bfloat16, spec=LIVE, paged=False, dims=(512, 64), batch=4):
    choice = configure(family, Shape(batch, heads, 8192, *dims, dtype.itemsize), spec.kv_splits, MACHINES[arch])
    return compile_latent(spec, choice, *dims, dtype, arch, paged)


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize("family", ["mla", "tokens"])
@pytest.mark.parametrize("heads", [16, 128])
def test_every_architecture(arch, family, heads):
    kernel = compiled(family, arch, heads, paged=True)
    product = PRODUCT[arch] if arch == "gfx942" or (heads > 16 and arch in ("sm_90", "sm_100")) else "mma.sync"
    assert product in (kernel.amdgcn or kernel.ptx)
    assert kernel.registers > 0 and 0 < kernel.shared <= MACHINES[arch].shared_memory
    assert arch == "gfx942" or kernel.spills <= 16


@pytest.mark.parametrize("family", ["mla", "tokens"])
def test_float32_is_float32(family):
    kernel = compiled(family, "sm_90", 16, torch.float32)
    assert kernel.spills == 0 and "tf32" not in kernel.ptx and "fma.rn.f32" in kernel.ptx


@pytest.mark.parametrize("arch", MACHINES)
def test_merge_compiles(arch):
    from mla_compiler.lowering.compile import build
    from mla_compiler.lowering.mla.merge import merge

    types = {"parts": "*fp32", "lse": "*fp32", "out": "*bf16"}
    assert build(merge, types, {"R": 512, "BLOCK_R": 128}, arch, 4, 2).asm["llir"]


def test_a_tile_of_latents_is_one_buffer_for_both_products():
    """Two stages of one [32, 512] tile, read as it is for the sums and transposed for the scores; nothing copies it."""
    ttgir = compiled("mla", "sm_90").ttgir
    rings = re.findall(r"(%\w+) = ttg.local_alloc : \(\) -> !ttg.memdesc<2x32x512xbf16", ttgir)
    assert len(rings) == 1
    tiles = re.findall(rf"(%\w+) = ttg.memdesc_index {rings[0]}\[%l_\w+\]", ttgir)
    turned = [tile for tile in tiles if re.search(rf"memdesc_trans {tile} ", ttgir)]
    assert turned and all(re.search(rf"warp_group_dot %\w+, {tile},", ttgir) for tile in turned)


def hopper(spec=LIVE, **changes):
    return compiled("mla_hopper", "sm_90", spec=spec, **changes)


@pytest.mark.parametrize("batch", [4, 128])
@pytest.mark.parametrize("paged", [False, True])
def test_the_hopper_kernel_spills_nothing(batch, paged):
    kernel = hopper(batch=batch, paged=paged)
    assert kernel.spills == 0 and kernel.shared <= H100.shared_memory and kernel.registers * 384 <= 65536
    assert "wgmma.mma_async" in kernel.ptx and "cp.async.bulk.tensor.3d" in kernel.ptx
    assert kernel.ptx.count("setmaxnreg.inc.sync.aligned.u32 \t240") == 1


def test_the_leader_computes_weights_while_sums_are_running():
    """In its loop all products of a tile are begun before the first wait, which leaves one group, the sums, unfinished."""
    kernel = hopper()
    if not kernel.sass:
        pytest.skip("no disassembler")
    loops = [piece for piece in re.split(r"\n\.L_\w+:", kernel.sass) if piece.count("HGMMA") == 38]
    assert len(loops) == 2                                          # masked and whole tiles
    for piece in loops:
        assert piece.count("WARPGROUP.DEPBAR") == 2 and "MUFU.EX2" in piece and not re.search(r"\b(STL|LDL)\b", piece)
        assert piece.rindex("HGMMA") < piece.index("WARPGROUP.DEPBAR") < piece.index("MUFU.EX2")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "residue" not in case.spec])
def test_every_hull_compiles(name):
    kernel = hopper(AttentionSpec.parse(CASES[name].spec), dtype=torch.float16)
    assert kernel.name == "mla_hopper" and kernel.source.startswith('"""out[b,h,i,:]') and kernel.spills == 0


@pytest.mark.parametrize("batch", [4, 128])
@pytest.mark.parametrize("paged", [False, True])
def test_the_hopper_kernel_gathers_chosen_tokens(batch, paged):
    """16 bytes a thread into the ring; copies done, fenced by all threads, then announced by one."""
    kernel = compiled("tokens_hopper", "sm_90", batch=batch, paged=paged)
    assert kernel.spills == 0 and kernel.shared <= H100.shared_memory and kernel.registers * 384 <= 65536
    assert "wgmma.mma_async" in kernel.ptx and kernel.ptx.count("cp.async.cg.shared.global") == 18
    after = kernel.ptx.split("cp.async.wait_group \t2;")[1]
    assert re.findall(r"bar\.sync|fence\.proxy\.async|mbarrier\.arrive", after)[:4] == [
        "bar.sync", "fence.proxy.async", "bar.sync", "mbarrier.arrive"]


@pytest.mark.parametrize("family", ["mla_exchange", "tokens_exchange"])
@pytest.mark.parametrize("batch", [0, 1, 128])
def test_the_exchange_kernels_work_in_registers(family, batch):
    """Every product is begun without waiting for the one before; what a loop spills is a few scalars. batch 0: without a line.

    Odd weights are computed between the beginning of a product and its wait.
    """
    choice = line(family, batch, 1, 128, 8192, H100) if batch else Choice(family, 64, 64, 4, 2)
    kernel = compile_latent(LIVE, choice, 512, 64, torch.bfloat16, "sm_90", paged=True)
    assert kernel.shared <= H100.shared_memory and kernel.registers * 384 <= 65536
    if not kernel.sass:
        pytest.skip("no disassembler")
    loops = [piece for piece in re.split(r"\n\.L_\w+:", kernel.sass) if "HGMMA" in piece]
    assert [piece.count("HGMMA") for piece in loops] == [16, 4, 16, 4, 4, 4, 16, 4, 16, 4, 4]
    assert all(piece.count("WARPGROUP.DEPBAR") <= 1 for piece in loops)
    assert sum(len(re.findall(r"\b(STL|LDL)\b", piece)) for piece in loops) <= (20 if family == "tokens_exchange" else 4)
    under = next(piece for piece in loops if "DEPBAR" not in piece and "MUFU.EX2" in piece)
    assert under.index("HGMMA") < under.index("MUFU.EX2")


@pytest.mark.parametrize("dims", [(512, 128), (256, 64), (128, 16), (384, 24)], ids=str)
def test_other_dims(dims):
    kernel = hopper(dims=dims)
    assert kernel.spills == 0 and kernel.shared <= H100.shared_memory


@pytest.mark.parametrize("layout, chosen, family", [
    ("contiguous", 0, "mla_hopper"), ("one buffer", 0, "mla_hopper"), ("strided", 0, "mla"), ("one buffer", 9, "tokens_hopper"),
    ("strided", 9, "tokens"),
])
def test_what_tma_cannot_address_takes_the_plain_kernel(layout, chosen, family):
    case = Case("score: s", layout=layout, chosen=chosen, rank=512, width=64, batch=2, dtype=torch.bfloat16)
    assert gpu_latent.choose(LIVE, operands(case)[0], H100).family == family


def test_what_the_hopper_kernel_leaves_to_the_plain_one():
    assert serves(LIVE, 512, 64, torch.bfloat16, H100)
    assert not serves(LIVE, 512, 64, torch.float32, H100) and not serves(LIVE, 510, 64, torch.bfloat16, H100)
    assert not serves(LIVE, 64, 16, torch.bfloat16, H100) and not serves(LIVE, 512, 64, torch.bfloat16, MACHINES["sm_100"])
    assert not serves(AttentionSpec.parse(CASES["padding"].spec), 512, 64, torch.bfloat16, H100)
