"""What attentions left out, counted while they ran under `flashmla.account`: of each site, of each head, tile by tile

    step      of a tile of rows and keys: 0 nothing of it is visible, 1 neither q.k nor p.v was computed, 2 q.k alone, 3 both
    dropped   of a row: the share of its softmax that lay in tiles of step 1 and 2

A call is counted when Python makes it: calls captured in a CUDA graph are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .sparsity import Sparsity

NOTHING, LEFT_OUT, WEIGHED, COMPUTED = range(4)


@dataclass(frozen=True)
class Call:
    """One call of one attention, on its device.

    steps [B, H or H/group, row tiles, key tiles] uint8; dropped [B, H, T] float32; tile: (rows of a head, keys) of a tile;
    dims: (D, Dv); itemsize in bytes; reads_v: V of a weighed tile was read before it was known whether it was needed.
    """

    steps: Tensor
    dropped: Tensor
    tile: tuple[int, int]
    dims: tuple[int, int]
    itemsize: int
    reads_v: bool = False


@dataclass(frozen=True)
class Account:
    """All calls of one site. Lists are by query head.

    tiles: of step 1, 2 and 3; flops: all, and those left out; bytes: those of K and V that would be read, and those that were
    not; dropped: the mean over all rows; worst: of any row. steps [H or H/group, row tiles, key tiles] are those of the first
    batch entry of the call with most tiles.
    """

    site: str
    policy: str
    calls: int
    tiles: tuple[tuple[int, int, int], ...]
    flops: tuple[int, int]
    bytes: tuple[int, int]
    dropped: tuple[float, ...]
    worst: tuple[float, ...]
    steps: Tensor = field(repr=False, compare=False)

    def share(self, *steps: int) -> float:
        """Of all visible tiles, those of these steps."""
        total = sum(map(sum, self.tiles))
        return sum(head[step - 1] for head in self.tiles for step in steps) / total if total else 0.0

    @property
    def left_out(self) -> float:
        """The share of all FLOPs, of q.k and p.v."""
        return self.flops[1] / self.flops[0] if self.flops[0] else 0.0


class Sums:
    """The running sums of one site, on its device: nothing is read back until someone asks."""

    def __init__(self, call: Call) -> None:
        heads, device = call.dropped.shape[1], call.dropped.device
        self.dims, self.itemsize = call.dims, call.itemsize
        self.calls = self.rows = 0
        self.tiles, self.pairs = (torch.zeros(heads, 3, dtype=torch.int64, device=device) for _ in range(2))
        self.keys = torch.zeros(3, dtype=torch.int64, device=device)                    # all, K not read, V not read
        self.dropped = torch.zeros(heads, dtype=torch.float64, device=device)
        self.worst = torch.zeros(heads, device=device)
        self.steps = call.steps[0, :, :0]

    def add(self, call: Call) -> None:
        rows, keys = call.tile
        own = torch.stack([(call.steps == step).sum((0, 2, 3)) for step in (LEFT_OUT, WEIGHED, COMPUTED)], -1)
        tiles = own.repeat_interleave(call.dropped.shape[1] // len(own), 0)                    # [H, 3]
        self.tiles += tiles
        self.pairs += tiles * (rows * keys)
        gone, weighed, _ = own.sum(0)
        self.keys += torch.stack([own.sum(), gone, gone + (0 if call.reads_v else weighed)]) * keys
        self.dropped += call.dropped.sum((0, 2), dtype=torch.float64)
        self.worst = torch.maximum(self.worst, call.dropped.amax((0, 2)))
        self.calls, self.rows = self.calls + 1, self.rows + call.dropped.shape[0] * call.dropped.shape[2]
        if call.steps[0].numel() >= self.steps.numel():
            self.steps = call.steps[0]

    def account(self, site: str, policy: str) -> Account:
        """What they are now, on the host."""
        d, dv = self.dims
        gone, weighed, computed = self.pairs.sum(0).tolist()
        keys, no_k, no_v = self.keys.tolist()
        return Account(
            site, policy, self.calls, tuple(map(tuple, self.tiles.tolist())),
            (2 * (gone + weighed + computed) * (d + dv), 2 * (gone * (d + dv) + weighed * dv)),
            (keys * (d + dv) * self.itemsize, (no_k * d + no_v * dv) * self.itemsize),
            tuple((self.dropped / self.rows).tolist()), tuple(self.worst.tolist()), self.steps.cpu(),
        )


Policies = Callable[[str, Sparsity], Sparsity]
"""Of a site, and the policy it was compiled with: the one it is to have."""
Observer = Callable[[str, Callable[[Sparsity], tuple[Tensor, Call]]], None]
"""Told each call: its site, and how to have its result under any policy."""


@dataclass
class Ledger:
    """The accounts of a process, and what is tried instead of what was compiled."""

    sums: dict[tuple[str, str], Sums] = field(default_factory=dict)
    policies: Policies | None = None
    observer: Observer | None = None

    def policy(self, site: str, own: Sparsity) -> Sparsity:
        return self.policies(site, own) if self.policies else own

    def note(self, site: str, policy: Sparsity, call: Call) -> None:
        self.sums.setdefault((site, str(policy)), Sums(call)).add(call)


LEDGER = Ledger()


@contextmanager
def trying(policies: Policies | None = None, observer: Observer | None = None) -> Iterator[None]:
    """Sites with an account run under these policies: nothing is compiled anew. OptionError where no kernel serves one."""
    before = LEDGER.policies, LEDGER.observer
    LEDGER.policies, LEDGER.observer = policies, observer
    try:
        yield
    finally:
        LEDGER.policies, LEDGER.observer = before
