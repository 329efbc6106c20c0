"""q [B, H, T, D], k [B, H/group, S, D], v [B, H/group, S, Dv], and every table, size and scalar the spec names: or an error

The one place where the operands of `flashmla::attend` are checked, for every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import OperandError
from ..expr import loads
from ..ir import AttentionSpec

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_operands(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], text: str,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> None:
    """Raises OperandError that names the value and what it should have been."""
    group = group_of(text)
    if not q.dim() == k.dim() == v.dim() == 4:
        raise OperandError(f"attend: q, k and v have 4 dimensions; found {q.dim()}, {k.dim()}, {v.dim()}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise OperandError(f"attend: q, k and v have one dtype of {names}; found {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise OperandError(f"attend: q, k and v are on one device; found {q.device}, {k.device}, {v.device}")
    batch, heads, _, dim = q.shape
    if heads % group or k.shape[:2] != (batch, heads // group) or k.shape[3] != dim:
        raise OperandError(f"attend: with q {list(q.shape)} and group {group}, k is {_wanted(q, group)}; found {list(k.shape)}")
    if v.shape[:3] != k.shape[:3]:
        wanted = f"[{', '.join(map(str, k.shape[:3]))}, Dv]"
        raise OperandError(f"attend: with k {list(k.shape)}, v is {wanted}; found {list(v.shape)}")
    check_spec_operands("attend", tables, sizes, scalars, text)


def check_spec_operands(
    op: str, tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], text: str
) -> None:
    """Every table, size and scalar the spec names is there."""
    _, ranks, size_count, scalar_count = _needs(text)
    if len(sizes) < size_count or len(scalars) < scalar_count:
        raise OperandError(
            f"{op}: the spec reads {size_count} sizes and {scalar_count} scalars; found {len(sizes)} and {len(scalars)}"
        )
    for at, (name, rank) in ranks.items():
        if at >= len(tables) or tables[at].dim() != rank:
            found = f"{tables[at].dim()}" if at < len(tables) else f"only {len(tables)} tables"
            raise OperandError(f"{op}: table {name} has {rank} dimensions; found {found}")


def group_of(text: str) -> int:
    """Query heads to a key head."""
    return _needs(text)[0]


def _wanted(q: Tensor, group: int) -> str:
    heads = str(q.shape[1] // group) if q.shape[1] % group == 0 else f"{q.shape[1]}/{group}"
    return f"[{q.shape[0]}, {heads}, S, {q.shape[3]}]"


@lru_cache(maxsize=4096)
def _needs(text: str) -> tuple[int, dict[int, tuple[str, int]], int, int]:
    """group, {table number: (name, rank)}, number of sizes and of scalars a spec reads."""
    spec = AttentionSpec.parse(text)
    ranks = {int(load.name[1:]): (load.name, len(load.index)) for e in spec.expressions() for load in loads(e)}
    names = {symbol.name for e in spec.expressions() for symbol in e.free_symbols}
    counts = [max([1 + int(name[1:]) for name in names if name[0] == kind and name[1:].isdigit()], default=0) for kind in "nx"]
    return spec.group, ranks, counts[0], counts[1]
