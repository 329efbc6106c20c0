"""cubin  =>  SASS, registers, spills; by NVIDIA's tools, on PATH or in Triton's wheel. AMD: read off the assembly."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Registers and spilled bytes per thread; -1 where unknown."""

    registers: int = -1
    spills: int = -1


@lru_cache(maxsize=4)
def tool(name: str) -> str | None:
    """Path of cuobjdump, nvdisasm or ptxas: Triton's own first, it knows the architectures Triton compiles for."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(bundled) if bundled.exists() else shutil.which(name)


def sass(cubin: bytes) -> str:
    """The machine code as text; empty without a cubin or a disassembler."""
    return _run("nvdisasm", ["--print-code"], cubin)


def usage_of_cubin(cubin: bytes) -> Usage:
    """From the resource table of the cubin; spills are its stack frame."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", _run("cuobjdump", ["--dump-resource-usage"], cubin))
    return Usage(int(found[1]), int(found[2])) if found else Usage()


def usage_of_amdgcn(text: str) -> Usage:
    """From the metadata at the end of the assembly."""
    registers = re.search(r"\.vgpr_count:\s+(\d+)", text)
    spilled = re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)
    return Usage(int(registers[1]) if registers else -1, int(spilled[1]) if spilled else -1)


def _run(name: str, flags: list[str], cubin: bytes) -> str:
    path = tool(name) if cubin else None
    if path is None:
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, *flags, file.name], capture_output=True, text=True, check=True).stdout
