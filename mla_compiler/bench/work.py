"""A model bound to a case: what one measured call does, in any dtype, from the same numbers.

    step(forward) -> logits [B, vocab] of the last position
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cases import Case

TRUTH = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
"""The dtype whose result counts as exact beside a working dtype."""


def random_model(architecture: str, shape: Mapping[str, Any], device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """transformers' causal language model of that name with random weights, attention by F.sdpa."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(attn_implementation="sdpa", dtype=dtype, **shape)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    finally:
        torch.set_default_dtype(default)


def random_llama(shape: Mapping[str, Any], device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    return random_model("Llama", shape, device, dtype, seed)


@dataclass
class Work:
    """The model, its input ids, and for decode a static cache filled with random keys and values up to the context."""

    model: Any
    case: Case
    ids: Tensor
    cache: Any = None

    @classmethod
    def of(cls, model: Any, case: Case, seed: int = 0) -> Work:
        torch.manual_seed(seed)
        length = 1 if case.decode else case.context
        ids = torch.randint(model.config.vocab_size, (case.batch, length), device=model.device)
        work = cls(model, case, ids, _empty_cache(model, case) if case.decode else None)
        for layer in work.layers:
            layer.keys[:, :, : case.context].normal_()
            layer.values[:, :, : case.context].normal_()
        work.rewind()
        return work

    @property
    def layers(self) -> list[Any]:
        return list(self.cache.layers) if self.cache is not None else []

    @property
    def bytes(self) -> int:
        """Of the weights and of the caches."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in tensors)

    def rewind(self) -> None:
        """Back to the context, without a synchronisation; the next step overwrites what the last one wrote."""
        for layer in self.layers:
            layer.cumulative_length.fill_(self.case.context)

    def step(self, forward: Callable[..., Any]) -> Tensor:
        """Logits [B, vocab] of the last position, by the model or a compiled form of it."""
        cache = {} if self.cache is None else {"past_key_values": self.cache}
        out = forward(input_ids=self.ids, use_cache=self.case.decode, logits_to_keep=1, **cache)
        logits: Tensor = out.logits
        return logits[:, -1]

    def converted(self, dtype: torch.dtype) -> Work:
        """The same numbers in another dtype: a copy of the model and of the cache."""
        other = Work(copy.deepcopy(self.model).to(dtype), self.case, self.ids)
        other.cache = _empty_cache(other.model, self.case) if self.case.decode else None
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            theirs.keys.copy_(mine.keys)
            theirs.values.copy_(mine.values)
        other.rewind()
        return other


def _empty_cache(model: Any, case: Case) -> Any:
    """A static cache that one step of the model has laid out: keys and values, or DeepSeek's latents and rope keys."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=case.cache)
    ids = torch.zeros(case.batch, 1, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    for layer in cache.layers:
        layer.keys.zero_()
        layer.values.zero_()
    return cache
