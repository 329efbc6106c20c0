"""The kernels of attend_latent, compiled for a named architecture."""

from __future__ import annotations

import torch

from ..ir import AttentionSpec
from . import codegen, fp8, gpu_latent, tma
from .build import DEFAULT_ARCH, POINTERS, CompiledKernel, build, machine_named, record
from .choice import Choice
from .mla import exchange_launch as exchange


def compile_latent(
    spec: AttentionSpec, choice: Choice, rank: int, width: int, dtype: torch.dtype, arch: str = DEFAULT_ARCH,
    paged: bool = False, heads: int = 128, packed: bool = False,
) -> CompiledKernel:
    """One kernel of attend_latent for one architecture: families mla, tokens, and those of Hopper."""
    from . import modules

    machine_named(arch)
    source = codegen.source(spec, choice.family)
    function = getattr(modules.load(source, choice.family), choice.family)
    kind = POINTERS[dtype]
    types = dict.fromkeys(("q_latent", "q_rope", "latent", "rope", "out"), kind)
    types |= {"codes": "*i32", "pages": "*i32", "chosen": "*i64", "cuts": "*i64"}
    types |= dict.fromkeys(("scales", "lse"), "*fp32")
    if choice.family in exchange.FAMILIES:
        for name, tile in exchange.tiles(choice, heads, rank).items():
            box = [1] * ((4 if name in ("q_latent", "q_rope", "out") else 3) - len(tile)) + list(tile)
            types[name] = tma.tile_type(kind.removeprefix("*"), box, dtype)
        types["workspace"] = tma.tile_type(kind.removeprefix("*"), list(exchange.part(choice, heads, 1, rank)), dtype)
        constants, registers = exchange.constants(choice, heads, rank, width, paged), exchange.registers(choice)
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
