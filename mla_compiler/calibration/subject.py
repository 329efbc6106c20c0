"""A causal language model whose attentions run under any policies, compiled once

    hidden [T, C] = model(ids)      logits = head(hidden), in chunks of rows: those of a long text at once would not fit
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accounting import Accounts, accounts
from ..errors import OptionError
from ..ledger import Observer, trying
from ..sparsity import EXACTLY, Sparsity

ROWS = 256
"""Rows of logits made at once."""
Policies = Mapping[str, Sparsity]
"""Of some layers, by name; the others are exact."""


@dataclass(frozen=True)
class Outcome:
    """One window. hidden [T, C]; nll, of each next token, in nats, and top, the likeliest, [T - 1], or of the last ones alone;
    what was left out."""

    hidden: Tensor
    nll: Tensor
    top: Tensor
    accounts: Accounts


class Subject:
    """A transformers model, and the policy whose number is going to vary: the attentions that it cannot serve stay exact.

    Raises OptionError where the logits are no function of the last hidden state alone that is known here.
    """

    def __init__(self, model: Any, policy: Sparsity) -> None:
        self.model = model
        self.cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        options = {"flashmla.account": True, "flashmla.sparsity": str(policy)}
        self._forward = torch.compile(model.base_model, backend="flashmla", options=options)
        self._modules = sorted((name for name, _ in model.base_model.named_modules() if name), key=len)
        self._check_head()

    def run(self, ids: Tensor, policies: Policies | None = None, observer: Observer | None = None, last: int = 0) -> Outcome:
        """ids [T] under `policies`: none is the exact attention. last: how many tokens' logits are wanted; 0: of all."""
        chosen = policies or {}
        accounts(forget=True)
        with torch.no_grad(), trying(lambda site, own: chosen.get(self.layer(site), EXACTLY), observer):
            hidden = self._forward(ids[None], use_cache=False).last_hidden_state[0]
        before, wanted = hidden[-1 - last:-1] if last else hidden[:-1], ids[-last:] if last else ids[1:]
        losses = [(F.cross_entropy(logits, wanted[rows], reduction="none"), logits.argmax(-1))
                  for rows, logits in self.logits(before)]
        nll, top = (torch.cat(parts) for parts in zip(*losses, strict=True))
        return Outcome(hidden, nll.double(), top, accounts(forget=True))

    def layers(self, ids: Tensor, pattern: str = "") -> list[str]:
        """Those that can leave something out, in order, of those that the pattern is found in. OptionError: there is none."""
        served: dict[str, None] = {}

        def note(site: str, own: Sparsity) -> Sparsity:
            if own != EXACTLY and re.search(pattern, site):
                served[self.layer(site)] = None
            return EXACTLY

        with torch.no_grad(), trying(note):
            self._forward(ids[None], use_cache=False)
        accounts(forget=True)
        if not served:
            raise OptionError(f"no attention {f'of {pattern!r} ' if pattern else ''}can leave anything out under that policy",
                              "FLASHMLA_DEBUG=1 prints what became of each")
        return list(served)

    def layer(self, site: str) -> str:
        """The name of a site's module within the model: its name in whatever the model is made part of ends with it."""
        site = site.partition(" #")[0]
        return next((name for name in reversed(self._modules) if f".{site}".endswith(f".{name}")), site)

    def logits(self, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """hidden [N, C] -> (which rows [R], their logits [R, vocabulary] in float32), R at a time."""
        head = self.model.get_output_embeddings()
        for rows in torch.arange(len(hidden), device=hidden.device).split(ROWS):
            with torch.no_grad():
                logits = head(hidden[rows]).float()
            yield rows, logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def divergence(self, exact: Tensor, other: Tensor) -> float:
        """Of two hidden [N, C], the mean of KL(softmax(logits exact) || softmax(logits other)) in nats a token."""
        total = 0.0
        for (_, one), (_, two) in zip(self.logits(exact), self.logits(other), strict=True):
            total += F.kl_div(two.log_softmax(-1), one.log_softmax(-1), log_target=True, reduction="sum").item()
        return total / len(exact)

    def _check_head(self) -> None:
        ids = torch.arange(8, device=self.model.device)[None]
        with torch.no_grad():
            expected = self.model(ids, use_cache=False).logits[0].float()
            hidden = self.model.base_model(ids, use_cache=False).last_hidden_state[0]
        found = torch.cat([logits for _, logits in self.logits(hidden)])
        if (found - expected).abs().max() > 16 * torch.finfo(hidden.dtype).eps * expected.abs().max():
            raise OptionError(f"the logits of {type(self.model).__name__} are more than its output embedding and a softcap",
                              "such models cannot be calibrated yet")
