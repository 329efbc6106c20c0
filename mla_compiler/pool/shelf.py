"""Pages that wait in host memory: slots of a shelf, pinned where there is a GPU, copied on a stream of their own

    evict    slot[n] = page[p], behind all that the current stream has been given;  p is free once it has been read
    bring    page[p] = slot[n], beside the current stream, which waits for it only where it uses the sequence

A page that was brought and not written since still has its slot: to evict it again moves nothing. On a CPU both are plain
copies. The pool's lock stands around all this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor
from torch.profiler import record_function

from ..errors import PoolExhausted
from .arena import Arena
from .fences import Fence
from .pages import Pages


class Shelf:
    """`count` slots of a page each, in memory that is taken when the first page is evicted."""

    def __init__(self, arena: Arena, count: int, fence: Callable[[], Fence | None]) -> None:
        self.arena = arena
        self.slots = Pages(count)
        self.copies: dict[int, int] = {}  # of a page in the arena: the slot that holds the same
        self._fence = fence
        self._planes: list[Tensor] = []
        self._stream = torch.cuda.Stream(arena.geometry.device) if arena.geometry.device.type == "cuda" else None

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self._planes)

    def unsaved(self, pages: Iterable[int]) -> list[int]:
        """Those that no slot holds a copy of."""
        return [page for page in pages if page not in self.copies]

    def room(self, pages: Iterable[int]) -> int:
        """Slots for pages beyond those that have one: free ones, and copies of pages that are not to be evicted."""
        return self.slots.supply + len(self.copies.keys() - set(pages))

    def evict(self, pages: list[int]) -> tuple[dict[int, int], Fence | None]:
        """A slot for each page, held once, with its contents; and when the pages have been read.

        Raises PoolExhausted, and then nothing has changed.
        """
        wanted = sorted(self.unsaved(pages))
        if len(wanted) > self.slots.supply and len(wanted) > self.room(pages):
            raise PoolExhausted.on_host(len(wanted), self.room(pages), self.slots.count)
        with self._aside(behind=True), record_function("flashmla::pool.evict"):
            for page in list(self.copies.keys() - set(pages)) if len(wanted) > self.slots.supply else []:
                self.discard([page])
            new = sorted(self.slots.take(len(wanted)))
            self._copy(wanted, new, to_host=True)
            fence = self._fence()
        slots = dict(zip(wanted, new, strict=True))
        return slots | {page: self.copies.pop(page) for page in pages if page not in slots}, fence

    def bring(self, counts: Counter[int], pages: Pages) -> tuple[dict[int, int], Fence | None]:
        """A page for each slot, with its contents and as many holders as are counted, who hold the slot no more.

        Raises PoolExhausted, and then nothing has changed.
        """
        with self._aside(behind=False), record_function("flashmla::pool.bring"):
            taken, slots = sorted(pages.take(len(counts))), sorted(counts)
            self._copy(taken, slots, to_host=False)
            fence = self._fence()
        brought = dict(zip(slots, taken, strict=True))
        clean = {page: slot for slot, page in brought.items() if self.slots.refs[slot] == counts[slot]}
        others = but_the_first(counts)
        pages.hold(brought[slot] for slot in others)
        pages.used(taken, fence)
        self.slots.drop([*others, *(brought.keys() - set(clean.values()))], fence)
        self.slots.used(clean.values(), fence)
        self.copies.update(clean)
        return brought, fence

    def discard(self, pages: Iterable[int]) -> None:
        """These pages are written or given up: what slots hold of them is of no use."""
        for page in pages:
            if page in self.copies:
                self.slots.drop([self.copies.pop(page)], None)

    def settle(self) -> None:
        """Neither stream overtakes the other here: the arena is about to move, or has."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self.arena.geometry.device)
            current.wait_stream(self._stream)
            self._stream.wait_stream(current)

    def _aside(self, behind: bool) -> AbstractContextManager[object]:
        """The shelf's own stream; `behind`: after all that the current one has been given."""
        if self._stream is None:
            return nullcontext()
        if behind or not self._planes:
            self._stream.wait_stream(torch.cuda.current_stream(self.arena.geometry.device))
        return torch.cuda.stream(self._stream)

    def _copy(self, pages: list[int], slots: list[int], to_host: bool) -> None:
        if not pages:
            return
        if not self._planes:
            self._planes = self._made()
        planes = [x for store in self.arena.stores for x in store.tensors()]
        for page, slot, count in runs(pages, slots):
            for here, there in zip(planes, self._planes, strict=True):
                source, target = here[page : page + count], there[slot : slot + count]
                source, target = (source, target) if to_host else (target, source)
                target.copy_(source, non_blocking=True)

    @torch.inference_mode(False)
    def _made(self) -> list[Tensor]:
        pinned, count = self._stream is not None, self.slots.count
        planes = [x for store in self.arena.stores for x in store.tensors()]
        return [torch.empty(count, *x.shape[1:], dtype=x.dtype, pin_memory=pinned) for x in planes]


def but_the_first(counts: Counter[int]) -> list[int]:
    """All holders of what is counted, but for one of each."""
    return [] if counts.total() == len(counts) else [one for one, holders in counts.items() for _ in range(holders - 1)]


def runs(pages: list[int], slots: list[int]) -> list[tuple[int, int, int]]:
    """page, slot, count of pieces that are whole on both sides: one copy each."""
    pairs = sorted(zip(pages, slots, strict=True))
    steps = enumerate(pairwise(pairs), start=1)
    first = [0, *(at for at, ((p, s), (page, slot)) in steps if page - p != 1 or slot - s != 1)]
    return [(*pairs[at], end - at) for at, end in zip(first, [*first[1:], len(pairs)], strict=True)]
