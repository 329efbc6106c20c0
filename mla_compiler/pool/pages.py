"""Who holds which page: reference counts, the free list, and pages whose last readers may still be running.

A page is in one of three places: held (refs > 0), pending (refs 0, a fence not seen passed), free.
Not thread-safe: the pool's lock stands around it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping

from ..errors import PoolExhausted
from .fences import Fence

Readers = Mapping[Hashable, Fence]
"""The last of each stream. Never changed: many pages may have the same."""
_NOBODY: Readers = {}


def _with(readers: Readers, fence: Fence | None) -> Readers:
    return readers if fence is None else {**readers, fence.stream: fence}


class Pages:
    """`count` pages by number, 0 to count - 1."""

    def __init__(self, count: int) -> None:
        self.refs = [0] * count
        self.free = list(range(count - 1, -1, -1))
        self.pending: deque[tuple[list[Fence], int]] = deque()
        self.high_water = 0
        # Of a page that is still held: the last read on each stream by those who have let go of it.
        self._readers: dict[int, Readers] = {}

    @property
    def count(self) -> int:
        return len(self.refs)

    @property
    def held(self) -> int:
        return self.count - len(self.free) - len(self.pending)

    @property
    def supply(self) -> int:
        """Pages that `take` can give now."""
        return len(self.free) + len(self.pending)

    def add(self, count: int) -> None:
        """More pages, numbered from the present count on."""
        self.free.extend(range(self.count + count - 1, self.count - 1, -1))
        self.refs.extend([0] * count)

    def check(self, count: int) -> None:
        """Raises PoolExhausted where `take` would."""
        if count > self.supply:
            raise PoolExhausted.of(count, self.supply, self.count)

    def take(self, count: int) -> list[int]:
        """Pages for the current stream to write, each held once. Raises PoolExhausted and takes none if they are too few.

        When only pending pages are left, the current stream is made to wait for their readers; the host is not.
        """
        self.reap()
        self.check(count)
        waited: list[Fence] | None = None
        while len(self.free) < count:
            fences, page = self.pending.popleft()
            for fence in fences if fences is not waited else ():
                fence.wait()
            waited = fences
            self.free.append(page)
        taken = [self.free.pop() for _ in range(count)]
        for page in taken:
            self.refs[page] = 1
        self.high_water = max(self.high_water, self.held)
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """One more holder of pages that are held."""
        for page in pages:
            self.refs[page] += 1

    def drop(self, pages: Iterable[int], fence: Fence | None) -> None:
        """One holder fewer, whose last use lies before `fence`. None: that is over."""
        alike: dict[int, tuple[Readers, list[Fence]]] = {}  # by the identity of the readers, which are kept for it
        for page in pages:
            self.refs[page] -= 1
            if self.refs[page]:
                self.used([page], fence)
                continue
            readers = self._readers.pop(page, _NOBODY)
            if id(readers) not in alike:
                alike[id(readers)] = readers, list(_with(readers, fence).values())
            if fences := alike[id(readers)][1]:
                self.pending.append((fences, page))
            else:
                self.free.append(page)

    def used(self, pages: Iterable[int], fence: Fence | None) -> None:
        """Something reads or writes these pages until `fence`: they are nobody else's before."""
        if fence is None:
            return
        alone = _with(_NOBODY, fence)
        for page in pages:
            readers = self._readers.get(page)
            self._readers[page] = alone if readers is None else _with(readers, fence)

    def reap(self) -> None:
        """The oldest pending pages become free, as far as their readers are done."""
        passed: list[Fence] | None = None
        while self.pending:
            fences = self.pending[0][0]
            if fences is not passed and not all(fence.passed() for fence in fences):
                return
            passed = fences
            self.free.append(self.pending.popleft()[1])

    def own(self, page: int) -> None:
        """The current stream may write in this page, held once, after all earlier holders' reads."""
        for fence in self._readers.pop(page, {}).values():
            fence.wait()
