"""The Gluon kernel: what it compiles to on sm_90; on a Hopper GPU its numerics, strides and schedules."""

import dataclasses
import re

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen, gpu, reference, tma
from mla_compiler.lowering.choice import padded
from mla_compiler.lowering.compile import compile_kernel
from mla_compiler.lowering.hopper.config import columns, configure, registers, section, serves
from mla_compiler.lowering.machine import MACHINES

from .attentions import CASES
from .cases import LAYOUTS, Case, errors, operands

H100 = MACHINES["sm_90"]
SERVED = [name for name, case in CASES.items() if serves(AttentionSpec.parse(case.spec), 64, 64, torch.bfloat16, H100)]
DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (72, 72), (16, 16)]
ON_A_GPU = [("documents, bounded", {}), ("mask, summarised", {"overlap": True}), ("sinks", {})]
DIMS_ON_A_GPU = [
    ((96, 96), {"persistent": False}), ((128, 128), {"ping_pong": True, "overlap": True}), ((192, 128), {}),
    ((256, 256), {"ping_pong": False, "overlap": True}),
]


def kernel_of(name, dims=(128, 128), dtype=torch.bfloat16):
    spec = AttentionSpec.parse(CASES[name].spec)
    return compile_kernel(spec, configure(spec, *dims, H100), *dims, dtype, "sm_90")


def steps(sass):
    """The straight pieces of code that multiply and take exponentials, the shortest first.

    Each warpgroup has one for the first tile of an item, one for tiles at an edge, one for those seen whole.
    """
    pieces = [piece for piece in re.split(r"\n\.L_\w+:", sass) if "HGMMA" in piece and "MUFU.EX2" in piece]
    return sorted(pieces, key=lambda piece: piece.count("\n"))


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_the_loop_multiplies_from_registers_and_spills_nothing(dims):
    kernel = kernel_of("causal", dims)
    if not kernel.sass:
        pytest.skip("no disassembler")
    spec = AttentionSpec.parse(CASES["causal"].spec)
    choice = configure(spec, *dims, H100)
    warpgroups, (_, most, few) = choice.block_m // 64, registers(choice)
    assert kernel.shared <= H100.shared_memory and kernel.registers * 128 * (warpgroups + 1) <= 65536
    assert kernel.ptx.count(f"setmaxnreg.inc.sync.aligned.u32 \t{most};") == warpgroups - 1
    assert f"setmaxnreg.dec.sync.aligned.u32 \t{few};" in kernel.ptx
    assert "cp.async.bulk.tensor.4d" in kernel.ptx and "wgmma.wait_group.sync.aligned 1;" in kernel.ptx
    found = steps(kernel.sass)
    behind_a_label = dims == (256, 256)                 # the exponentials of one first tile, as triton 3.7 has it
    assert 3 * warpgroups - behind_a_label <= len(found) <= 3 * warpgroups
    for at, piece in enumerate(found[: 2 * warpgroups]):
        # no product is awaited for the compiler's sake; with overlap the last wait is behind a branch
        assert piece.count("WARPGROUP.DEPBAR") == (1 if choice.overlap else 2)
        reloads = 1 if sum(dims) > 256 and at >= warpgroups else 0        # of a number, in a first tile or one at an edge
        assert "STL" not in piece and piece.count("LDL") <= reloads
        assert not re.search(r"\b(STS|STSM|LDS|LDSM)\b", piece)   # the weights never go through shared memory
    # a warp jumps over the products of sums whose maxima stay: two rows a thread, no number is moved
    jumps = re.findall(r"VOTE\.ANY.*?BRA (.*?)\n\.L_", kernel.sass, re.DOTALL)
    skipped = [re.findall(r"FMUL (R\d+), (R\d+), (R\d+)", jump) for jump in jumps]
    assert any(len(of) == padded(dims[1]) // 2 and len({by for _, _, by in of}) == 2 and all(to == x for to, x, _ in of)
               for of in skipped)


@pytest.mark.parametrize("dims", [(96, 96), (128, 128), (192, 128)], ids=str)
def test_weights_are_computed_before_the_values_are_awaited(dims):
    """With `overlap`: all of them in the loop over whole tiles, the shortest step of a warpgroup, and most in the steps of an
    item's first tiles and of its edges, where values may be made clean behind a barrier."""
    spec = AttentionSpec.parse(CASES["causal"].spec)
    choice = dataclasses.replace(configure(spec, *dims, H100), overlap=True)
    kernel = compile_kernel(spec, choice, *dims, torch.bfloat16, "sm_90")
    if not kernel.sass:
        pytest.skip("no disassembler")
    pieces = (re.search(r"gsb0, 0x1\b(.*?)gsb0, 0x0\b", piece, re.DOTALL) for piece in kernel.sass.split("HGMMA"))
    beside = [(len(piece[1]), piece[1].count("MUFU.EX2")) for piece in pieces if piece]
    assert len(beside) == 3 * choice.block_m // 64
    for at in range(0, len(beside), 3):
        assert min(beside[at:at + 3])[1] >= choice.block_n // 2
        assert min(count for _, count in beside[at:at + 3]) >= choice.block_n * 3 // 8


@pytest.mark.parametrize("name", ["documents, bounded", "mask, summarised"])
def test_whole_tiles_spill_nothing_where_others_have_a_residue(name):
    kernel = kernel_of(name)
    if not kernel.sass:
        pytest.skip("no disassembler")
    for piece in steps(kernel.sass)[:2]:
        assert piece.count("WARPGROUP.DEPBAR") == 2 and "STL" not in piece and "LDL" not in piece


@pytest.mark.parametrize("name", SERVED)
def test_every_attention_compiles(name):
    kernel = kernel_of(name, dtype=torch.float16)
    assert kernel.name == "hopper" and "wgmma.mma_async" in kernel.ptx and kernel.source.startswith('"""out[b,h,i,:]')


