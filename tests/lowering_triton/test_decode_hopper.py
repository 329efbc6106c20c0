"""The Gluon decode kernel: what it compiles to on sm_90; on a Hopper GPU its numerics for any cut of the line."""

import dataclasses
import re

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import counters
from mla_compiler.lowering.choice import Choice, padded
from mla_compiler.lowering.compile import compile_kernel
from mla_compiler.lowering.held import Layout
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.select import candidates, choose_paged

from .attentions import CASES
from .cases import Case, errors, operands, run

H100 = MACHINES["sm_90"]
DIMS = [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)]


def choices(spec: AttentionSpec, case: Case) -> list[Choice]:
    found = candidates(spec, case.batch, case.heads, case.queries, case.keys, case.head_dim, case.value_dim, case.dtype, H100)
    return [choice for choice in found if choice.family == "decode_hopper"]


def kernel_of(name: str, dims: tuple[int, int] = (128, 128), queries: int = 1):
    spec = AttentionSpec.parse(CASES[name].spec)
    case = Case(CASES[name].spec, batch=16, heads=8 * spec.group, queries=queries, keys=8192, head_dim=dims[0],
                value_dim=dims[1])
    return compile_kernel(spec, choices(spec, case)[0], *dims, case.dtype, "sm_90")


def loops(sass: str) -> list[str]:
    """The straight pieces of code that multiply and take exponentials."""
    return [piece for piece in re.split(r"\n\.L_\w+:", sass) if "HGMMA" in piece and "MUFU.EX2" in piece]


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("queries", [1, 16])
def test_the_loop_spills_nothing(dims, queries):
    kernel = kernel_of("live length", dims, queries)
    if not kernel.sass:
        pytest.skip("no disassembler")
    assert kernel.name == "decode_hopper" and kernel.shared <= H100.shared_memory
    assert "cp.async.bulk.tensor.4d" in kernel.ptx and "wgmma.mma_async" in kernel.ptx
    assert loops(kernel.sass) and not any("STL" in piece or "LDL" in piece for piece in loops(kernel.sass))


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("chosen", [False, True])
def test_over_pages_the_loading_warp_has_what_it_needs_in_registers_of_its_own(dims, chosen):
    spec = AttentionSpec.parse(CASES["live length"].spec)
    choice = choose_paged(spec, 16, 8 * spec.group, 1, 8192, *dims, torch.bfloat16, H100, "plain", 64, chosen)
    kernel = compile_kernel(spec, choice, *dims, torch.bfloat16, "sm_90", Layout(chosen=chosen))
    if not kernel.sass:
        pytest.skip("no disassembler")
    assert kernel.name == "decode_hopper" and "BRA.DIV" not in kernel.sass and "REDUX.SUM" in kernel.sass
    assert loops(kernel.sass) and not any("STL" in piece or "LDL" in piece for piece in loops(kernel.sass))
    assert "griddepcontrol.wait" in kernel.ptx                           # it may begin before what it reads is there
    assert ("griddepcontrol.launch_dependents" in kernel.ptx) != chosen


def quantised(name: str, format: str, dims: tuple[int, int], dtype: torch.dtype, queries: int):
    spec = AttentionSpec.parse(CASES[name].spec)
    choice = choose_paged(spec, 16, 8 * spec.group, queries, 8192, *dims, dtype, H100, format, 64)
    kernel = compile_kernel(spec, choice, *dims, dtype, "sm_90", Layout(format))
    assert kernel.name == "decode_hopper" and kernel.shared <= H100.shared_memory and kernel.spills == 0
    if not kernel.sass:
        pytest.skip("no disassembler")
    assert "BRA.DIV" not in kernel.sass and not re.search(r"STL|LDL|I2F\.S(8|16)", kernel.sass)
    return kernel


@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (128, 64), (128, 128)], ids=str)
@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_quantised_pages_are_unpacked_without_spills_and_slow_conversions(format, dims, dtype):
    assert "HGMMA" in quantised("live length", format, dims, dtype, 17).sass


