"""q_latent [B, H, T, R], q_rope [B, H, T, P], latent [B, S, R], rope [B, S, P], tokens [B, T, K], pages [B, N]: or an error

Or latent uint8 [B, S, R + R/32 + 2 P], packed, and no rope. The one place where the operands of `flashmla::attend_latent` are
checked, for every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import OperandError
from .checks import DTYPES, check_spec_operands
from .fp8 import check_packed

PAGE = 64
"""Tokens of a page of latents."""
_INTEGERS = (torch.int32, torch.int64)


def check_latent_operands(
    q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor | None, tokens: Tensor | None, pages: Tensor | None,
    tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], text: str,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> None:
    """Raises OperandError that names the value and what it should have been."""
    if (rope is None) != (latent.dtype == torch.uint8):
        raise OperandError(f"attend_latent: rope is None where latent is packed, uint8, only; found {latent.dtype}")
    queries = {"q_latent": q_latent, "q_rope": q_rope}
    given = queries | {"latent": latent} | ({} if rope is None else {"rope": rope})
    _kinds(queries if rope is None else given, dtypes)
    _shapes(given, pages)
    batch, _, length, _ = q_latent.shape
    for name, x, wanted, kinds in (
        ("tokens", tokens, (batch, length), _INTEGERS), ("pages", pages, (batch,), (torch.int32,)),
    ):
        if x is None:
            continue
        if x.dim() != len(wanted) + 1 or tuple(x.shape[:-1]) != wanted:
            shape = ", ".join(map(str, (*wanted, "K" if name == "tokens" else "N")))
            raise OperandError(f"attend_latent: {name} is [{shape}]; found {list(x.shape)}")
        if x.dtype not in kinds or x.device != q_latent.device:
            names = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
            raise OperandError(f"attend_latent: {name} is {names} on {q_latent.device}; found {x.dtype} on {x.device}")
    check_spec_operands("attend_latent", tables, sizes, scalars, text)


def _kinds(given: dict[str, Tensor], dtypes: Sequence[torch.dtype]) -> None:
    names = ", ".join(given)
    kind = given["q_latent"].dtype
    if kind not in dtypes or any(x.dtype != kind for x in given.values()):
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = ", ".join(str(x.dtype) for x in given.values())
        raise OperandError(f"attend_latent: {names} have one dtype of {known}; found {found}")


def _shapes(given: dict[str, Tensor], pages: Tensor | None) -> None:
    names, found = ", ".join(given), [list(x.shape) for x in given.values()]
    devices = [str(x.device) for x in given.values()]
    if len(set(devices)) > 1:
        raise OperandError(f"attend_latent: {names} are on one device; found {', '.join(devices)}")
    q_latent, q_rope, latent, *_ = found
    if [len(shape) for shape in found] != [4, 4, 3, 3][:len(found)]:
        raise OperandError(f"attend_latent: q_latent and q_rope have 4 dimensions, latent and rope 3; found {found}")
    rank, width = q_latent[3], q_rope[3]
    if rank < 1 or width < 1:
        raise OperandError(f"attend_latent: R and P are 1 or more; found {rank} and {width}")
    packed = given["latent"].dtype == torch.uint8
    if packed:
        check_packed(given["latent"], rank, width, given["q_latent"].dtype)
    first = [latent[0], PAGE] if pages is not None else [q_latent[0], latent[1]]
    keys = [[*first, latent[2]]] if packed else [[*first, rank], [*first, width]]
    if found[1:] != [[*q_latent[:3], width], *keys]:
        lead = f"PAGES, {PAGE}" if pages is not None else f"{q_latent[0]}, S"
        raise OperandError(
            f"attend_latent: with q_latent {q_latent}, q_rope is {[*q_latent[:3], 'P']}, latent [{lead}, {rank}], "
            f"rope [{lead}, {width}]; found {', '.join(map(str, found[1:]))}"
        )
