"""Counters of arrived parts: int32, 0 before every launch because the last to arrive sets them back to 0

One launch counts in its own memory, or two at once would count in each other's. Two launches on one stream never run at
once: outside of capture a stream has one buffer. A captured launch has counters of its own for ever, for its graph may
replay on any stream beside any other. All of them are slices of an arena that is never returned:

- its zeros were written before any capture, so that a replay needs no memset;
- memory from within a capture, or from the warm-up of Inductor's CUDA graphs, belongs to a pool whose next tensor would
  overwrite counters between two replays. What a thread allocates meanwhile goes there: the arena is made in another
  thread, on a stream of its own, waited for once, when the kernel itself is compiled.

Where a capture finds no arena, or none with room, it gets zeros of its own: one memset a replay, right, and slower.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

ARENA = 1 << 18
"""Counters of an arena (1 MiB): those of 500 captured launches of 64 sequences of 8 KV heads."""
LINE = 32
"""Slices begin at multiples of 128 bytes."""


class Arenas:
    """The counters of one device. `take` is called with the lock held."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lock = threading.Lock()
        self.room: Tensor = torch.empty(0, dtype=torch.int32)
        self.streams: dict[int, Tensor] = {}

    def take(self, count: int) -> Tensor | None:
        """The next `count` zeros of the arena, never given again; None if it has not so many."""
        if count > self.room.numel():
            return None
        taken, self.room = self.room[:count], self.room[-(-count // LINE) * LINE :]
        return taken

    def of_capture(self, count: int) -> Tensor:
        with self.lock:
            taken = self.take(count)
        return torch.zeros(count, dtype=torch.int32, device=self.device) if taken is None else taken

    def of_stream(self, stream: int, count: int) -> Tensor:
        """The buffer of a stream; a larger one takes the place of one that is too small."""
        with self.lock:
            found = self.streams.get(stream)
            size = 0 if found is not None and count <= found.numel() else max(1024, 1 << (count - 1).bit_length())
            if self.room.numel() < size + ARENA // 2:                   # half of an arena is kept for captures to come
                self.room = _zeros(size + ARENA, self.device)
            if size:
                found = self.streams[stream] = self.take(size)
        assert found is not None
        return found


@lru_cache(maxsize=64)
def _arenas(device: torch.device) -> Arenas:
    return Arenas(device)


def counters(device: torch.device, count: int) -> Tensor:
    """`count` int32 zeros for a launch on the current stream, which must leave them zeros."""
    arenas = _arenas(device)
    if device.type != "cuda":
        return arenas.of_stream(0, count)
    if torch.cuda.is_current_stream_capturing():
        return arenas.of_capture(count)
    return arenas.of_stream(torch.cuda.current_stream(device).cuda_stream, count)


def _zeros(count: int, device: torch.device) -> Tensor:
    """In another thread and on another stream, so that it comes from no capture's pool; written when this returns."""

    def zeros() -> Tensor:
        if device.type != "cuda":
            return torch.zeros(count, dtype=torch.int32)
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            made = torch.zeros(count, dtype=torch.int32, device=device)
            torch.cuda.current_stream(device).synchronize()
        return made

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(zeros).result()
