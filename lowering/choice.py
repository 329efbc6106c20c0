"""The launch configuration of a kernel, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Which kernel, how large its tiles (rows, keys), how many warps, pipeline stages, parts of the key range; of the Hopper
    kernel, whether its warpgroups take turns and its blocks stay for several tiles."""

    family: str
    block_m: int
    block_n: int
    warps: int
    stages: int
    kv_splits: int = 1
    ping_pong: bool = False
    persistent: bool = False

    def __str__(self) -> str:
        parts = f", {self.kv_splits} parts" if self.family not in ("prefill", "hopper") else ""
        return f"{self.family} {self.block_m}x{self.block_n}, {self.warps} warps, {self.stages} stages{parts}"


def padded(dim: int) -> int:
    """The block a head dim is held in: the next power of two, 16 at least (the tensor cores' smallest)."""
    return max(16, 1 << (dim - 1).bit_length())
