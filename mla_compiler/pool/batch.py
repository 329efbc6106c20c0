"""The sequences of one batch, one for each row and group of layers, and their tables on the device."""

from __future__ import annotations

from torch import Tensor

from ..errors import PoolError
from .groups import Group
from .pool import KVPool
from .sequences import Sequence
from .slate import Cell, Slate


class Batch:
    """All rows have `length` tokens. `longest`: the most they may have; None: as many as it takes, outside of compiled code.

    `unwritten`: the layers that are still to write the tokens of this step; `before` [B] int32: the tokens before it.
    `keep`: tokens behind a window stay until the next `crop`.
    """

    def __init__(self, pool: KVPool, groups: list[Group], columns: int, longest: int | None, length: int = 0) -> None:
        self.pool = pool
        self.groups = groups
        self.longest = longest
        self.length = length
        self.keep = False
        self.unwritten: set[int] = set()
        self.step_tokens = 0
        self.slate = self._slate(columns)
        self.before = self.slate.lengths

    def _slate(self, columns: int) -> Slate:
        slate = Slate(self, len(self.groups), len(self.groups[0].sequences), columns, self.pool.geometry.device)
        slate.lengths.fill_(self.length)
        return slate

    @property
    def capacity(self) -> int:
        """Tokens of a row that the tables can tell of: what compiled code sees as the length of the cache."""
        return self.slate.columns * self.pool.geometry.page

    @property
    def offloaded(self) -> list[Group]:
        return [group for group in self.groups if group.offloaded]

    @property
    def sequences(self) -> list[Sequence]:
        return [sequence for group in self.groups for sequence in group.sequences]

    @property
    def rows(self) -> list[list[Sequence]]:
        return [group.sequences for group in self.groups]

    # ------------------------------------------------------------------------------------------------------------- a step

    def begin(self, k: Tensor, v: Tensor) -> None:
        """A step of eager code: room in every layer for the tokens of k [B, H, T, D]. PoolExhausted changes nothing."""
        batch, _, tokens, _ = k.shape
        self.pool.geometry.check(k, v, batch, tokens)
        if self.slate.batch != batch:
            raise PoolError(f"the cache holds {self.slate.batch} sequences; found a batch of {batch}")
        if self.offloaded:
            self.pool.check_turns([group.sequences for group in self.offloaded], tokens)
        if self.length + tokens > self.capacity and self.longest is None:
            self.slate = self._slate(max(2 * self.slate.columns, self.pool.geometry.pages_for(self.length + tokens)))
        self._extend(self.slate.tables, tokens, may_grow=True)
        self.before = self.slate.lengths.clone()
        self.slate.lengths.fill_(self.length)
        self.unwritten = {layer for group in self.groups for layer in group.layers}
        self.step_tokens = tokens

    def make_room(self, tables: Tensor, tokens: int) -> None:
        """A step of compiled code, which writes every layer and advances the lengths by itself: `flashmla::pool_room`."""
        self.unwritten, forgotten = set(), self._forget()
        self._extend(tables, tokens, may_grow=False, cells=forgotten)

    def _extend(self, tables: Tensor, tokens: int, may_grow: bool, cells: list[Cell] | None = None) -> None:
        if self.length + tokens > self.capacity:
            mend = "give the cache longest=, the tokens of its longest sequence"
            raise PoolError(f"{self.length + tokens} tokens; the tables of this cache tell of {self.capacity}", mend)
        resident = [group for group in self.groups if not group.offloaded]
        marks = [group.marks() for group in resident]
        stale, self.slate.stale = self.slate.stale, True
        self.pool.extend([sequence for group in resident for sequence in group.sequences], tokens, may_grow)
        self.length += tokens
        if stale:
            self.slate.rewrite(tables, self.rows, self.pool.geometry.page)
        else:
            gained = [cell for group, mark in zip(resident, marks, strict=True) for cell in group.changed(mark)]
            self.slate.enter(tables, [*(cells or []), *gained])
        self.slate.stale = False

    def wrote(self, group: Group, layer: int) -> None:
        """When the last layer of a group has written, what is behind its window goes, or all does and the next group comes."""
        self.unwritten.discard(layer)
        if self.unwritten.intersection(group.layers):
            return
        if not self.keep:
            self.slate.enter(self.slate.tables, group.forget())
        if group.offloaded:
            turns = self.offloaded
            self.pool.evict(group.sequences)
            self.pool.prefetch(turns[(turns.index(group) + 1) % len(turns)].sequences)

    def take_turn(self, group: Group) -> None:
        """An offloaded group, about to write the first of its layers, is in the arena, with room for what they write."""
        self.pool.extend(group.sequences, self.step_tokens)
        self.slate.show(group.number, *group.rows())

    def length_of(self, layer: int) -> int:
        """Tokens that a layer has written."""
        return self.length - self.step_tokens if layer in self.unwritten else self.length

    def _forget(self) -> list[Cell]:
        return [] if self.keep else [cell for group in self.groups for cell in group.forget()]

    # -------------------------------------------------------------------------------------------------- between the steps

    def idle(self) -> None:
        self.pool.idle(self.sequences)
        self.slate.stale = True

    def evict(self) -> None:
        self.pool.evict(self.sequences)
        self.slate.stale = True

    # --------------------------------------------------------------------------------------------------------- its rows

    def crop(self, tokens: int) -> None:
        """The last `tokens` tokens go, and what lies behind the windows."""
        for group in self.groups:
            group.check_crop(tokens)
        self.length -= tokens
        for group in self.groups:
            group.crop(self.length)
        self._follow()

    def select(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] is."""
        for group in self.groups:
            group.select(rows)
        self._follow()

    def _follow(self) -> None:
        """The lengths are right at once; the tables will be when a step begins."""
        if self.slate.batch != len(self.groups[0].sequences):
            self.slate = self._slate(self.slate.columns)
        self.slate.lengths.fill_(self.length)
        self.slate.stale = True
        self.unwritten = set()

    def release(self) -> None:
        for group in self.groups:
            group.select([])

    def fork(self) -> Batch:
        """A second batch of the same tokens: no data moves until one of them writes."""
        groups = [Group(self.pool, group.number, group.window, group.layers, group.fork()) for group in self.groups]
        for mine, theirs in zip(self.groups, groups, strict=True):
            theirs.offloaded = mine.offloaded
        other = Batch(self.pool, groups, self.slate.columns, self.longest, self.length)
        other.keep = self.keep
        return other
