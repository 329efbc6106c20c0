"""The kernels people use today, each called in the way that is quickest for it. What is not installed is absent.

    bind(copies) -> ways; each way is a list of calls, one for each copy of the operands, out [B, H, T, Dv]

Unfit: the peer has no kernel for that attention. Layouts are the peer's own wherever a view gives them.
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

from .attentions import DECODE, Attention
from .operands import Operands

Call = Callable[[], Tensor]
Ways = list[list[Call]]


class Unfit(Exception):
    """The peer has no kernel for that attention."""


@dataclass(frozen=True)
class Peer:
    """module: what has to be importable. gpu: whether a GPU is needed."""

    title: str
    bind: Callable[[list[Operands]], Ways]
    module: str = "torch"
    gpu: bool = True

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


# --------------------------------------------------------------------------------------------------- what may be there


def _fa3(copies: list[Operands]) -> Ways:
    """FlashAttention-3: [B, T, H, D]."""
    import flash_attn_interface as fa

    case = copies[0].case
    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=copies[0].q.device)
    starts = _starts(copies[0])
    return [[functools.partial(_fa3_call, fa, case, lengths, starts, *_tokens_first(each)) for each in copies]]


def _fa3_call(fa: Any, case: Attention, lengths: Tensor, starts: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if case.group == DECODE:
        out = fa.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)
    elif case.documents > 1:
        size = case.document
        out = fa.flash_attn_varlen_func(q[0], k[0], v[0], starts, starts, max_seqlen_q=size, max_seqlen_k=size, causal=True)
        out = _first(out)[None]
    else:
        out = fa.flash_attn_func(q, k, v, causal=True, window_size=(case.window - 1, 0) if case.window else (-1, -1))
    return _first(out).transpose(1, 2)


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Older versions return the logsumexp as well."""
    return out[0] if isinstance(out, tuple) else out


def _tokens_first(given: Operands) -> tuple[Tensor, Tensor, Tensor]:
    return given.q.transpose(1, 2), given.k.transpose(1, 2), given.v.transpose(1, 2)


def _starts(given: Operands) -> Tensor:
    """Where each document starts, and the end: int32 [documents + 1]."""
    case = given.case
    return torch.arange(0, case.keys + 1, case.document, dtype=torch.int32, device=given.q.device)


PAGE = 16


def _flashinfer(copies: list[Operands]) -> Ways:
    """Ragged prefill, and decode over pages of its own layout [pages, 2, Hkv, 16, D], copied and planned untimed."""
    import flashinfer

    bind = _flashinfer_decode if copies[0].case.group == DECODE else _flashinfer_prefill
    return [[bind(flashinfer, each) for each in copies]]


def _flashinfer_prefill(flashinfer: Any, given: Operands) -> Call:
    case, starts = given.case, _starts(given)
    q, k, v = (x[0] for x in _tokens_first(given))
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(_workspace(given.q.device), "NHD")
    wrapper.plan(
        starts, starts, case.heads, case.kv_heads, case.head_dim, head_dim_vo=case.value_dim, causal=True,
        window_left=case.window - 1 if case.window else -1, q_data_type=q.dtype, kv_data_type=q.dtype)
    return lambda: wrapper.run(q, k, v)[None].transpose(1, 2)


def _flashinfer_decode(flashinfer: Any, given: Operands) -> Call:
    case, device = given.case, given.q.device
    if case.queries > 1:
        raise Unfit("its decode takes one query")
    if any(length % PAGE for length in case.lengths):
        raise Unfit("live lengths are not whole pages")
    counts = torch.tensor([0, *(length // PAGE for length in case.lengths)])
    starts = counts.cumsum(0).to(torch.int32)
    both = torch.stack([given.k, given.v], 1).unflatten(3, (-1, PAGE))  # [B, 2, Hkv, S / PAGE, PAGE, D]
    pages = both.permute(0, 3, 1, 2, 4, 5).flatten(0, 1).contiguous()
    each = case.keys // PAGE
    indices = torch.cat([torch.arange(n // PAGE) + b * each for b, n in enumerate(case.lengths)]).to(device, torch.int32)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(device), "HND", use_tensor_cores=True)
    wrapper.plan(
        starts.to(device), indices, torch.full((case.batch,), PAGE, dtype=torch.int32, device=device), case.heads,
        case.kv_heads, case.head_dim, PAGE, q_data_type=given.q.dtype, kv_data_type=given.q.dtype)
    q = given.q[:, :, 0].contiguous()
    return lambda: wrapper.run(q, pages)[:, :, None]


def _workspace(device: torch.device) -> Tensor:
    return torch.empty(128 * 2**20, dtype=torch.uint8, device=device)


def _deepseek(copies: list[Operands]) -> Ways:
    raise Unfit("reads MLA's latent cache, 576 wide, and no other")


PEERS = {
    "sdpa": Peer("SDPA", _sdpa, gpu=False),
    "sdpa-fa2": Peer("SDPA FA2", functools.partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION)),
    "sdpa-cudnn": Peer("SDPA cuDNN", functools.partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION)),
    "flex": Peer("Flex", _flex),
    "fa3": Peer("FA3", _fa3, "flash_attn_interface"),
    "flashinfer": Peer("FlashInfer", _flashinfer, "flashinfer"),
    "deepseek": Peer("FlashMLA", _deepseek, "flash_mla"),
}
"""By the name --columns knows. "sdpa" is torch's own choice of kernel."""