@pytest.mark.parametrize("dims", [(32, 64), (64, 64), (80, 80), (128, 64), (128, 128)], ids=str)
@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_codes_become_numbers_in_the_registers_that_multiply(format, dims, dtype):
    """From `ldmatrix` to the product nothing goes through shared memory, and a number takes 2.7 instructions at most."""
    kernel = quantised("live length", format, dims, dtype, 1)
    pieces = [piece for piece in re.split(r"\n\.L_\w+:", kernel.sass) if "HMMA.16816" in piece]
    assert len(pieces) == 4 and "HGMMA" not in kernel.sass                                  # two groups: scores, then values
    assert not any(re.search(r"STS|SHFL\.IDX", piece) for piece in pieces)
    work = r"\b(?:PRMT|LOP3|HADD2|HFMA2|F2FP|SHF|I2F)\b"
    numbers = 2 * (padded(dims[0]) + padded(dims[1])) * 64 // 128                           # of a thread, in both groups
    assert sum(len(re.findall(work, piece)) for piece in pieces) <= 2.7 * numbers


@pytest.mark.parametrize("queries", [1, 5, 16])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (256, 256)], ids=str)
def test_with_a_mask_in_memory_the_loop_spills_nothing(dims, queries):
    kernel = kernel_of("mask of a step", dims, queries)
    if not kernel.sass:
        pytest.skip("no disassembler")
    assert kernel.name == "decode_hopper" and "BRA.DIV" not in kernel.sass
    assert loops(kernel.sass) and not any("STL" in piece or "LDL" in piece for piece in loops(kernel.sass))


@pytest.mark.parametrize("name", ["full", "window", "sinks", "softcap", "mask of a step"])
def test_every_hull_compiles(name):
    assert kernel_of(name).name == "decode_hopper"
    assert quantised(name, "int8", (128, 128), torch.bfloat16, 1).name == "decode_hopper"


def test_one_atomic_counts_the_parts_that_have_arrived():
    ptx = kernel_of("live length").ptx
    assert ptx.count("atom.global") == ptx.count("atom.global.gpu.acq_rel") == 1


LENGTHS = "score: 0.125*s; hi: T0[b] + i - {last}; group: 4; sink: F1[h]"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs sm_90")
@pytest.mark.parametrize("programs", [1, 3, 40, 132])
@pytest.mark.parametrize("queries", [1, 4, 16])
@pytest.mark.parametrize("page", [0, 64])
def test_any_cut(programs, queries, page):
    """Right, the same bits again, and every counter at zero."""
    case = Case(LENGTHS.format(last=queries - 2), ("uneven", "sinks"), batch=5, heads=8, queries=queries, keys=5056,
                head_dim=128, value_dim=128, dtype=torch.bfloat16, page=page)
    spec, sizes = AttentionSpec.parse(case.spec), (5, 8, queries, 5056, 128, 128, case.dtype, H100)
    first = choose_paged(spec, *sizes, "plain", page) if page else choices(spec, case)[0]
    case = case.but(choice=dataclasses.replace(first, programs=programs))
    error, formula = errors(case, "cuda")
    assert error <= 2 * formula
    given = operands(case, "cuda")
    wanted = run(case, "cuda", given)
    assert all(torch.equal(wanted, run(case, "cuda", given)) for _ in range(20))
    torch.cuda.synchronize()
    assert not any(buffer.any() for buffer in counters._arenas(given.q.device).streams.values())


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["strided", "dim first", "expanded", "tokens first", "sliced"])
def test_what_tma_cannot_address_is_decoded_all_the_same(layout):
    case = Case(LENGTHS.format(last=-1), ("uneven", "sinks"), batch=5, heads=8, queries=1, keys=3000, head_dim=64, value_dim=64,
                dtype=torch.bfloat16, layout=layout, choice=None)
    error, formula = errors(case, "cuda")
    assert error <= 2 * formula
