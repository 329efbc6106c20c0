"""Which pages go to the shelf and come back, and what then stands in Sequence.pages: a page of the arena, or ~slot

Pages that others hold too stay where they are, for they would free nothing; those that all of a set of sequences hold go, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as List

from ..errors import PoolError, PoolExhausted
from .ledger import Ledger
from .sequences import Sequence
from .shelf import Shelf


def movable(ledger: Ledger, sequences: List[Sequence]) -> Counter[int]:
    """Pages that nobody else holds, and how often these do."""
    held = Counter(page for sequence in sequences for page in sequence.pages if page >= 0)
    return Counter({page: count for page, count in held.items() if ledger.pages.refs[page] == count})


def shelf_of(ledger: Ledger) -> Shelf:
    if ledger.shelf is None:
        raise PoolError("this pool keeps nothing on the host", "KVPool(..., host_tokens=)")
    return ledger.shelf


def evict(ledger: Ledger, sequences: List[Sequence]) -> int:
    """Their movable pages go to the host; how many. Raises PoolExhausted where it has no room, and then nothing has changed."""
    shelf, going = shelf_of(ledger), movable(ledger, sequences)
    slots, fence = shelf.evict(list(going))
    for page, holders in going.items():
        shelf.slots.hold([slots[page]] * (holders - 1))
        ledger.pages.drop([page] * holders, fence)
    for sequence in sequences:
        sequence.pages = [~slots[page] if page in slots else page for page in sequence.pages]
    return len(going)


def bring(ledger: Ledger, sequences: List[Sequence]) -> None:
    """All their pages are in the arena, or on their way: `arrived` waits for them. PoolExhausted changes nothing."""
    counts = ledger.away(sequences)
    if not counts:
        return
    pages, fence = shelf_of(ledger).bring(counts, ledger.pages)
    for sequence in sequences:
        if any(page < 0 for page in sequence.pages):
            sequence.pages = [page if page >= 0 else pages[~page] for page in sequence.pages]
            sequence.arriving = fence


def arrived(sequences: List[Sequence]) -> None:
    """What the current stream is given from now on runs when their pages are there. The host does not wait."""
    for sequence in sequences:
        if sequence.arriving is not None:
            sequence.arriving.wait()
            sequence.arriving = None


def make_room(ledger: Ledger, need: int, used: List[Sequence]) -> bool:
    """Evicts those idle longest, as many as make room for `need` pages, but none of `used`; False, and none, if they cannot."""
    lack, chosen = need - ledger.pages.supply, list[Sequence]()
    if lack <= 0 or ledger.shelf is None:
        return lack <= 0
    for sequence in ledger.idle:
        if sequence not in used:
            chosen.append(sequence)
            if len(movable(ledger, chosen)) >= lack:
                break
    going = movable(ledger, chosen)
    if len(going) < lack or len(ledger.shelf.unsaved(going)) > ledger.shelf.room(going):
        return False
    evict(ledger, chosen)
    return True


def check_turns(ledger: Ledger, turns: list[list[Sequence]], tokens: int) -> None:
    """Raises PoolExhausted unless sets of sequences that are in the arena one at a time can all grow by `tokens`."""
    shelf, sizes = shelf_of(ledger), [sum(ledger.pages_after(s, tokens) for s in turn) for turn in turns]
    most = max(sizes)
    pages = {page for turn in turns for sequence in turn for page in sequence.pages}
    here, there = sum(page >= 0 for page in pages), sum(page < 0 or page in shelf.copies for page in pages)
    if most > ledger.pages.supply + here:
        raise PoolExhausted.of(most, ledger.pages.supply + here, ledger.pages.count)
    if sum(sizes) > shelf.slots.supply + there:
        raise PoolExhausted.on_host(sum(sizes), shelf.slots.supply + there, shelf.slots.count)
