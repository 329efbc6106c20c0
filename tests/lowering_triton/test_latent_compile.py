"""The latent kernels with DeepSeek's dims, compiled for every architecture without a GPU; what they became on sm_90."""

import re
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu_latent, machine
from mla_compiler.lowering.build import build
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.compile_latent import compile_latent
from mla_compiler.lowering.disassembly import sass
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.mla.config import Shape, configure, merging
from mla_compiler.lowering.mla.exchange_launch import candidates, line, serves, whole
from mla_compiler.lowering.mla.merge import merge
from mla_compiler.lowering.select_latent import choose_latent

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
@pytest.mark.parametrize("splits", [3, 16, 33])
def test_merge_compiles(arch, splits):
    """On Hopper all parts that are read at once are on their way before one is added, beside the kernel before it."""
    block_p, warps = merging(splits, 512)
    constants = {"R": 512, "BLOCK_R": 512, "BLOCK_P": block_p, "CHOSEN": False}
    types = {"parts": "*fp32", "lse": "*fp32", "cuts": "*i64", "out": "*bf16"}
    plain = {**constants, "BLOCK_H": 0, "EARLY": False, "cuts": None}
    assert build(merge, types, plain, arch, warps, 2).asm["llir"]
    if arch == "sm_90":
        early = build(merge, {**types, "parts": "*bf16"}, {**constants, "BLOCK_H": 64, "EARLY": True}, arch, warps, 2)
        assert early.asm["ptx"].index("griddepcontrol.wait") < early.asm["ptx"].index("ld.global")
        wide = r"\bLDG\.E\.128\b" if warps == 2 else r"\bLDG\.E\.64\b"
        together = [len(re.findall(wide, run)) for run in re.split(r"\b(?:FMUL|FFMA|BRA)\b", sass(early.asm["cubin"]))]
        assert max(together) >= min(block_p, 16) and 4 in together


def test_a_tile_of_latents_is_one_buffer_for_both_products():
    """Two stages of one [32, 512] tile, read as it is for the sums and transposed for the scores; nothing copies it."""
    ttgir = compiled("mla", "sm_90").ttgir
    rings = re.findall(r"(%\w+) = ttg.local_alloc : \(\) -> !ttg.memdesc<2x32x512xbf16", ttgir)
    assert len(rings) == 1
    tiles = re.findall(rf"(%\w+) = ttg.memdesc_index {rings[0]}\[%l_\w+\]", ttgir)
    turned = [tile for tile in tiles if re.search(rf"memdesc_trans {tile} ", ttgir)]
    assert turned and all(re.search(rf"warp_group_dot %\w+, {tile},", ttgir) for tile in turned)


def hopper(spec=LIVE, family="mla_exchange", dims=(512, 64), dtype=torch.bfloat16, **changes):
    return compile_latent(spec, Choice(family, 64, 64, 4, 2, **changes), *dims, dtype, "sm_90")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "residue" not in case.spec])
def test_every_hull_compiles(name):
    kernel = hopper(AttentionSpec.parse(CASES[name].spec), dtype=torch.float16)
    assert kernel.name == "mla_exchange" and kernel.source.startswith('"""out[b,h,i,:]')
    spec, choice = AttentionSpec.parse(CASES[name].spec), whole("mla_narrow", 5, 2)
    few = compile_latent(spec, choice, 512, 64, torch.float16, heads=5)
    assert few.name == "mla_narrow" and few.shared <= H100.shared_memory


def test_queries_and_results_travel_by_tma():
    """Results and parts leave through shared memory at once; by hand only a log2-sum-exp a row."""
    kernel = hopper()
    assert "st.global" not in kernel.ptx and kernel.ptx.count("cp.async.bulk.tensor.4d.global.shared") == 2
    assert kernel.ptx.count("cp.async.bulk.tensor.4d.shared") == 9
    parts = hopper(kv_splits=4).ptx
    assert parts.count("cp.async.bulk.tensor.2d.global.shared") == 2 and parts.count("st.global") == 2
    assert "griddepcontrol.launch_dependents" in kernel.ptx


