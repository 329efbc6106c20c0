"""What will work here: versions, GPU, compilers, each with what mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

BACKEND = "flashmla"


@dataclass(frozen=True)
class Check:
    """One line: `state` is "ok", "warn" (works, but) or "bad" (does not work); `mend` says what to do about it."""

    name: str
    state: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Range:
    """Versions of a package: from `least`; what comes after `tried` was not tried."""

    least: str
    tried: str


TORCH = Range("2.11", "2.14")
TRITON = Range("3.6", "3.8")
TRANSFORMERS = Range("5.17", "5.23")
CAPABILITY = (8, 0)
"""The oldest NVIDIA compute capability the kernels are compiled for."""

TRIAL_TOLERANCE = 1e-2
"""Absolute: the values are averages of N(0, 1), and a tensor core may multiply float32 as tf32 (10 bits of mantissa)."""


def checks() -> list[Check]:
    """Every check, in the order they are shown. Nothing is compiled, no kernel is launched."""
    return list(_checks())


def trial() -> Check:
    """Compile one small attention and compare it with eager: whether the whole way works here. Takes some seconds."""
    from .backend import flashmla
    from .inspection import explain

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 96, 64, device=device) for heads in (4, 2, 2))

    def attention() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    with torch.no_grad():
        report = explain(attention)
        error = (torch.compile(attention, backend=flashmla)() - attention()).abs().max().item()
    if report.left or not report.fused:
        reasons = "; ".join(site.reason for site in report.left) or "no attention was found"
        return Check("trial", "bad", f"not fused: {reasons}")
    found = f"fused on {device}; the largest difference from eager is {error:.1e}"
    return Check("trial", "ok" if error < TRIAL_TOLERANCE else "bad", found)


def _checks() -> Iterator[Check]:
    gpu = torch.cuda.is_available()
    yield Check("python", "ok", ".".join(map(str, sys.version_info[:3])))
    yield version("torch", TORCH, needed=True)
    yield version("triton", TRITON, needed=gpu, without="no fused GPU kernels, and no `flashmla kernels`")
    yield version("transformers", TRANSFORMERS, needed=False, without="the examples that load a model need it")
    yield _registered()
    yield _cache()
    yield _compiler(needed=not gpu)
    if not gpu:
        yield Check("GPU", "ok", "none: attention runs by the CPU lowering")
        return
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)
    yield Check("CUDA graphs", "ok", 'with mode="reduce-overhead"')


def version(package: str, known: Range, needed: bool, without: str = "") -> Check:
    """Whether the package is there, new enough, and one of the versions tried."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        mend = f"pip install '{package}>={known.least}'"
        return Check(package, "bad", "not installed", mend) if needed else Check(package, "ok", f"not installed: {without}")
    if _release(found) < _release(known.least):
        return Check(package, "bad", f"{found} is older than {known.least}", f"pip install '{package}>={known.least}'")
    if _release(found) > _release(known.tried):
        mend = f"if it fails: pip install '{package}=={known.tried}.*'"
        return Check(package, "warn", f"{found} is newer than {known.tried}, the newest tried", mend)
    return Check(package, "ok", found)


def _release(text: str) -> tuple[int, ...]:
    """(major, minor)."""
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _registered() -> Check:
    """torch.compile knows a backend of ours by its entry point, which only an installed distribution has."""
    known = importlib.metadata.entry_points(group="torch_dynamo_backends", name=BACKEND)
    if known:
        return Check("backend", "ok", f'torch.compile(model, backend="{BACKEND}")')
    mend = "pip install -e . (or give torch.compile backend=mla_compiler.flashmla)"
    return Check("backend", "bad", f'backend="{BACKEND}" is not registered', mend)


def _cache() -> Check:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    where = cache_dir()
    if os.access(where, os.W_OK):
        return Check("cache", "ok", where)
    return Check("cache", "bad", f"{where} cannot be written", "set TORCHINDUCTOR_CACHE_DIR to a directory that can")


def _compiler(needed: bool) -> Check:
    """Inductor compiles C++ for the CPU; on a GPU it does without."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found:
        return Check("C++ compiler", "ok", found)
    mend = "install g++ (apt-get install g++), or set CXX"
    return Check("C++ compiler", "bad" if needed else "warn", "none: Inductor cannot compile for the CPU", mend)


def _gpu(index: int) -> Check:
    name = f"GPU {index}"
    properties = torch.cuda.get_device_properties(index)
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    if torch.version.hip:
        arch = properties.gcnArchName
        return Check(name, "warn", f"{properties.name} ({arch}), {memory}: kernels compile, but none was tried on this make")
    major, minor = torch.cuda.get_device_capability(index)
    found = f"{properties.name} (sm_{major}{minor}), {memory}"
    if (major, minor) < CAPABILITY:
        return Check(name, "warn", f"{found}: older than sm_80, attention is left as it is")
    if importlib.util.find_spec("triton") is None:
        return Check(name, "bad", f"{found}: no Triton", f"pip install 'triton>={TRITON.least}'")
    return Check(name, "ok", f"{found}: fused kernels")
