"""Barriers of threads that play warpgroups."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

SECONDS = 60
"""How long a role waits."""


class Stuck(AssertionError):
    """A role waited in vain."""


def hesitate() -> None:
    """A role that is late now and then: no order of roles is relied upon."""
    if random.random() < 0.05:
        time.sleep(random.random() * 1e-3)


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes have come."""

    def __init__(self) -> None:
        self.count = self.arrived = self.bytes = self.phase = 0
        self.copies: list[Any] = []
        self.changed = threading.Condition(threading.RLock())

    def come(self, arrived: int, size: int) -> None:
        with self.changed:
            self.arrived, self.bytes = self.arrived + arrived, self.bytes + size
            assert self.arrived <= self.count, "more arrivals than a phase has"
            if self.arrived == self.count and self.bytes == 0:
                self.arrived, self.phase = 0, self.phase + 1
                self.changed.notify_all()

    def wait(self, phase: int) -> None:
        """Until the phase of this parity is over: as mbarrier.try_wait.parity."""

        def over() -> bool:
            while self.copies:
                self.copies.pop(0)()
            return self.phase % 2 != phase % 2

        with self.changed:
            if not self.changed.wait_for(over, SECONDS):
                raise Stuck(f"{threading.current_thread().name}: phase {phase}, {self.arrived} of {self.count} arrived")


class NamedBarrier:
    """A barrier of PTX by number: it is over when so many warpgroups have come, `bar.arrive` or `bar.sync`, and starts anew.

    Who comes with `sync` waits for that: so one that is ahead cannot take the place of one that has not come.
    """

    def __init__(self) -> None:
        self.arrived = self.rounds = 0
        self.changed = threading.Condition()

    def come(self, count: int, sync: bool) -> None:
        hesitate()
        with self.changed:
            self.arrived, before = self.arrived + 1, self.rounds
            if self.arrived == count:
                self.arrived, self.rounds = 0, self.rounds + 1
                self.changed.notify_all()
            elif sync and not self.changed.wait_for(lambda: self.rounds > before, SECONDS):
                raise Stuck(f"{threading.current_thread().name}: {self.arrived} of {count} came to a named barrier")
