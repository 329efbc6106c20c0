"""Prefill and decode over pages, under Triton's interpreter: the same bound as over dense keys; every format; compiled."""

import re

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.compile import compile_kernel
from mla_compiler.lowering.compile_beside import compile_bounded
from mla_compiler.lowering.held import Layout
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.select import choose_paged
from mla_compiler.pool.formats import PAIRS

from .attentions import CASES
from .cases import DECODE, PREFILL, Case
from .test_kernels import check

SPLIT = DECODE.__class__("decode", 16, 16, 4, 1, 3)
STEP = CASES["live length"].but(queries=1, keys=96, choice=DECODE)
FORMATS = tuple(PAIRS)
NAMES = ("full", "window", "documents, bounded", "bias", "sinks", "mask, summarised", "a length for all", "every function")
"""One for each way through the scan: where a row lies does not depend on what is scored."""


def paged(case: Case, page: int, **changes) -> Case:
    return case.but(page=page, keys=-(-case.keys // page) * page, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_a_step(interpreted, name):
    check(interpreted, paged(CASES[name], 8))
    check(interpreted, paged(CASES[name], 8, queries=1, choice=DECODE))


@pytest.mark.parametrize("choice", [PREFILL, SPLIT], ids=str)
@pytest.mark.parametrize("page", [1, 3, 64])
def test_pages_of_any_size(interpreted, page, choice):
    """A tile of 16 keys begins and ends anywhere in a page, or holds several."""
    for case in (CASES["causal, aligned to the end"].but(batch=2), CASES["window"], STEP):
        check(interpreted, paged(case, page, choice=choice))


@pytest.mark.parametrize("choice", [PREFILL, SPLIT], ids=str)
@pytest.mark.parametrize("dims", [(32, 64), (128, 96)], ids=str)
@pytest.mark.parametrize("format", FORMATS[1:])
def test_formats(interpreted, format, dims, choice):
    sizes = {"head_dim": dims[0], "value_dim": dims[1], "format": format, "choice": choice}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        check(interpreted, paged(STEP, 16, dtype=dtype, **sizes))
    check(interpreted, paged(CASES["causal"].but(queries=21), 16, **sizes))


def layout_named(format, page, e4m3, chosen=False):
    """Of a pair of formats, with head dims of 128 at most."""
    keys, values = PAIRS[format]
    other = "" if keys == values else values.name
    return Layout(keys.name, page, 32 if keys.rotated else 0, e4m3, chosen, other)


def compiled(format, queries, dim, arch, dtype=torch.bfloat16, page=64):
    spec = AttentionSpec.parse("score: 0.125*s; hi: min(i + n0, T0[b]); group: 4")
    machine = MACHINES[arch]
    e4m3 = machine.backend == "cuda" and machine.capability >= (8, 9)
    layout = layout_named(format, page, e4m3)
    choice = choose_paged(spec, 2, 32, queries, 8192, dim, dim, dtype, machine, format, page)
    return compile_kernel(spec, choice, dim, dim, dtype, arch, layout)


@pytest.mark.parametrize("queries", [1, 4096])
@pytest.mark.parametrize("arch, format", [
    *(("sm_90", format) for format in FORMATS), ("sm_80", "fp8"), ("sm_89", "fp8"), ("sm_100", "int4"), ("gfx942", "int8"),
    ("gfx942", "plain"),
])
def test_every_architecture(arch, queries, format):
    # float16 for fp8: Triton 3.6 keeps for all targets of a process how the first one turns e4m3 into bfloat16.
    dtype = torch.float16 if format == "fp8" else torch.bfloat16
    kernel = compiled(format, queries, 64 if arch == "gfx942" else 128, arch, dtype)
    assert kernel.registers > 0 and 0 < kernel.shared <= MACHINES[arch].shared_memory
    assert ("tt.dot" in kernel.ttir or kernel.name == "decode_hopper") and (arch != "sm_90" or kernel.spills == 0)


@pytest.mark.parametrize("format, page", [("fp8", 32), ("int8", 32), ("int4", 64)])
def test_a_step_over_chosen_pages(format, page):
    """Its loads of rows are asynchronous, 16 bytes at once, and it never waits for the last: the list is read on the way."""
    dtype = torch.float16 if format == "fp8" else torch.bfloat16
    spec = AttentionSpec.parse("score: 0.125*s; hi: min(i + n0, T0[b]); group: 4")
    choice = choose_paged(spec, 2, 32, 1, 131072, 128, 128, dtype, MACHINES["sm_90"], format, page, chosen=True)
    layout = layout_named(format, page, True, chosen=True)
    kernel = compile_kernel(spec, choice, 128, 128, dtype, "sm_90", layout)
    assert kernel.name == "decode" and kernel.spills == 0 and page % choice.block_n == 0
    assert re.findall(r"cp\.async\.c[ag]\.shared\.global .*?, (0x10|0x8|0x4),", kernel.ptx).count("0x10") >= 2
    assert max(int(groups) for groups in re.findall(r"cp\.async\.wait_group\s+(\d+)", kernel.ptx)) >= 2


@pytest.mark.parametrize("arch", MACHINES)
def test_choosing_pages_and_attending_them_compile(arch):
    spec = AttentionSpec.parse("score: 0.125*s; hi: T0[b] + 1; group: 4")
    listing = compile_bounded(spec, 128, torch.bfloat16, arch)
    assert 0 < listing.shared <= MACHINES[arch].shared_memory and (arch != "sm_90" or listing.spills == 0)
    assert ("griddepcontrol.launch_dependents" in listing.ptx) == (arch in ("sm_90", "sm_100"))
    choice = choose_paged(spec, 2, 32, 1, 8192, 64, 64, torch.bfloat16, MACHINES[arch], "plain", 64, chosen=True)
    kernel = compile_kernel(spec, choice, 64, 64, torch.bfloat16, arch, Layout(chosen=True))
    assert 0 < kernel.shared <= MACHINES[arch].shared_memory and (arch != "sm_90" or kernel.spills == 0)


def test_a_step_over_pages_loads_16_bytes_at_once_and_never_waits_for_the_last():
    for format, page in (("int8", 16), ("plain", 16)):
        kernel = compiled(format, 1, 128, "sm_90", page=page)
        assert kernel.name == "decode"
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global .*?, (0x10|0x8|0x4),", kernel.ptx)
        assert copies.count("0x10") >= 2
        assert max(int(groups) for groups in re.findall(r"cp\.async\.wait_group\s+(\d+)", kernel.ptx)) >= 2
