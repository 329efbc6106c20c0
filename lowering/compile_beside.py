"""The kernels that run beside attention, compiled for a named architecture: lists of tiles and of pages, rotations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..ir import AttentionSpec
from ..sparsity import EXACTLY
from . import codegen, rotation
from .build import DEFAULT_ARCH, POINTERS, CompiledKernel, build, machine_named, record
from .choice import Choice
from .held import Layout
from .sparse import listing, paging


def compile_bounded(
    spec: AttentionSpec, head_dim: int, dtype: torch.dtype, arch: str = DEFAULT_ARCH, page: int = 64, columns: int = 2048,
    queries: int = 1,
) -> CompiledKernel:
    """The kernel that lists, of at most `columns` pages a sequence, those that a step of so many queries attends."""
    from . import modules

    machine = machine_named(arch)
    source = codegen.source(spec, "bounded", Layout(page=page, chosen=True))
    types = dict.fromkeys(("q", "bounds"), POINTERS[dtype])
    types |= {"pages": "*i32", "scores": "*fp32", "listed": "*i64", "counters": "*i32"}
    constants = paging.constants(spec.group, queries, head_dim, columns, False, paging.begins_early(machine))
    built = build(modules.load(source, "bounded").bounded, types, constants, arch, paging.WARPS, 1)
    return record(built, "bounded", arch, str(spec), f"pages of {page}", source)


def compile_rotation(head_dim: int, given: torch.dtype, made: torch.dtype, arch: str = DEFAULT_ARCH) -> CompiledKernel:
    """The kernel that turns rows of `given` into rows of `made`, for pages of rotated numbers."""
    from . import rotate

    machine_named(arch)
    types = {"x": POINTERS[given], "y": POINTERS[made], "scale": "fp32"}
    built = build(rotate.rotate, types, rotation.constants(head_dim), arch, rotation.WARPS, 1)
    return record(built, "rotate", arch, "", f"{head_dim} channels", Path(rotate.__file__).read_text())


def compile_listing(
    spec: AttentionSpec, choice: Choice, head_dim: int, dtype: torch.dtype, arch: str = DEFAULT_ARCH
) -> CompiledKernel:
    """The kernel that says, for a prefill kernel of this choice, what each tile of keys promises."""
    from . import modules

    machine = machine_named(arch)
    family = listing.family_of(spec.sparsity)
    source = codegen.source(replace(spec, sparsity=EXACTLY), family)
    types = dict.fromkeys(("q", "boxes"), POINTERS[dtype])
    types |= {"words": "*i64", "k_words": "*i64"}
    types |= dict.fromkeys(("scores", "promised", "parts", "tops", "norms", "k_norms"), "*fp32")
    constants = listing.constants(spec, choice, head_dim, upcast=False)
    function, warps = getattr(modules.load(source, family), family), listing.warps(spec.sparsity, choice)
    registers = listing.registers(spec.sparsity, head_dim, machine).get("maxnreg", 0)
    built = build(function, types, constants, arch, warps, 1, registers)
    return record(built, family, arch, str(spec), str(choice), source)
