"""flashmla::pool_*: keys and values in pages, as operators

    pages [P, H, PAGE, D]; table [B, N] int32, the pages of each row in order, -1 where there is none; lengths [B] int32
    token t of row b  =  pages[table[b, t // PAGE], :, t % PAGE, :]

    pool_append    x [B, H, T, D] becomes the tokens lengths[b] ... lengths[b] + T of each row
    pool_bound     the bounds of the pages that take x (`bounds`); pool_append beside it writes x itself
    pool_view      the tokens of each row in order, [B, H, N * PAGE, D]; `page_cache` reads it as the gather that it is
    pool_copy      pages[targets] = pages[sources]
    pool_quantize  values and scales of a format (`formats`)
    attend_paged   flashmla::attend, its k and v in pages
    pool_room      the owner of `tables` makes room for more tokens and enters the new pages: host work, in no CUDA graph
    pool_advance   lengths += tokens

append, bound, copy, quantize and advance are made of ATen operators, and stay so in a graph: Inductor fuses what they are
given, RoPE say, into the scatter, and writes in place. As one opaque operator that mutates, each would cost a copy of the pages
wherever Inductor cannot prove that nobody reads the old ones.
"""

from __future__ import annotations

import weakref
from typing import Protocol

import torch
from torch import Tensor

from ..ir import AttentionSpec
from ..ops import output_like
from . import formats
from .bounds import bound

LIBRARY = torch.library.Library("flashmla", "FRAGMENT")

_TAGS = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define("pool_append(Tensor(a!) pages, Tensor table, Tensor lengths, Tensor x) -> ()", tags=_TAGS)
LIBRARY.define(
    "pool_view(Tensor pages, Tensor? scales, Tensor table, Tensor lengths, str format, ScalarType dtype, "
    "Tensor? bounds=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)
LIBRARY.define(
    "attend_paged(Tensor q, Tensor k, Tensor v, Tensor? k_scales, Tensor? v_scales, Tensor pages, str format, "
    "Tensor[] tables, SymInt[] sizes, float[] scalars, str spec, Tensor? bounds=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)
LIBRARY.define("pool_bound(Tensor(a!) bounds, Tensor table, Tensor lengths, Tensor x, int page) -> ()", tags=_TAGS)
LIBRARY.define("pool_copy(Tensor(a!) pages, Tensor sources, Tensor targets) -> ()", tags=_TAGS)
LIBRARY.define("pool_quantize(Tensor x, str format, int group) -> (Tensor, Tensor)", tags=_TAGS)
LIBRARY.define(
    "pool_room(Tensor handle, Tensor(a!) tables, SymInt tokens) -> ()",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)
LIBRARY.define("pool_advance(Tensor(a!) lengths, SymInt tokens) -> ()", tags=_TAGS)


class Owner(Protocol):
    """Who has the truth about some tables."""

    def make_room(self, tables: Tensor, tokens: int) -> None:
        """Room for `tokens` more in each row; `tables` says afterwards where. PoolExhausted, and then nothing has changed."""


POOL = torch.ops.flashmla

OWNERS: weakref.WeakValueDictionary[int, Owner] = weakref.WeakValueDictionary()
"""By the number that their handle tensor holds."""


def _append(pages: Tensor, table: Tensor, lengths: Tensor, x: Tensor) -> None:
    count, _, size, _ = pages.shape
    t = lengths[:, None].long() + torch.arange(x.shape[2], device=x.device)                 # [B, T]
    page = table.gather(1, t // size).long()
    # Where there is no page there is no such index: an error, and never a write into somebody's last page.
    page = torch.where(page < 0, count, page)
    pages[page, :, t % size] = x.detach().transpose(1, 2)


def _view(
    pages: Tensor, scales: Tensor | None, table: Tensor, lengths: Tensor, format: str, dtype: torch.dtype,
    bounds: Tensor | None = None,
) -> Tensor:
    """Zero where there is no page, and from lengths[b] on. Attention must not see those keys: fused, it does not."""
    at = table.long().clamp(min=0)
    x = pages[at] if scales is None else formats.dequantize(pages[at], scales[at], format, dtype)   # [B, N, H, PAGE, D]
    t = torch.arange(table.shape[1] * pages.shape[2], device=table.device).view(table.shape[1], -1)  # [N, PAGE]
    here = (t < lengths[:, None, None]) & (table >= 0)[:, :, None]                                  # [B, N, PAGE]
    return torch.where(here[:, :, None, :, None], x, 0).transpose(1, 2).flatten(2, 3)


def _copy(pages: Tensor, sources: Tensor, targets: Tensor) -> None:
    pages[targets] = pages[sources]


def _advance(lengths: Tensor, tokens: int) -> None:
    lengths.add_(tokens)


def _room(handle: Tensor, tables: Tensor, tokens: int) -> None:
    OWNERS[int(handle)].make_room(tables, tokens)


@torch.library.register_fake("flashmla::pool_view", lib=LIBRARY)
def _view_fake(
    pages: Tensor, scales: Tensor | None, table: Tensor, lengths: Tensor, format: str, dtype: torch.dtype,
    bounds: Tensor | None = None,
) -> Tensor:
    """`bounds` are not read here: they are those of the pages, for whoever reads these instead."""
    _, heads, size, stored = pages.shape
    dim = formats.FORMATS[format].channels(stored)
    return pages.new_empty((table.shape[0], heads, table.shape[1] * size, dim), dtype=dtype)


@torch.library.register_fake("flashmla::attend_paged", lib=LIBRARY)
def _attend_paged_fake(
    q: Tensor, k: Tensor, v: Tensor, k_scales: Tensor | None, v_scales: Tensor | None, pages: Tensor, format: str,
    tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str, bounds: Tensor | None = None,
) -> Tensor:
    """q [B, H, T, D], pages [B, N]: key j of row b is k[pages[b, j // PAGE], :, j % PAGE] -> [B, H, T, Dv].

    A negative page counts from the last, as in k[pages]. Where every query of a row is shown nothing, nothing is read.
    bounds [P, H/group, 2, D] in q's dtype: those of the keys of each page, where the spec's policy is to choose among pages.
    format: a pair of `formats`, of keys and of values; that of pool_view is of one of the two.
    """
    value = v.new_empty((1, 1, 1, formats.PAIRS[format][1].channels(v.shape[3])), dtype=q.dtype)
    return output_like(q, value, AttentionSpec.parse(spec).heads_first)


@torch.library.register_fake("flashmla::pool_room", lib=LIBRARY)
def _room_fake(handle: Tensor, tables: Tensor, tokens: int) -> None:
    pass


_COMPOSITE = {"append": _append, "bound": bound, "copy": _copy, "quantize": formats.quantize, "advance": _advance}
for _name, _function in _COMPOSITE.items():
    LIBRARY.impl(f"pool_{_name}", _function, "CompositeImplicitAutograd")
for _key in ("CPU", "CUDA"):
    LIBRARY.impl("pool_view", _view, _key)
    LIBRARY.impl("pool_room", _room, _key)
