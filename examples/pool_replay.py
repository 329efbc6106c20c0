"""A trace of real requests replayed over a KV pool, and over a static and a dynamic cache in the same memory.

    python examples/pool_replay.py TRACE.csv [--memory 65536] [--longest 8192] [--step 0.03] [--requests 0] [--page 64] [--rush]

TRACE.csv has the columns TIMESTAMP, ContextTokens, GeneratedTokens, as Azure publishes its LLM inference traces. A request
arrives (with --rush all do at once), waits until its prompt fits, then grows by a token each step of `step` seconds. `memory`
and `longest` are in tokens of bfloat16; what is longer is cut. When memory runs out the youngest request goes back to the queue
and starts over.

    pool      the KVPool itself, a page of `page` tokens at a time; with --rush in smaller tokens too
    static    `longest` tokens for each request, as transformers' StaticCache has for each row
    dynamic   as transformers' DynamicCache: all rows as long as the longest, and one layer twice while it is copied
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from mla_compiler import KVPool, PoolExhausted
from mla_compiler.pool import Geometry

HEAD_DIM = 128
"""Of the keys and values: the scales beside quantised ones are counted too."""


@dataclass(eq=False)
class Request:
    """arrival in seconds from the first; prompt and total in tokens; `length` of them are cached now."""

    arrival: float
    prompt: int
    total: int
    length: int = 0
    place: Any = None


class Policy(Protocol):
    """Memory for requests. `admit` and `step` say False when it does not suffice, and then nothing has changed."""

    def admit(self, request: Request, running: list[Request]) -> bool: ...
    def step(self, running: list[Request]) -> bool: ...
    def leave(self, request: Request) -> None: ...
    def reserved(self, running: list[Request]) -> int:
        """Tokens' worth of memory in use."""


class Pool:
    """A KVPool whose keys and values are one number each: only the accounts matter here."""

    def __init__(self, memory: int, page: int) -> None:
        self.pool = KVPool(1, 1, 1, tokens=memory, page=page)

    def admit(self, request: Request, running: list[Request]) -> bool:
        request.place = self.pool.allocate()
        try:
            self.pool.extend([request.place], request.prompt)
        except PoolExhausted:
            self.leave(request)
            return False
        return True

    def step(self, running: list[Request]) -> bool:
        try:
            self.pool.extend([request.place for request in running], 1)
        except PoolExhausted:
            return False
        return True

    def leave(self, request: Request) -> None:
        self.pool.release(request.place)

    def reserved(self, running: list[Request]) -> int:
        return self.pool.ledger.pages.held * self.pool.geometry.page


@dataclass
class Static:
    """`longest` tokens for every row."""

    memory: int
    longest: int

    def admit(self, request: Request, running: list[Request]) -> bool:
        return (len(running) + 1) * self.longest <= self.memory

    def step(self, running: list[Request]) -> bool:
        return True

    def leave(self, request: Request) -> None:
        pass

    def reserved(self, running: list[Request]) -> int:
        return len(running) * self.longest


