"""A device  =>  what of it decides a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Machine:
    """What of a device decides a configuration: backend "cuda" or "hip", capability (major, minor), processors, bytes
    of shared memory one block may have."""

    backend: str
    capability: tuple[int, int]
    processors: int
    shared_memory: int


MACHINES = {
    "sm_80": Machine("cuda", (8, 0), 108, 166_912),
    "sm_89": Machine("cuda", (8, 9), 128, 101_376),
    "sm_90": Machine("cuda", (9, 0), 132, 232_448),
    "sm_100": Machine("cuda", (10, 0), 148, 232_448),
    "gfx942": Machine("hip", (9, 4), 304, 65_536),
}
"""The architectures that must compile: A100, L40S, H100, B200, MI300X."""


@lru_cache(maxsize=64)
def machine_of(device: torch.device) -> Machine:
    """The machine a tensor lives on; for a CPU tensor an A100: the interpreter runs Triton's kernels, not Gluon's."""
    if device.type != "cuda":
        return MACHINES["sm_80"]
    found = torch.cuda.get_device_properties(device)
    backend = "hip" if torch.version.hip else "cuda"
    shared = getattr(found, "shared_memory_per_block_optin", 65_536)
    return Machine(backend, (found.major, found.minor), found.multi_processor_count, shared)