def test_a_constant_scale_joins_the_subtraction():
    plain, shifted = (codegen.source(AttentionSpec.parse(text), "hopper") for text in ("score: 0.25*s", "score: 0.25*s + h"))
    assert "SCALE = gl.constexpr(0.36" in plain and "SCALE = gl.constexpr(0.0)" in shifted
    assert "SCALE = gl.constexpr(0.0)" in codegen.source(AttentionSpec.parse("score: -s"), "hopper")


@pytest.mark.parametrize("dim", range(8, 257, 8))
def test_columns_hold_a_row(dim):
    wide, rest = columns(dim)
    assert wide >= 16 and wide & (wide - 1) == 0 == rest & (rest - 1) and dim <= wide + rest <= padded(dim)


def test_a_section_divides_the_heads():
    assert section(32, 4, 2048, 256) == 32 and section(32, 4, 32768, 256) == 4 and section(30, 1, 1 << 20, 512) == 1
    assert all(heads % section(heads, 1, keys, 256) == 0 for heads in range(1, 40) for keys in (100, 8192, 65536))


def test_tma_addresses_multiples_of_16_bytes():
    x = torch.zeros(2, 4, 8, 64, dtype=torch.bfloat16)
    assert tma.describable(x, x.transpose(1, 2), x[:, :1].transpose(1, 2), x[..., :32])
    for bad in (x.transpose(2, 3), x[..., 1:], x[..., ::2], x[:, :, :1].expand(2, 4, 8, 64), x.new_zeros(2, 4, 8, 60)):
        assert not tma.describable(x, bad)


# ---------------------------------------------------------------------------------------------------------------- GPU


def check(case: Case) -> None:
    error, formula = errors(case, "cuda")
    assert error <= 2 * formula, (error, formula, case)


@pytest.fixture
def hopper_gpu():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")


def chosen(case: Case, **changes) -> Case:
    found = configure(AttentionSpec.parse(case.spec), case.head_dim, case.value_dim, H100)
    return case.but(choice=dataclasses.replace(found, **changes))


@pytest.mark.gpu
@pytest.mark.parametrize("name, changes", ON_A_GPU, ids=[name for name, _ in ON_A_GPU])
def test_attentions(name, changes, hopper_gpu):
    """test_hopper_cpu.py has all of them: here is what layouts and the compiler do to a hull, a list, a table, a sink."""
    case = CASES[name].but(dtype=torch.bfloat16, head_dim=64, value_dim=64)
    for sizes in ({}, {"queries": 200, "keys": 333}, {"queries": 517, "keys": 517, "batch": 1}):
        check(chosen(case.but(**sizes), **changes))


@pytest.mark.gpu
@pytest.mark.parametrize("dims, changes", DIMS_ON_A_GPU, ids=str)
def test_head_dims(dims, changes, hopper_gpu):
    for queries, keys in ((5, 400), (300, 400), (1000, 1000)):
        case = CASES["causal, aligned to the end"].but(sizes=(keys - queries,), queries=queries, keys=keys)
        case = case.but(dtype=torch.bfloat16, head_dim=dims[0], value_dim=dims[1], heads=8)
        check(chosen(case, **changes))


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_maxima_that_move(head_dim, hopper_gpu):
    """Logits of some 40 powers of two: in most tiles some warps rescale their sums and others do not."""
    case = CASES["causal"].but(spec="score: 3.0*s; hi: i + 1", queries=1500, keys=1500, dtype=torch.bfloat16)
    check(chosen(case.but(head_dim=head_dim, value_dim=head_dim)))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout, hopper_gpu):
    case = CASES["causal"].but(layout=layout, batch=2, queries=130, keys=130, head_dim=64, value_dim=64)
    check(chosen(case.but(dtype=torch.bfloat16)))


@pytest.mark.gpu
def test_what_no_row_sees_may_be_nan(hopper_gpu):
    q, k, v = (torch.randn(1, 2, s, 128, device="cuda", dtype=torch.bfloat16) for s in (300, 900, 900))
    for x in (k, v):
        x[:, :, :331], x[:, :, 777:] = torch.nan, torch.nan
    spec = AttentionSpec.parse("score: 0.1*s; lo: n0; hi: n1")
    out = torch.full_like(q, torch.nan)
    gpu.launch(spec, configure(spec, 128, 128, H100), q, k, v, gpu.operands(spec, [], [331, 777], []), out)
    inside = [q.cpu(), *(x[:, :, 331:777].cpu() for x in (k, v)), [], [], [], "score: 0.1*s"]
    truth = reference.attend(*inside)
    formula = reference.attend(*inside, dtype=q.dtype)
    assert (out.cpu() - truth).abs().max() <= 2 * (formula - truth).abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["causal", "documents, bounded"])
def test_a_graph_of_launches_repeats_bit_by_bit(name, hopper_gpu):
    """Blocks draw their items in another order each time; the counter is 0 after each launch."""
    case = CASES[name].but(queries=3000, keys=3000, heads=16, head_dim=64, value_dim=64, dtype=torch.bfloat16)
    given, spec = operands(case, "cuda"), AttentionSpec.parse(case.spec)
    arguments = gpu.operands(spec, given.tables, [], [])
    outs = [torch.full_like(given.q, torch.nan) for _ in range(8)]

    def launch_all():
        for out in outs:
            gpu.launch(spec, chosen(case).choice, given.q, given.k, given.v, arguments, out)

    launch_all()
    first = outs[0].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch_all()
    for _ in range(3):
        [out.fill_(torch.nan) for out in outs]
        graph.replay()
        assert all(torch.equal(out, first) for out in outs)