@dataclass
class Dynamic(Static):
    """Rows padded to the longest; `cat` makes a layer's next tensor before its last goes."""

    layers: int = 32

    def _size(self, rows: int, length: int) -> int:
        return rows * (length + -(-length // self.layers))

    def admit(self, request: Request, running: list[Request]) -> bool:
        longest = max([request.prompt, *(other.length for other in running)])
        return self._size(len(running) + 1, longest + 1) <= self.memory

    def step(self, running: list[Request]) -> bool:
        return self._size(len(running), max(request.length for request in running) + 1) <= self.memory

    def reserved(self, running: list[Request]) -> int:
        return self._size(len(running), max(request.length for request in running))


@dataclass
class Tally:
    """Sums over steps: live and reserved tokens, and the same while somebody waited for memory, when all of it is wanted."""

    steps: int = 0
    rows: int = 0
    live: int = 0
    reserved: int = 0
    full_steps: int = 0
    full_live: int = 0
    full_rows: int = 0
    full_reserved: int = 0
    restarts: int = 0

    def add(self, running: list[Request], reserved: int, waited: bool) -> None:
        live = sum(request.length for request in running)
        self.steps, self.rows = self.steps + 1, self.rows + len(running)
        self.live, self.reserved = self.live + live, self.reserved + reserved
        if waited:
            self.full_steps, self.full_live = self.full_steps + 1, self.full_live + live
            self.full_rows, self.full_reserved = self.full_rows + len(running), self.full_reserved + reserved

    def line(self, name: str, memory: int) -> str:
        full = max(self.full_steps, 1)
        live, reserved = self.full_live / full / memory, self.full_reserved / full / memory
        return (
            f"{name:8} live/reserved {self.live / max(self.reserved, 1):6.1%}   under load: live/memory {live:6.1%}, "
            f"unread {reserved - live:5.1%}, not taken {1 - reserved:5.1%}, {self.full_rows / full:6.1f} requests at once "
            f"({self.full_steps} of {self.steps} steps), {self.restarts} restarts"
        )


def replay(requests: list[Request], policy: Policy, step: float) -> Tally:
    """The whole trace; time jumps to the next arrival when nothing runs."""
    coming, waiting, running = deque(requests), deque[Request](), list[Request]()
    now, tally = 0.0, Tally()
    while coming or waiting or running:
        now = max(now, coming[0].arrival) if coming and not running and not waiting else now
        while coming and coming[0].arrival <= now:
            waiting.append(coming.popleft())
        while waiting and policy.admit(waiting[0], running):
            running.append(waiting.popleft())
            running[-1].length = running[-1].prompt
        while running and not policy.step(running):
            policy.leave(running[-1])
            waiting.appendleft(running.pop())
            tally.restarts += 1
        if not running:
            raise SystemExit(f"a request of {waiting[0].total} tokens does not fit in the memory")
        for request in running:
            request.length += 1
        tally.add(running, policy.reserved(running), bool(waiting))
        for request in [request for request in running if request.length >= request.total]:
            policy.leave(request)
            running.remove(request)
        now += step
    return tally


def trace(path: Path, longest: int, count: int) -> list[Request]:
    """The first `count` requests of the file (0: all), in order of arrival, none longer than `longest`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))[: count or None]
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    found = []
    for row, time in zip(rows, times, strict=True):
        prompt = min(max(int(row["ContextTokens"]), 1), longest - 1)
        found.append(Request(time - times[0], prompt, min(prompt + max(int(row["GeneratedTokens"]), 1), longest)))
    return sorted(found, key=lambda request: request.arrival)


def tokens_in(memory: int, format: str) -> int:
    """Tokens in this format, where `memory` of bfloat16 fit."""
    shape = 1, 1, HEAD_DIM, HEAD_DIM, torch.bfloat16, torch.device("cpu")
    return memory * Geometry(*shape).token_bytes // Geometry(*shape, format=format).token_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--memory", type=int, default=65536, help="tokens")
    parser.add_argument("--longest", type=int, default=8192, help="tokens of a request, prompt and answer")
    parser.add_argument("--step", type=float, default=0.03, help="seconds")
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--page", type=int, default=64, help="tokens")
    parser.add_argument("--rush", action="store_true", help="all requests arrive at once: how many fit")
    parser.add_argument("--bar", type=float, default=0.96, help="exit status 1 if the pool's live/reserved is below")
    given = parser.parse_args()
    formats = ("int8", "k8v4", "k6v4", "int4") if given.rush else ()
    sizes = {"pool": given.memory} | {name: tokens_in(given.memory, name) for name in formats}
    policies: dict[str, Policy] = {
        "static": Static(given.memory, given.longest),
        "dynamic": Dynamic(given.memory, given.longest),
        **{name: Pool(size, given.page) for name, size in sizes.items()},
    }
    tallies = {}
    for name, policy in policies.items():
        requests = trace(given.trace, given.longest, given.requests)
        for request in requests if given.rush else ():
            request.arrival = 0.0
        tallies[name] = replay(requests, policy, given.step)
        print(tallies[name].line(name, sizes.get(name, given.memory)), flush=True)
    met = tallies["pool"].live >= given.bar * tallies["pool"].reserved
    print(f"{len(requests)} requests; bar {given.bar:.0%}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
