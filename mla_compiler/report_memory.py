"""The pools of KV memory as rows of a report: what each reserves, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

FIGURES: Final = ("reserved", "held", "live", "wasted", "shared", "pending", "idle", "evicted", "high_water")
"""Bytes, as PoolStats has them."""
COLUMNS: Final = ("KV pool", *(name.replace("_", " ") for name in FIGURES), "sequences")


def cells(meta: Mapping[str, Any]) -> list[Sequence[str]]:
    """A row for each pool of `meta["memory"]`, in COLUMNS."""
    return [[row["pool"], *(size(row[name]) for name in FIGURES), str(row["sequences"])] for row in meta.get("memory", ())]


def size(count: int) -> str:
    """1536 => `1.5 KiB`."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B" if count else "0"