@pytest.mark.parametrize("family", ["mla_exchange", "tokens_exchange"])
@pytest.mark.parametrize("batch", [0, 1, 128])
def test_the_exchange_kernels_work_in_registers(family, batch):
    """Every product is begun without waiting for the one before; a loop stores and reloads few scalars, between two products of
    chosen tokens two at most. batch 0: without a line.

    Odd weights are computed between the beginning of a product and its wait.
    """
    choice = line(LIVE, family, batch, 128, 1, 8192, H100) if batch else Choice(family, 64, 64, 4, 2)
    kernel = compile_latent(LIVE, choice, 512, 64, torch.bfloat16, "sm_90", paged=True)
    assert kernel.shared <= H100.shared_memory and kernel.registers * 384 <= 65536
    if not kernel.sass:
        pytest.skip("no disassembler")
    loops = [piece for piece in re.split(r"\n\.L_\w+:", kernel.sass) if "HGMMA" in piece]
    assert [piece.count("HGMMA") for piece in loops] == [16, 4, 16, 4, 4, 4, 16, 4, 16, 4, 4]
    assert all(piece.count("WARPGROUP.DEPBAR") <= 1 for piece in loops)
    moved = [len(re.findall(rf"\b{way}\b", piece)) for way in ("STL", "LDL") for piece in loops]
    assert max(moved) <= 2 and (family == "tokens_exchange" or sum(moved) <= 4)
    under = next(piece for piece in loops if "DEPBAR" not in piece and "MUFU.EX2" in piece)
    assert under.index("HGMMA") < under.index("MUFU.EX2")


