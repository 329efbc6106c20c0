"""Which sequence has which pages: the bookkeeping of a pool, all on the host. The pool's lock stands around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as List

from ..errors import PoolError
from .fences import Fence
from .geometry import Geometry
from .pages import Pages
from .sequences import Sequence
from .shelf import Shelf


class Ledger:
    """The live sequences and their pages. `fence` makes the fence of now, or None where nothing runs behind."""

    def __init__(self, geometry: Geometry, count: int, fence: Callable[[], Fence | None]) -> None:
        self.geometry = geometry
        self.pages = Pages(count)
        self.sequences: set[Sequence] = set()
        self.idle: dict[Sequence, None] = {}
        """May be evicted; idle longest first."""
        self.shelf: Shelf | None = None
        self._fence = fence

    def enter(self, sequence: Sequence) -> Sequence:
        self.sequences.add(sequence)
        return sequence

    def check(self, sequences: List[Sequence]) -> None:
        """Raises PoolError for a sequence that is released, or of another pool."""
        for sequence in sequences:
            if sequence not in self.sequences:
                raise PoolError("this sequence is released" if sequence.released else "this sequence is of another pool")

    def need(self, sequences: List[Sequence], tokens: int) -> int:
        """Pages that `extend` would take, copies of shared tails and what is on the host among them."""
        self.check(sequences)
        if len(set(sequences)) != len(sequences) or tokens < 0:
            raise PoolError(f"distinct sequences grow by 0 or more tokens; found {tokens} for {len(sequences)}")
        missing = sum(self._missing(s, tokens) for s in sequences)
        return missing + len(self._shared_tails(sequences, tokens)) + len(self.away(sequences))

    def away(self, sequences: List[Sequence]) -> Counter[int]:
        """Slots of the shelf that hold their pages, and how many of them hold each."""
        return Counter([~page for sequence in sequences if sequence.away for page in sequence.pages if page < 0])

    def pages_after(self, sequence: Sequence, tokens: int) -> int:
        """Pages it has once it has grown."""
        return len(sequence.pages) + self._missing(sequence, tokens)

    def extend(self, sequences: List[Sequence], tokens: int, copy: Callable[[list[int], list[int]], None]) -> None:
        """Room for `tokens` more in each, all of them in the arena; `copy(sources, targets)` copies the tails that others hold.

        Raises PoolExhausted, and then nothing has changed.
        """
        fresh = self.pages.take(self.need(sequences, tokens))[::-1]  # popped in the order in which they lie
        copied = self._shared_tails(sequences, tokens)
        sources, targets = [s.pages[-1] for s in copied], [fresh.pop() for _ in copied]
        copy(sources, targets)
        for sequence, target in zip(copied, targets, strict=True):
            sequence.pages[-1] = target
        self._drop(sources)
        for sequence in sequences:
            if tokens and sequence.length % self.geometry.page:
                self.pages.own(sequence.pages[-1])
                self._written(sequence.pages[-1])
            sequence.pages.extend(fresh.pop() for _ in range(self._missing(sequence, tokens)))
            sequence.length += tokens

    def share(self, sequence: Sequence, tokens: int) -> Sequence:
        """A new sequence of the first `tokens` tokens, in the same pages."""
        pages = sequence.pages[: self._kept(sequence, tokens)]
        self.pages.hold(page for page in pages if page >= 0)
        if self.shelf is not None:
            self.shelf.slots.hold(~page for page in pages if page < 0)
        return self.enter(Sequence(tokens, sequence.start, pages, away=sequence.away, arriving=sequence.arriving))

    def truncate(self, sequence: Sequence, tokens: int) -> None:
        kept = self._kept(sequence, tokens)
        self._drop(sequence.pages[kept:])
        del sequence.pages[kept:]
        sequence.length = tokens

    def forget(self, sequence: Sequence, before: int) -> None:
        """Pages wholly before this position go."""
        self.check([sequence])
        before = max(sequence.start, min(before, sequence.length))
        gone = before // self.geometry.page - sequence.start // self.geometry.page
        self._drop(sequence.pages[:gone])
        del sequence.pages[:gone]
        sequence.start = before

    def release(self, sequence: Sequence) -> None:
        self.check([sequence])
        self._drop(sequence.pages)
        self.sequences.discard(sequence)
        self.idle.pop(sequence, None)
        sequence.pages, sequence.released = [], True

    def _drop(self, pages: list[int]) -> None:
        here = [page for page in pages if page >= 0]
        if here:
            self.pages.drop(here, self._fence())
        if self.shelf is not None:
            self.shelf.slots.drop([~page for page in pages if page < 0], None)
            self.shelf.discard(page for page in here if not self.pages.refs[page])

    def _written(self, page: int) -> None:
        if self.shelf is not None:
            self.shelf.discard([page])

    def _missing(self, sequence: Sequence, tokens: int) -> int:
        """Pages between those the sequence has and those that `tokens` more take."""
        origin = sequence.start // self.geometry.page
        return self.geometry.pages_for(sequence.length + tokens) - origin - len(sequence.pages)

    def _kept(self, sequence: Sequence, tokens: int) -> int:
        """How many of its pages hold the first `tokens` tokens. Raises PoolError where it has no such tokens."""
        self.check([sequence])
        if not sequence.start <= tokens <= sequence.length:
            raise PoolError(f"the sequence holds tokens {sequence.start} to {sequence.length}; it cannot end at {tokens}")
        return self.geometry.pages_for(tokens) - sequence.start // self.geometry.page

    def _shared_tails(self, sequences: List[Sequence], tokens: int) -> list[Sequence]:
        """Those whose last page is begun and will still be someone else's when their turn comes."""
        begun = [sequence for sequence in sequences if tokens and sequence.length % self.geometry.page]
        copied, left, away = [], Counter[int](), self.away(begun)
        for sequence in begun:
            tail = sequence.pages[-1]
            holders = self.pages.refs[tail] if tail >= 0 else away[~tail]  # a slot becomes a page of those who come back
            if holders - left[tail] > 1:
                left[tail] += 1
                copied.append(sequence)
        return copied
