"""The kernels people use today, each called in the way that is quickest for it. What is not installed is absent.

    bind(copies) -> ways; each way is a list of calls, one for each copy of the operands, out [B, H, T, Dv]

Layouts are the peer's own wherever a view gives them. Here SDPA and FlexAttention; `peers_installed` has the others.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .attentions import DECODE, PREFILL, Attention
from .latents import FLASHMLA_PEER, LATENT
from .operands import Operands
from .peers_installed import fa3, flashinfer
from .peers_latent import flashmla
from .ways import Call, Unfit, Ways


@dataclass(frozen=True)
class Peer:
    """module: what has to be importable. gpu: whether a GPU is needed. groups: what it computes."""

    title: str
    bind: Callable[[list[Any]], Ways]
    module: str = "torch"
    gpu: bool = True
    groups: tuple[str, ...] = (PREFILL, DECODE)

    def absent(self, device: str) -> bool:
        return (self.gpu and device == "cpu") or importlib.util.find_spec(self.module) is None


def live(given: Operands) -> tuple[Tensor, Tensor]:
    """k and v up to the longest live length: a view."""
    longest = max(given.case.lengths)
    return given.k[:, :, :longest], given.v[:, :, :longest]


def mask(given: Operands) -> Tensor | None:
    """Bool [B or 1, 1, T, longest], or None where is_causal or nothing says the same."""
    case = given.case
    if case.group == DECODE and case.equal and case.queries == 1 or _is_causal(case):
        return None
    i = torch.arange(case.queries, device=given.q.device)[:, None]
    j = torch.arange(max(case.lengths), device=given.q.device)[None]
    return torch.stack([case.visible(b, i, j) for b in range(1 if case.equal else case.batch)])[:, None]


def _is_causal(case: Attention) -> bool:
    return case.group != DECODE and case.documents == 1 and not case.window


# ----------------------------------------------------------------------------------------------------------------- SDPA


def _sdpa(copies: list[Operands], backend: SDPBackend | None = None) -> Ways:
    """With enable_gqa; with the heads repeated beforehand, untimed; in decode also with the group as query rows."""
    given = copies[0]
    hidden = mask(given)
    if backend is SDPBackend.FLASH_ATTENTION and hidden is not None:
        raise Unfit("takes no mask")
    forms = [_gqa, _repeated] if given.case.sharing > 1 else [_repeated]
    if given.case.group == DECODE and hidden is None and given.case.sharing > 1:
        forms.append(_folded)
    return [[_under(backend, form(each, hidden)) for each in copies] for form in forms]


def _under(backend: SDPBackend | None, call: Call) -> Call:
    def run() -> Tensor:
        if backend is None:
            return call()
        with sdpa_kernel([backend]):
            return call()

    return run


def _gqa(given: Operands, hidden: Tensor | None) -> Call:
    k, v = live(given)
    return functools.partial(
        F.scaled_dot_product_attention, given.q, k, v, hidden, is_causal=_is_causal(given.case), enable_gqa=True)


def _repeated(given: Operands, hidden: Tensor | None) -> Call:
    group = given.case.sharing
    k, v = (x if group == 1 else x.repeat_interleave(group, 1) for x in live(given))
    return functools.partial(F.scaled_dot_product_attention, given.q, k, v, hidden, is_causal=_is_causal(given.case))


def _folded(given: Operands, hidden: Tensor | None) -> Call:
    case, (k, v) = given.case, live(given)
    q = given.q.reshape(case.batch, case.kv_heads, case.sharing, case.head_dim)
    return lambda: F.scaled_dot_product_attention(q, k, v).reshape(case.batch, case.heads, 1, case.value_dim)


# ------------------------------------------------------------------------------------------------------- FlexAttention


def _flex(copies: list[Operands]) -> Ways:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    given = copies[0]
    case, longest = given.case, max(given.case.lengths)
    blocks = None
    if not (case.group == DECODE and case.equal and case.queries == 1):
        batch = None if case.equal else case.batch
        blocks = create_block_mask(_mask_mod(given), batch, None, case.queries, longest, device=given.q.device.type)
    run = torch.compile(flex_attention, dynamic=False)
    return [[functools.partial(run, each.q, *live(each), block_mask=blocks, enable_gqa=case.sharing > 1) for each in copies]]


def _mask_mod(given: Operands) -> Callable[..., Tensor]:
    case = given.case
    if case.group == DECODE:
        first = given.tables[0]
        return lambda b, h, i, j: j <= first[b] + i
    if case.documents > 1:
        ids = given.tables[0][0]
        return lambda b, h, i, j: (j <= i) & (ids[i] == ids[j])
    if case.window:
        return lambda b, h, i, j: (j <= i) & (i - j < case.window)
    return lambda b, h, i, j: j <= i


PEERS = {
    "sdpa": Peer("SDPA", _sdpa, gpu=False),
    "sdpa-fa2": Peer("SDPA FA2", functools.partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION)),
    "sdpa-cudnn": Peer("SDPA cuDNN", functools.partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION)),
    "flex": Peer("Flex", _flex),
    "fa3": Peer("FA3", fa3, "flash_attn_interface"),
    "flashinfer": Peer("FlashInfer", flashinfer, "flashinfer"),
    FLASHMLA_PEER: Peer("FlashMLA", flashmla, "flash_mla", groups=(LATENT,)),
}
"""By the name --columns knows. "sdpa" is torch's own choice of kernel."""