@pytest.mark.parametrize("heads", [16, 32])
@pytest.mark.parametrize("batch", [0, 16])
def test_few_rows_work_in_registers(heads, batch):
    """Keys are the rows of every product: so many as 64 keys have by 576 columns and by 512. Nothing is spilled."""
    choice = replace(whole("mla_narrow", heads, 1), kv_splits=4)
    if batch:
        choice = line(LIVE, "mla_narrow", batch, heads, 1, 8192, H100)
    kernel = compile_latent(LIVE, choice, 512, 64, torch.bfloat16, "sm_90", paged=True, heads=heads)
    products = re.findall(r"wgmma.mma_async.sync.aligned.(m64n\d+k16)", kernel.ptx)
    assert products == [f"m64n{heads}k16"] * (576 // 16 + 8 * 4)
    assert kernel.shared <= H100.shared_memory and kernel.registers * 256 <= 65536 and kernel.spills <= 0
    if not kernel.sass:
        pytest.skip("no disassembler")
    loops = [piece for piece in re.split(r"\n\.L_\w+:", kernel.sass) if "HGMMA" in piece]
    assert [piece.count("HGMMA") for piece in loops] == [16, 4, 16, 32]
    assert [piece.count("WARPGROUP.DEPBAR") for piece in loops] == [0, 0, 1, 2]


@pytest.mark.parametrize("dims", [(256, 64), (128, 16), (384, 24)], ids=str)
def test_other_dims(dims):
    assert hopper(dims=dims).shared <= H100.shared_memory
    assert compile_latent(LIVE, whole("mla_narrow", 16, 1), *dims, torch.bfloat16, heads=16).shared <= H100.shared_memory


@pytest.mark.parametrize("layout, chosen, family", [
    ("contiguous", 0, "mla_narrow"), ("one buffer", 0, "mla_narrow"), ("strided", 0, "mla"),
    ("one buffer", 9, "tokens_exchange"), ("strided", 9, "tokens"),
])
def test_what_tma_cannot_address_takes_the_plain_kernel(layout, chosen, family):
    case = Case("score: s", layout=layout, chosen=chosen, rank=512, width=64, batch=2, dtype=torch.bfloat16)
    assert gpu_latent.choose(LIVE, operands(case)[0], H100).family == family


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("heads, tokens, family", [
    (128, None, "mla_exchange"), (16, None, "mla_narrow"), (128, 2048, "tokens_exchange")])
def test_while_a_graph_is_compiled_tensors_have_no_addresses(heads, tokens, family, monkeypatch):
    monkeypatch.setattr(machine, "machine_of", lambda _: H100)
    with FakeTensorMode():
        found = choose_latent(LIVE, (4, heads, 1, 512), (4, 8192, 64), tokens, torch.bfloat16, torch.device("cuda"))
    assert found[0] == family and found[1]


def test_what_the_hopper_kernel_leaves_to_the_plain_one():
    shape = Shape(1, 16, 100, 512, 64, 2)
    assert serves(LIVE, shape, torch.bfloat16, H100)
    assert not serves(LIVE, shape, torch.float32, H100) and not serves(LIVE, shape, torch.bfloat16, MACHINES["sm_100"])
    others = [replace(shape, **change) for change in ({"rank": 510}, {"rank": 64}, {"rope": 128})]
    assert not any(serves(LIVE, other, torch.bfloat16, H100) for other in others)
    assert not serves(AttentionSpec.parse(CASES["padding"].spec), shape, torch.bfloat16, H100)


@pytest.mark.parametrize("chosen, family", [(0, "mla"), (9, "tokens")])
def test_a_long_rope_part_takes_the_plain_kernel(chosen, family):
    """Its queries would not lie where weights will."""
    case = Case("score: s", chosen=chosen, rank=512, width=128, batch=2, dtype=torch.bfloat16)
    assert gpu_latent.choose(LIVE, operands(case)[0], H100).family == family


def test_who_shares_a_line_of_tiles():
    """Sequences whose rows see nearly the same keys; a number of parts that was asked for is kept."""
    shape = Shape(4, 128, 8192, 512, 64, 2)
    assert candidates(LIVE, "mla_exchange", (4, 128, 1), shape, H100)[0].programs == 4 * 16 * 2   # of 66 blocks, two boxes
    assert not candidates(LIVE, "mla_exchange", (4, 128, 17), shape, H100)[0].programs
    of_heads = AttentionSpec.parse("score: s; lo: i - 9*h")
    assert not any(c.programs for c in candidates(of_heads, "mla_exchange", (4, 128, 1), shape, H100))
    asked = AttentionSpec.parse(f"{LIVE}; kv_splits: 5")
    assert [(c.programs, c.kv_splits) for c in candidates(asked, "mla_exchange", (4, 128, 1), shape, H100)] == [(0, 5)]


MEASURED = {
    (128, 1, 8192): {"parts": 21.5, "line": 23.9}, (128, 64, 4096): {"parts": 127.5, "line": 134.6},
    (128, 128, 4096): {"parts": 248.9, "line": 252.7}, (128, 128, 8192): {"parts": 469.5, "line": 474.8},
    (16, 1, 8192): {"parts": 18.9, "line": 20.8}, (16, 1, 32768): {"parts": 31.3, "line": 35.9},
    (16, 128, 4096): {"parts": 209.5, "line": 215.6}, (16, 128, 8192): {"parts": 401.5, "line": 409.5},
}
"""us by (heads, B, keys): one sequence, or as many as processors or nearly; one H100, equal lengths (BENCHMARKS.md)."""


@pytest.mark.parametrize("point", MEASURED, ids=str)
def test_the_faster_form_is_taken_where_lengths_do_not_matter(point):
    heads, batch, keys = point
    first = candidates(LIVE, "mla_exchange", (batch, heads, 1), Shape(batch, heads, keys, 512, 64, 2), H100)[0]
    assert ("line" if first.programs else "parts") == min(MEASURED[point], key=MEASURED[point].__getitem__)
    assert first.kv_splits == 1 or batch == 1


@pytest.mark.parametrize("heads, batch", [(128, 4), (128, 16), (16, 64)])
def test_sequences_share_a_line_where_lengths_may_differ(heads, batch):
    """Of 16, one of 8192 keys and 15 of 512: 46.6 us, in 4 parts 67.5."""
    assert candidates(LIVE, "mla_exchange", (batch, heads, 1), Shape(batch, heads, 8192, 512, 64, 2), H100)[0].programs
