"""Spec to kernel. Never imports passes; imports Triton when a kernel is first needed.

    register()            what flashmla::* do, per device
    supports(spec, ...)   why there is no kernel, or None
    choose(spec, ...)     which kernel, in words
    supports_latent, choose_latent   the same of flashmla::attend_latent
    supports_paged                   the same of flashmla::attend_paged
    heads_at_once                    of how many heads K and V are made of a latent at a time
"""

if __name__ == "lowering":
    raise ImportError("import this package as mla_compiler.lowering; `lowering` is only its place in the checkout")

from dataclasses import replace

import torch

from ..ir import AttentionSpec, Reason
from ..ops import LIBRARY
from ..pool.ops import LIBRARY as POOL_LIBRARY
from ..sparsity import EXACTLY
from . import counted_cpu, cpu, cpu_latent, cpu_paged
from .bounds import bounds
from .fp8 import quantize_latent
from .head_groups import heads_at_once
from .projected import attend_projected
from .select_latent import choose_latent, supports_latent

__all__ = ["choose", "choose_latent", "heads_at_once", "register", "supports", "supports_latent", "supports_paged"]

_registered: list[str] = []


def register() -> None:
    """Give every flashmla operator its CPU and CUDA implementation, once. ROCm answers to the key CUDA."""
    if _registered:
        return
    LIBRARY.impl("attend", counted_cpu.attend, "CPU")
    for name in ("summarize", "sdpa"):
        LIBRARY.impl(name, getattr(cpu, name), "CPU")
    for device in ("CPU", "CUDA"):
        LIBRARY.impl("bounds", bounds, device)
        LIBRARY.impl("attend_projected", attend_projected, device)
        LIBRARY.impl("quantize_latent", quantize_latent, device)
    LIBRARY.impl("sdpa", cpu.sdpa, "CUDA")
    LIBRARY.impl("attend", _gpu_attend, "CUDA")
    LIBRARY.impl("attend_latent", cpu_latent.attend_latent, "CPU")
    POOL_LIBRARY.impl("attend_paged", cpu_paged.attend_paged, "CPU")
    POOL_LIBRARY.impl("attend_paged", _gpu_attend_paged, "CUDA")
    LIBRARY.impl("attend_latent", _gpu_attend_latent, "CUDA")
    LIBRARY.impl("summarize", _gpu_summarize, "CUDA")
    _registered.extend(("CPU", "CUDA"))


def supports(
    spec: AttentionSpec, head_dim: int, value_dim: int, dtype: torch.dtype, device_type: str
) -> tuple[Reason, str] | None:
    """None if a kernel can be written, else the reason and what was found."""
    from .select import supports as ask

    return ask(spec, head_dim, value_dim, dtype, device_type)


def supports_paged(
    spec: AttentionSpec, head_dim: int, value_dim: int, dtype: torch.dtype, device_type: str, format: str, page: int
) -> tuple[Reason, str] | None:
    """The same for keys and values in pages of `page` tokens, in `format`: every kernel that reads rows reads pages."""
    from .sparse.config import unserved_in_pages

    unserved = unserved_in_pages(spec, page)
    if unserved:
        return Reason.SPARSITY, unserved
    return supports(replace(spec, sparsity=EXACTLY), head_dim, value_dim, dtype, device_type)


def choose(
    spec: AttentionSpec, q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], dtype: torch.dtype, device: torch.device,
    pages: tuple[str, int] | None = None,
) -> tuple[str, str]:
    """Kernel family and configuration for q [B, H, T, D], k [B, H/group, S, D], v [B, H/group, S, Dv], in words.

    pages: the format of the pages that k and v lie in, and tokens of one.
    """
    if device.type != "cuda":
        return "cpu", "hull"
    from . import select
    from .machine import machine_of

    sizes = (*q[:3], k[2], q[3], v[3], dtype, machine_of(device))
    if pages is None:
        choice = select.choose(spec, *sizes)
    else:
        choice = select.choose_paged(replace(spec, sparsity=EXACTLY), *sizes, *pages, select.chooses(spec, q[2]))
    later = ", until timed" if spec.autotune and pages is None else ""
    return choice.family, str(choice).removeprefix(f"{choice.family} ") + later


def _gpu_attend(*args):
    from .counted_gpu import attend

    return attend(*args)


def _gpu_attend_paged(*args):
    from .gpu import attend_paged

    return attend_paged(*args)


def _gpu_attend_latent(*args):
    from .gpu_latent import attend_latent

    return attend_latent(*args)


def _gpu_summarize(mask):
    from .gpu import summarize

    return summarize(mask)
