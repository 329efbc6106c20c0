"""(spec, shapes, dtype, machine)  =>  the kernel family and its launch configuration. Imports no Triton."""

from __future__ import annotations

import dataclasses
import importlib.util
from functools import lru_cache

import torch

from ..ir import AttentionSpec, Reason
from ..sparsity import EXACTLY
from . import printed
from .choice import Choice
from .decode import config as decode
from .decode import hopper_config as decode_hopper
from .decode import model as decode_model
from .errors import LoweringError
from .hopper import config as hopper
from .machine import Machine
from .prefill import config as prefill
from .prefill import model
from .sparse import config as sparse

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD_DIM = 256
DECODE_ROWS = 64
"""Rows of a KV head (query heads x positions) up to which the packed, split kernel is taken."""
QUANTISED_KEYS = {"prefill": 32, "decode": 64}
"""Keys of a tile of quantised pages, at most."""
DECODE_QUERIES = 16
"""Query positions up to which it is taken for any number of heads."""
MOST_TIMED = 8
"""Configurations of prefill that `flashmla.autotune` times: each compiles a kernel."""


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
        printed.hooks(spec)
    except LoweringError as error:
        return Reason.SCORE if error.part in ("score", "sink") else Reason.MASK, str(error)
    return None


@lru_cache(maxsize=4096)
def choose(spec: AttentionSpec, batch: int, heads: int, queries: int, keys: int, head_dim: int, value_dim: int,
           dtype: torch.dtype, machine: Machine) -> Choice:
    """The configuration for q [batch, heads, queries, head_dim], k [batch, heads / group, keys, head_dim]."""
    return candidates(spec, batch, heads, queries, keys, head_dim, value_dim, dtype, machine)[0]


def many_rows(spec: AttentionSpec, queries: int) -> bool:
    """Whether a tile of rows of one head is worth more than the heads of a group packed together."""
    return spec.group * queries > DECODE_ROWS and queries > DECODE_QUERIES and spec.kv_splits < 2


def chooses(spec: AttentionSpec, queries: int) -> bool:
    """Whether so many queries over pages choose among them: with many rows each page is read once for them all."""
    return spec.sparsity.selects and not many_rows(spec, queries)


@lru_cache(maxsize=4096)
def choose_paged(spec: AttentionSpec, batch: int, heads: int, queries: int, keys: int, head_dim: int, value_dim: int,
                 dtype: torch.dtype, machine: Machine, format: str, page: int, chosen: bool = False) -> Choice:
    """The same for keys and values in pages of `page` tokens, in `format`; `chosen`: in a list of pages."""
    shape = decode.Shape(batch, heads // spec.group, queries, keys, head_dim, value_dim, dtype.itemsize)
    if not many_rows(spec, queries) and decode_hopper.serves(spec, shape, dtype, machine):
        if format == "plain":
            boxes = decode_hopper.candidates(spec, shape, machine, page)
        else:
            boxes = decode_hopper.candidates_packed(spec, shape, machine, format, page)
        if boxes:
            return decode_model.ordered(spec.group, shape, boxes, machine)[0]
    of = page if chosen else 0
    return choose_paged_plain(spec, batch, heads, queries, keys, head_dim, value_dim, dtype, machine, format, of)


@lru_cache(maxsize=4096)
def choose_paged_plain(spec: AttentionSpec, batch: int, heads: int, queries: int, keys: int, head_dim: int, value_dim: int,
                       dtype: torch.dtype, machine: Machine, format: str, page: int = 0) -> Choice:
    """Of the plain kernels.

    Quantised tiles are unpacked in registers: small ones, by 8 warps. `page`: of chosen pages, in one of which a tile lies;
    else Triton shares the stages out between the loads of `pages` and those of the rows that they lead to: as many for each
    as a dense kernel has for its rows, if there is room: not on AMD.
    """
    if many_rows(spec, queries):
        tiled = prefill.candidates(head_dim, value_dim, dtype.itemsize, prefill.room(spec), machine)
        work = model.Work(batch * heads, queries, keys, head_dim, value_dim)
        known = list(model.ordered(spec, work, tiled, dtype.itemsize, machine))
    else:
        shape = decode.Shape(batch, heads // spec.group, queries, keys, head_dim, value_dim, dtype.itemsize)
        known = decode.candidates(spec, shape, prefill.room(spec)[0] == 32, machine)
    few = known if format == "plain" else [choice for choice in known if choice.block_n <= QUANTISED_KEYS[choice.family]]
    few = [choice for choice in few or known[-1:] if page % choice.block_n == 0]
    found = few[0]
    stages = 2 * found.stages - 1 if machine.backend == "cuda" and not page else found.stages
    return dataclasses.replace(found, stages=stages, warps=found.warps if format == "plain" else 8)


@lru_cache(maxsize=4096)
def candidates(spec: AttentionSpec, batch: int, heads: int, queries: int, keys: int, head_dim: int, value_dim: int,
               dtype: torch.dtype, machine: Machine) -> tuple[Choice, ...]:
    """Every configuration worth timing, the one that is taken without timing first."""
    limits = prefill.room(spec)
    if many_rows(spec, queries):
        choices = prefill.candidates(head_dim, value_dim, dtype.itemsize, limits, machine)
        if queries > hopper.ROWS and hopper.serves(spec, head_dim, value_dim, dtype, machine):
            choices = [*hopper.candidates(spec, head_dim, value_dim, machine), *choices]
        work = model.Work(batch * heads, queries, keys, head_dim, value_dim)
        return model.ordered(spec, work, choices, dtype.itemsize, machine)[:MOST_TIMED]
    shape = decode.Shape(batch, heads // spec.group, queries, keys, head_dim, value_dim, dtype.itemsize)
    packed = decode.candidates(spec, shape, limits[0] == 32, machine)
    if sparse.of_few_queries(spec).sparsity == EXACTLY and decode_hopper.serves(spec, shape, dtype, machine):
        packed = [*decode_hopper.candidates(spec, shape, machine), packed[0]]
        return tuple(decode_model.ordered(spec.group, shape, packed, machine))
    return tuple(packed)
