"""(spec, shapes, dtype, machine)  =>  the kernel family and its launch configuration. Imports no Triton."""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch

from ..ir import AttentionSpec, Reason
from ..sparsity import EXACTLY
from . import codegen
from .choice import Choice
from .decode import config as decode
from .errors import LoweringError
from .hopper import config as hopper
from .machine import Machine
from .prefill import config as prefill
from .sparse import config as sparse

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD_DIM = 256
DECODE_ROWS = 64
"""Rows of a KV head (query heads x positions) up to which the packed, split kernel is taken."""
DECODE_QUERIES = 16
"""Query positions up to which it is taken for any number of heads."""


def supports(
    spec: AttentionSpec, head_dim: int, value_dim: int, dtype: torch.dtype, device_type: str
) -> tuple[Reason, str] | None:
    """None if a kernel can be written, else the reason and what was found."""
    if dtype not in DTYPES:
        return Reason.DTYPE, str(dtype).removeprefix("torch.")
    unserved = sparse.unserved(spec)
    if unserved:
        return Reason.SPARSITY, unserved
    if device_type == "cpu":
        return None
    if device_type != "cuda":
        return Reason.DEVICE, device_type
    if importlib.util.find_spec("triton") is None:
        return Reason.DEVICE, "cuda without triton"
    for dim in (head_dim, value_dim):
        if not 1 <= dim <= LARGEST_HEAD_DIM:
            return Reason.HEAD_DIM, f"{dim}, the largest is {LARGEST_HEAD_DIM}"
    try:
        codegen.hooks(spec)
    except LoweringError as error:
        return Reason.SCORE if error.part in ("score", "sink") else Reason.MASK, str(error)
    return None


@lru_cache(maxsize=4096)
def choose(spec: AttentionSpec, batch: int, heads: int, queries: int, keys: int, head_dim: int, value_dim: int,
           dtype: torch.dtype, machine: Machine) -> Choice:
    """The configuration for q [batch, heads, queries, head_dim], k [batch, heads / group, keys, head_dim]."""
    return candidates(spec, batch, heads, queries, keys, head_dim, value_dim, dtype, machine)[0]


@lru_cache(maxsize=4096)
def candidates(spec: AttentionSpec, batch: int, heads: int, queries: int, keys: int, head_dim: int, value_dim: int,
               dtype: torch.dtype, machine: Machine) -> tuple[Choice, ...]:
    """Every configuration worth timing, the one that is taken without timing first."""
    rows = spec.group * queries
    limits = prefill.room(spec)
    if rows > DECODE_ROWS and queries > DECODE_QUERIES and spec.kv_splits < 2:
        plain = prefill.candidates(head_dim, value_dim, dtype.itemsize, limits, machine)
        if queries > hopper.ROWS and spec.sparsity == EXACTLY and hopper.serves(spec, head_dim, value_dim, dtype, machine):
            return (*hopper.candidates(spec, head_dim, value_dim, machine), plain[0])
        return tuple(plain)
    shape = decode.Shape(batch, heads // spec.group, queries, keys, head_dim, value_dim, dtype.itemsize)
    return tuple(decode.candidates(spec, shape, limits[0] == 32, machine))
