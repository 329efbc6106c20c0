"""q [B, H, T, D], k [P, H/group, PAGE, D], v [P, H/group, PAGE, Dv], their scales, pages [B, N]: or an error

The one place where the operands of `flashmla::attend_paged` are checked, for every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import OperandError
from ..ir import AttentionSpec
from ..pool.formats import PAIRS, Format, scale_dtype
from ..sparsity import EXACTLY
from .checks import DTYPES, check_spec_operands, group_of
from .sparse.config import unserved_in_pages

_INTEGERS = (torch.int32, torch.int64)


def check_paged_operands(
    q: Tensor, k: Tensor, v: Tensor, k_scales: Tensor | None, v_scales: Tensor | None, pages: Tensor, format: str,
    tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], text: str,
    dtypes: Sequence[torch.dtype] = DTYPES, bounds: Tensor | None = None,
) -> None:
    """Raises OperandError that names the value and what it should have been."""
    if format not in PAIRS:
        raise OperandError(f"attend_paged: format is one of {', '.join(PAIRS)}; found {format!r}")
    if q.dtype not in dtypes or any(x.dim() != 4 for x in (q, k, v)):
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = f"{q.dtype}, {q.dim()}, {k.dim()}, {v.dim()}"
        raise OperandError(f"attend_paged: q is of {names}, and q, k and v have 4 dimensions; found {found}")
    given = {"k": k, "v": v, "k_scales": k_scales, "v_scales": v_scales, "pages": pages}
    for name, x in given.items():
        if x is not None and x.device != q.device:
            raise OperandError(f"attend_paged: {name} is on {q.device}; found {x.device}")
    if pages.dim() != 2 or pages.shape[0] != q.shape[0] or pages.dtype not in _INTEGERS:
        raise OperandError(f"attend_paged: pages is int32 or int64 [{q.shape[0]}, N]; found {pages.dtype} {list(pages.shape)}")
    _check_pages(q, k, v, format, group_of(text))
    _check_bounds(q, k, bounds, format, AttentionSpec.parse(text))
    for x, scales, name, kind in zip((k, v), (k_scales, v_scales), ("k_scales", "v_scales"), PAIRS[format], strict=True):
        _check_scales(name, scales, x, kind)
    check_spec_operands("attend_paged", tables, sizes, scalars, text)


def _check_pages(q: Tensor, k: Tensor, v: Tensor, format: str, group: int) -> None:
    kind, (_, heads, _, dim) = PAIRS[format][0], q.shape
    wanted = [k.shape[0], heads // group, k.shape[2]]
    if heads % group or not kind.fits(dim) or list(k.shape) != [*wanted, kind.elements(dim)] or list(v.shape[:3]) != wanted:
        shape = f"k [P, {heads}/{group}, PAGE, {kind.elements(dim)}] and v [P, {heads}/{group}, PAGE, .]"
        raise OperandError(f"attend_paged: with q {list(q.shape)}, {shape}; found {list(k.shape)}, {list(v.shape)}")
    stored = tuple(each.storage or q.dtype for each in PAIRS[format])
    if (k.dtype, v.dtype) != stored:
        raise OperandError(f"attend_paged: {format} pages are {stored[0]}, {stored[1]}; found {k.dtype}, {v.dtype}")


def _check_bounds(q: Tensor, k: Tensor, bounds: Tensor | None, format: str, spec: AttentionSpec) -> None:
    """There are bounds where the policy needs them, and it is one that is served."""
    unserved = unserved_in_pages(spec, k.shape[2])
    if unserved:
        raise OperandError(f"attend_paged: no kernel for {unserved}")
    if bounds is None:
        if spec.sparsity != EXACTLY:
            raise OperandError(f"attend_paged: {spec.sparsity} needs the bounds of the pages")
        return
    wanted = [*k.shape[:2], 2, PAIRS[format][0].channels(k.shape[3])]
    if bounds.dtype != q.dtype or list(bounds.shape) != wanted or not bounds.is_contiguous() or bounds.device != q.device:
        found = f"{bounds.dtype} {list(bounds.shape)}"
        raise OperandError(f"attend_paged: bounds are {q.dtype} {wanted}, contiguous; found {found}")


def _check_scales(name: str, scales: Tensor | None, x: Tensor, kind: Format) -> None:
    if (scales is None) != (kind.storage is None):
        raise OperandError(f"attend_paged: {kind.name} pages have {'no' if kind.storage is None else 'their'} {name}")
    if scales is None:
        return
    dim = kind.channels(x.shape[3])
    kept = scale_dtype(scales.shape[-1])
    if scales.dtype != kept or scales.shape[:-1] != x.shape[:-1] or dim % scales.shape[-1]:
        wanted = f"{kept} [{', '.join(map(str, x.shape[:-1]))}, a part of {dim}]"
        raise OperandError(f"attend_paged: {name} is {wanted}; found {scales.dtype} {list(scales.shape)}")
