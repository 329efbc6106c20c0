"""A spec  =>  its kernels compiled for a named architecture.

`kernels_of_sites` is what `Report.kernels` calls, `compile_spec` what `flashmla kernels` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from ..ir import AttentionSpec, Site
from ..pool.formats import FORMATS
from . import codegen, gpu, tma
from .build import DEFAULT_ARCH, POINTERS, CompiledKernel, build, machine_named, record, this_arch
from .choice import Choice
from .decode import launch as decode
from .held import Layout
from .hopper import launch as hopper
from .select import choose, supports

_TILES = {torch.int8: "i8", torch.uint8: "u8"}


def kernels_of_sites(sites: Iterable[Site], arch: str | None = None) -> list[CompiledKernel]:
    """The kernels of flashmla::attend of fused sites, each once; a site fused on the CPU that no GPU kernel serves has none.

    OptionError for an unknown `arch`; default: this GPU's, else sm_90.
    """
    wanted = {}
    for site in sites:
        if "latent" in site.shape:                                  # an operator that takes the latent stands for it
            continue
        q, k, v = shapes_of(site.shape)
        wanted[site.spec, q[3], v[3], site.dtype, q[1:3] == (q[1], 1)] = (q, k[2])
    found = {}
    for (text, head_dim, value_dim, dtype, _), (q, keys) in wanted.items():
        spec, kind = AttentionSpec.parse(text), getattr(torch, dtype)
        if supports(spec, head_dim, value_dim, kind, "cuda") is not None:
            continue
        for kernel in compile_spec(spec, head_dim, value_dim, kind, arch, q, keys):
            found[kernel.name, kernel.spec, kernel.config, kernel.source] = kernel
    return list(found.values())


def shapes_of(text: str) -> tuple[tuple[int, ...], ...]:
    """`q [1, 9, 64, 64], k [...], v [...]` as numbers; a symbolic size counts as 4096."""
    groups = re.findall(r"\[([^\]]*)\]", text)
    return tuple(tuple(int(size) if size.strip().isdigit() else 4096 for size in group.split(",")) for group in groups)


def compile_spec(
    spec: AttentionSpec, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str | None = None,
    q: tuple[int, ...] | None = None, keys: int = 4096,
) -> list[CompiledKernel]:
    """The kernel that serves q [B, H, T, D]; without q those of a long prefill and of a decode step."""
    arch = arch or this_arch()
    machine = machine_named(arch)
    heads = spec.group * 8
    wanted = [q] if q else [(1, heads, keys, head_dim), (1, heads, 1, head_dim)]
    choices = [choose(spec, *shape[:3], keys, head_dim, value_dim, dtype, machine) for shape in wanted]
    return [compile_kernel(spec, choice, head_dim, value_dim, dtype, arch) for choice in dict.fromkeys(choices)]


def compile_kernel(
    spec: AttentionSpec, choice: Choice, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str = DEFAULT_ARCH,
    layout: Layout | None = None,
) -> CompiledKernel:
    """One kernel for one architecture. Integer tables are taken as int64, float tables as float32, strides as int32.

    `layout`: keys and values lie in such pages.
    """
    from . import modules

    machine_named(arch)
    source = codegen.source(spec, choice.family, layout)
    function = getattr(modules.load(source, choice.family), choice.family)
    if choice.family == "hopper":
        built = _build_hopper(function, spec.group, choice, head_dim, value_dim, dtype, arch, spec.sparsity.selects)
        return record(built, choice.family, arch, str(spec), str(choice), source)
    if choice.family == "decode_hopper":
        built = _build_decode_hopper(function, spec.group, choice, head_dim, value_dim, dtype, arch, layout)
        return record(built, choice.family, arch, str(spec), str(choice), source)
    constants = {**gpu.blocks(spec, choice, head_dim, value_dim), **decode.constants(choice)}
    types: dict[str, Any] = dict.fromkeys(("q", "k", "v", "out"), POINTERS[dtype])
    types |= {"workspace": "*fp32", "counters": "*i32", "listed": "*i16", "listed_counts": "*i32", "kept": "*u8"}
    if layout is not None:
        pages, kinds = "*i64" if layout.chosen else "*i32", (layout.format, layout.value_format or layout.format)
        for name, kind, scale in zip("kv", kinds, ("*fp16" if layout.key_group else "*fp32", "*fp32"), strict=True):
            stored = {None: POINTERS[dtype], torch.int8: "*i8", torch.uint8: "*u8"}[FORMATS[kind].storage]
            types[name] = stored, stored if kind == "plain" else scale, pages
    built = build(function, types, constants, arch, choice.warps, choice.stages)
    return record(built, choice.family, arch, str(spec), str(choice), source)


def _build_hopper(
    function: Any, group: int, choice: Choice, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str, listed: bool
) -> Any:
    """The Gluon kernel: its operands come as TMA descriptors. listed: tiles of keys were chosen beforehand."""
    kind = POINTERS[dtype].removeprefix("*")
    tiles = hopper.tiles(choice, head_dim, value_dim)
    types = {name: tma.tile_type(kind, [1, 1, *tile], dtype) for name, tile in tiles.items() if tile}
    types |= {"counter": "*i32", "lists": "*i16" if listed else "*i32", "listed": "*i16", "listed_counts": "*i32"}
    constants = {name: None for name, tile in tiles.items() if not tile}
    constants |= hopper.constants(group, choice, head_dim, value_dim)
    return build(function, types, constants, arch, choice.warps, choice.stages, hopper.registers(choice)[0])


def _build_decode_hopper(
    function: Any, group: int, choice: Choice, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str,
    layout: Layout | None,
) -> Any:
    """The Gluon kernel for few queries: K and V come as TMA descriptors, of pages if there is a layout."""
    stored = dtype if layout is None else FORMATS[layout.format].storage or dtype
    tiles, unpacks = decode.tiles(choice, head_dim, value_dim), stored != dtype
    kind = _TILES.get(stored, POINTERS[dtype].removeprefix("*"))
    types = {name: tma.tile_type(kind, [1, 1, *tile], stored) for name, tile in tiles.items()}
    if unpacks:
        scales = tma.tile_type("fp32", [1, 1, 1, choice.block_n], torch.float32)
        types |= {"k_scales": scales, "v_scales": scales}
    types |= {"q": POINTERS[dtype], "out": POINTERS[dtype], "workspace": "*fp32", "counters": "*i32"}
    types["table"] = "*i64" if layout is not None and layout.chosen else "*i32"
    constants = decode.hopper_constants(group, choice, head_dim, value_dim)
    constants |= {"table": None, "table_strides": None} if layout is None else {}
    return build(function, types, constants, arch, choice.warps, choice.stages, decode.registers(choice, unpacks))
