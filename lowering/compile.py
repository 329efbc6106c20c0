"""A spec  =>  its kernels compiled for a named architecture, on a machine with or without a GPU.

`kernels_of_sites` is what `Report.kernels` calls, `compile_spec` what `flashmla kernels` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError
from ..ir import AttentionSpec, Site
from ..pool.formats import FORMATS
from ..sparsity import EXACTLY
from . import codegen, disassembly, fp8, gpu, gpu_latent, rotation, tma
from .choice import Choice
from .decode import launch as decode
from .held import Layout
from .hopper import launch as hopper
from .machine import MACHINES, Machine, machine_of
from .mla import exchange_launch as exchange
from .select import choose, supports
from .sparse import listing, paging

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

DEFAULT_ARCH = "sm_90"
_DTYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_TILES = {torch.int8: "i8", torch.uint8: "u8"}
_ALIGNED = [["tt.divisibility", 16]]
_HELD, _HELD_ONES = {"*i32": 11, "*i64": 12}, (3, 7, 9)
"""How many numbers `held.Held` gives as strides, and `paging.Listed`; which are 1 where memory is contiguous."""
_STRIDES = {"pages_strides": 2} | dict.fromkeys(
    ("latent_strides", "rope_strides", "chosen_strides", "codes_strides", "scales_strides", "table_strides"), 3)
"""How many, where not 4."""
_IN_WORDS = ("codes_strides",)
"""Strides that are no multiples of 16, as those of packed latents in words are not."""


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel, compiled. `registers` are per thread, `shared` bytes per block, `spills` bytes per thread; -1: unknown.

    ptx, cubin and sass are empty for AMD, amdgcn is for NVIDIA; sass is empty where there is no disassembler.
    """

    name: str
    arch: str
    spec: str
    config: str
    source: str = field(repr=False)
    ttir: str = field(repr=False)
    ttgir: str = field(repr=False)
    llir: str = field(repr=False)
    ptx: str = field(repr=False)
    amdgcn: str = field(repr=False)
    sass: str = field(repr=False)
    cubin: bytes = field(repr=False)
    registers: int = -1
    shared: int = -1
    spills: int = -1


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
    types: dict[str, Any] = dict.fromkeys(("q", "k", "v", "out"), _DTYPES[dtype])
    types |= {"workspace": "*fp32", "counters": "*i32", "listed": "*i16", "listed_counts": "*i32", "kept": "*u8"}
    if layout is not None:
        pages, kinds = "*i64" if layout.chosen else "*i32", (layout.format, layout.value_format or layout.format)
        for name, kind, scale in zip("kv", kinds, ("*fp16" if layout.key_group else "*fp32", "*fp32"), strict=True):
            stored = {None: _DTYPES[dtype], torch.int8: "*i8", torch.uint8: "*u8"}[FORMATS[kind].storage]
            types[name] = stored, stored if kind == "plain" else scale, pages
    built = build(function, types, constants, arch, choice.warps, choice.stages)
    return record(built, choice.family, arch, str(spec), str(choice), source)


def compile_bounded(
    spec: AttentionSpec, head_dim: int, dtype: torch.dtype, arch: str = DEFAULT_ARCH, page: int = 64, columns: int = 2048,
    queries: int = 1,
) -> CompiledKernel:
    """The kernel that lists, of at most `columns` pages a sequence, those that a step of so many queries attends."""
    from . import modules

    machine = machine_named(arch)
    source = codegen.source(spec, "bounded", Layout(page=page, chosen=True))
    types = dict.fromkeys(("q", "bounds"), _DTYPES[dtype])
    types |= {"pages": "*i32", "scores": "*fp32", "listed": "*i64", "counters": "*i32"}
    constants = paging.constants(spec.group, queries, head_dim, columns, False, paging.begins_early(machine))
    built = build(modules.load(source, "bounded").bounded, types, constants, arch, paging.WARPS, 1)
    return record(built, "bounded", arch, str(spec), f"pages of {page}", source)


