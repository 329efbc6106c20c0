"""KV memory for many sequences: pages of one arena, shared by reference counts, released in stream order."""

from __future__ import annotations

from .geometry import Geometry
from .pool import KVPool, memory
from .sequences import Sequence, Tables
from .stats import PoolStats

__all__ = ["Geometry", "KVPool", "PoolStats", "Sequence", "Tables", "memory"]
