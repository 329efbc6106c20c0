"""When everything enqueued so far on a stream will have run: what a released page waits for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch


class Fence(Protocol):
    """A point in the order of a stream. Neither method blocks the host."""

    stream: Hashable

    def passed(self) -> bool:
        """Whether the device has got there."""

    def wait(self) -> None:
        """What is enqueued on the current stream from now on runs after this point."""


class CudaFence:
    """The end of what is enqueued on the current CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        current = torch.cuda.current_stream(device)
        self.stream: Hashable = current.cuda_stream
        self.device = device
        self.event = torch.cuda.Event()
        self.event.record(current)
        self._passed = False

    def passed(self) -> bool:
        self._passed = self._passed or bool(self.event.query())
        return self._passed

    def wait(self) -> None:
        self.event.wait(torch.cuda.current_stream(self.device))


def fence_maker(device: torch.device) -> Callable[[], Fence | None]:
    """What makes the fence of now; on a device that runs as it is called, None: already passed."""
    return (lambda: CudaFence(device)) if device.type == "cuda" else (lambda: None)
