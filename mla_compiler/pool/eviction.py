"""Which pages go to the shelf and come back, and what then stands in Sequence.pages: a page of the arena, or ~slot

Pages that others hold too stay where they are, for they would free nothing; those that all of a set of sequences hold go, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as List
from itertools import chain

from ..errors import PoolError, PoolExhausted
from .ledger import Ledger
from .sequences import Sequence
from .shelf import Shelf, but_the_first


def movable(ledger: Ledger, sequences: List[Sequence]) -> Counter[int]:
    """Pages that nobody else holds, and how often these do."""
    held, refs = Counter(chain.from_iterable(sequence.pages for sequence in sequences)), ledger.pages.refs
    return Counter({page: count for page, count in held.items() if page >= 0 and refs[page] == count})


def shelf_of(ledger: Ledger) -> Shelf:
    if ledger.shelf is None:
        raise PoolError("this pool keeps nothing on the host", "KVPool(..., host_tokens=)")
    return ledger.shelf


def evict(ledger: Ledger, sequences: List[Sequence]) -> int:
    """Their movable pages go to the host; how many. Raises PoolExhausted where it has no room, and then nothing has changed."""
    shelf, going = shelf_of(ledger), movable(ledger, sequences)
    slots, fence = shelf.evict(list(going))
    shelf.slots.hold(slots[page] for page in but_the_first(going))
    ledger.pages.drop(going.elements(), fence)
    for sequence in sequences:
        sequence.pages = [~slots[page] if page in slots else page for page in sequence.pages]
        sequence.away = True
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
        sequence.away = False


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
    pages = set(chain.from_iterable(sequence.pages for turn in turns for sequence in turn))
    at_hand = [page for page in pages if page >= 0]
    here, there = len(at_hand), len(pages) - len(at_hand) + sum(page in shelf.copies for page in at_hand)
    if most > ledger.pages.supply + here:
        raise PoolExhausted.of(most, ledger.pages.supply + here, ledger.pages.count)
    if sum(sizes) > shelf.slots.supply + there:
        raise PoolExhausted.on_host(sum(sizes), shelf.slots.supply + there, shelf.slots.count)
