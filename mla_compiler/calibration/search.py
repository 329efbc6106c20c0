"""The largest budget whose allocation keeps to the bound on text: tried, and drawn back until it holds

    loss   =  exp(mean(nll - exact nll)) - 1                 relative perplexity, over every token of every window
    holds  <=>  loss, one standard error added, <= bound     what is chosen by a measured loss has a larger one elsewhere
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sparsity import Sparsity
from .allocation import allocate
from .curves import Curve
from .subject import Outcome

TRIES = 6
FIRST = 0.75
"""Of the bound, the first budget: the loss is about the budget, and a standard error is added to it."""
NEAR = 0.9
"""Of the bound: what is no nearer is tried again."""


@dataclass(frozen=True)
class Measured:
    """Under some policies, over some windows. perplexity: of the exact model and of this; mean and standard error of
    nll - exact nll, nats a token; agreement: the share of tokens whose likeliest next is the same; accuracy: the change in the
    share of those that it hits; qk, pv, work: the shares of tiles whose q.k, whose p.v, and of FLOPs, that were left out.
    """

    perplexity: tuple[float, float]
    mean: float
    error: float
    agreement: float
    accuracy: float
    qk: float
    pv: float
    work: float

    @property
    def loss(self) -> float:
        return math.expm1(self.mean)

    @property
    def upper(self) -> float:
        return math.expm1(self.mean + self.error)

    def __str__(self) -> str:
        return (f"loss {self.loss:+.2%} ± {self.upper - self.loss:.2%}, {self.pv:.1%} of p.v and {self.work:.1%} of "
                f"FLOPs left out, next token the same {self.agreement:.1%}, hit {100 * self.accuracy:+.2f} points")


def compare(exact: Sequence[Outcome], other: Sequence[Outcome], ids: Sequence[Tensor], sites: str = "") -> Measured:
    """Window by window; what is left out, of the sites in whose name the regular expression `sites` is found."""
    before, after = (torch.cat([outcome.nll for outcome in outcomes]) for outcomes in (exact, other))
    pairs = list(zip(exact, other, ids, strict=True))
    same = torch.cat([two.top == one.top for one, two, _ in pairs]).double().mean().item()
    hits = torch.cat([(two.top == text[1:]).double() - (one.top == text[1:]).double() for one, two, text in pairs])
    every = [account for outcome in other for account in outcome.accounts if re.search(sites, account.site)]
    work = [sum(account.flops[at] for account in every) for at in (0, 1)]
    tiles = [sum(head[step] for account in every for head in account.tiles) for step in range(3)]
    change, total = after - before, max(sum(tiles), 1)
    return Measured(
        (math.exp(before.mean().item()), math.exp(after.mean().item())),
        change.mean().item(), change.std().item() / math.sqrt(len(change)), same, hits.mean().item(),
        tiles[0] / total, (tiles[0] + tiles[1]) / total, work[1] / max(work[0], 1))


Policies = Mapping[str, Sparsity]


def search(curves: Sequence[Curve], bound: float, measure: Callable[[Policies], Measured]) -> tuple[Policies, Measured] | None:
    """The policies that leave out most of those that hold, and what was measured; None if none held."""
    best: tuple[Policies, Measured] | None = None
    low, high, budget, tried = 0.0, math.inf, FIRST * bound, set()
    for _ in range(TRIES):
        policies = allocate(curves, budget)
        if (key := tuple(policies.values())) in tried:
            break
        tried.add(key)
        found = measure(policies)
        if found.upper <= bound:
            best, low = (policies, found), budget
            if found.upper >= NEAR * bound:
                break
        else:
            high = budget
        budget = _next(low, high, budget, found.upper / bound)
    return best


def _next(low: float, high: float, budget: float, ratio: float) -> float:
    """Between what held and what did not; where one is not known yet, on by as much as the loss is off, a fifth to fourfold."""
    if low and math.isfinite(high):
        return math.sqrt(low * high)
    return budget * (min(0.95 / max(ratio, 0.01), 4.0) if low else max(min(0.95 / ratio, 0.8), 0.25))
