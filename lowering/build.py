"""A Triton or Gluon function  =>  what triton.compile makes of it for a named architecture, with or without a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError
from . import disassembly
from .machine import MACHINES, Machine, machine_of

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

DEFAULT_ARCH = "sm_90"
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
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