def compile_rotation(head_dim: int, given: torch.dtype, made: torch.dtype, arch: str = DEFAULT_ARCH) -> CompiledKernel:
    """The kernel that turns rows of `given` into rows of `made`, for pages of rotated numbers."""
    from . import rotate

    machine_named(arch)
    types = {"x": _DTYPES[given], "y": _DTYPES[made], "scale": "fp32"}
    built = build(rotate.rotate, types, rotation.constants(head_dim), arch, rotation.WARPS, 1)
    return record(built, "rotate", arch, "", f"{head_dim} channels", Path(rotate.__file__).read_text())


def compile_listing(
    spec: AttentionSpec, choice: Choice, head_dim: int, dtype: torch.dtype, arch: str = DEFAULT_ARCH
) -> CompiledKernel:
    """The kernel that says, for a prefill kernel of this choice, which tiles of keys are kept, or what each promises."""
    from . import modules

    machine_named(arch)
    family = listing.family_of(spec.sparsity)
    source = codegen.source(replace(spec, sparsity=EXACTLY), family)
    types = dict.fromkeys(("q", "centre", "half", "first", "second"), _DTYPES[dtype])
    types |= {"listed": "*i16", "counts": "*i32", "share": "fp32", "words": "*i64", "k_words": "*i64"}
    types |= dict.fromkeys(("scores", "promised", "norms", "k_norms"), "*fp32")
    constants = listing.constants(spec, choice, head_dim, upcast=False)
    function, warps = getattr(modules.load(source, family), family), listing.warps(spec.sparsity, choice)
    built = build(function, types, constants, arch, warps, 1)
    return record(built, family, arch, str(spec), str(choice), source)


def compile_latent(
    spec: AttentionSpec, choice: Choice, rank: int, width: int, dtype: torch.dtype, arch: str = DEFAULT_ARCH,
    paged: bool = False, heads: int = 128, packed: bool = False,
) -> CompiledKernel:
    """One kernel of attend_latent for one architecture: families mla, tokens, and of Hopper those with _exchange."""
    from . import modules

    machine_named(arch)
    source = codegen.source(spec, choice.family)
    function = getattr(modules.load(source, choice.family), choice.family)
    kind = _DTYPES[dtype]
    types = dict.fromkeys(("q_latent", "q_rope", "latent", "rope", "out"), kind)
    types |= {"codes": "*i32", "pages": "*i32", "chosen": "*i64", "cuts": "*i64"}
    types |= dict.fromkeys(("scales", "lse"), "*fp32")
    if choice.family in exchange.FAMILIES:
        for name, tile in exchange.tiles(choice, heads, rank).items():
            box = [1] * ((4 if name in ("q_latent", "q_rope", "out") else 3) - len(tile)) + list(tile)
            types[name] = tma.tile_type(kind.removeprefix("*"), box, dtype)
        types["workspace"] = tma.tile_type(kind.removeprefix("*"), list(exchange.part(choice, heads, 1, rank)), dtype)
        constants, registers = exchange.constants(choice, heads, rank, width, paged), tma.REGISTERS
        constants |= {} if choice.programs else {"cuts": None}
        constants |= {} if choice.programs or choice.kv_splits > 1 else {"workspace": None, "lse": None}
    else:
        types |= {"out": "*fp32"} if choice.kv_splits > 1 else {}
        types |= {"latent": "*u8"} if packed else {}
        form = fp8.conversion(machine_named(arch)) if packed else 0
        constants, registers = gpu_latent.constants(choice, rank, width, paged, form=form), 0
        constants |= {} if packed else {"scales": None}
    built = build(function, types, constants, arch, choice.warps, choice.stages, registers)
    return record(built, choice.family, arch, str(spec), str(choice), source)


def _build_hopper(
    function: Any, group: int, choice: Choice, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str, listed: bool
) -> Any:
    """The Gluon kernel: its operands come as TMA descriptors. listed: tiles of keys were chosen beforehand."""
    kind = _DTYPES[dtype].removeprefix("*")
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
    types = {name: tma.tile_type(_TILES.get(stored, _DTYPES[dtype][1:]), [1, 1, *tile], stored) for name, tile in tiles.items()}
    if unpacks:
        scales = tma.tile_type("fp32", [1, 1, 1, choice.block_n], torch.float32)
        types |= {"k_scales": scales, "v_scales": scales}
    types |= {"q": _DTYPES[dtype], "out": _DTYPES[dtype], "workspace": "*fp32", "counters": "*i32"}
    types["table"] = "*i64" if layout is not None and layout.chosen else "*i32"
    constants = decode.hopper_constants(group, choice, head_dim, value_dim)
    constants |= {"table": None, "table_strides": None} if layout is None else {}
    return build(function, types, constants, arch, choice.warps, choice.stages, decode.registers(choice, unpacks))


def build(
    function: Any, types: dict[str, str], constants: dict[str, Any], arch: str, warps: int, stages: int, registers: int = 0
) -> Any:
    """triton.compile of a Triton or Gluon function whose tensors are aligned and have a unit last stride."""
    import triton
    from triton.compiler import ASTSource

    if not hasattr(function, "arg_names") or not hasattr(function, "cache_key"):
        raise OptionError("kernels cannot be compiled under TRITON_INTERPRET=1", "unset it")
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    values: dict[Any, Any] = {}
    for at, name in enumerate(function.arg_names):
        signature[name] = _type(name, types, constants)
        if name in constants:
            values[at,] = constants[name]
        elif name.endswith("strides"):
            held = isinstance(types.get(name.removesuffix("_strides")), tuple)
            ones = _HELD_ONES if held else (_STRIDES.get(name, 4) - 1,)
            values.update(dict.fromkeys(((at, dim) for dim in ones), 1))
            count = _HELD[types[name.removesuffix("_strides")][2]] if held else ones[0] + 1
            signature[name] = tuple("constexpr" if dim in ones else "i32" for dim in range(count))
            aligned = (dim for dim in range(4 if held else ones[0]) if dim not in ones and name not in _IN_WORDS)
            attributes.update(dict.fromkeys(((at, dim) for dim in aligned), _ALIGNED))
        elif isinstance(signature[name], tuple):
            attributes.update(dict.fromkeys(((at, place) for place in range(len(signature[name]))), _ALIGNED))
        elif signature[name].startswith("*"):
            attributes[at,] = _ALIGNED
    if function.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        source = GluonASTSource(function, signature, values, attributes)
    else:
        source = ASTSource(function, signature, values, attributes)
    options = {"num_warps": warps, "num_stages": stages} | ({"maxnreg": registers} if registers else {})
    return triton.compile(source, target=target(arch), options=options)


def _type(name: str, types: dict[str, str], constants: dict[str, Any]) -> Any:
    if name in constants:
        return "constexpr"
    if name in types:
        return types[name]
    if name.endswith("strides"):
        return ()
    if re.fullmatch(r"[MTF]\d+", name):
        return {"M": "*u1", "T": "*i64", "F": "*fp32"}[name[0]]
    return "fp32" if re.fullmatch(r"x\d+|least", name) else "i32"


def record(built: Any, name: str, arch: str, spec: str, config: str, source: str) -> CompiledKernel:
    """What triton.compile made, with what the disassembler says of it."""
    text = {stage: built.asm.get(stage, "") for stage in ("ttir", "ttgir", "llir", "ptx", "amdgcn")}
    cubin = built.asm.get("cubin") or b""
    usage = disassembly.usage_of_amdgcn(text["amdgcn"]) if text["amdgcn"] else disassembly.usage_of_cubin(cubin)
    return CompiledKernel(
        name, arch, spec, config, source, **text, sass=disassembly.sass(cubin), cubin=cubin,
        registers=usage.registers, shared=int(built.metadata.shared), spills=usage.spills,
    )


def target(arch: str) -> GPUTarget:
    from triton.backends.compiler import GPUTarget

    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64)
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


def machine_named(arch: str) -> Machine:
    """OptionError if the architecture is not one of MACHINES."""
    if arch not in MACHINES:
        raise OptionError(f"unknown architecture {arch!r}", f"known: {', '.join(MACHINES)}")
    return MACHINES[arch]


def this_arch() -> str:
    """The architecture of this machine's GPU, if it is one of MACHINES; else sm_90."""
    if not torch.cuda.is_available():
        return DEFAULT_ARCH
    machine = machine_of(torch.device("cuda", torch.cuda.current_device()))
    kind = (machine.backend, machine.capability)
    return next((name for name, known in MACHINES.items() if (known.backend, known.capability) == kind), DEFAULT_ARCH)
