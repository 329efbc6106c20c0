"""`gl` of one launch: programs and roles are threads, memory is torch's."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import torch

from .barriers import Barrier, NamedBarrier, hesitate
from .memory import Layout, Pointer, Shared, Tensor, tensor
from .ptx import bits, floats, ptx
from .tensors import Tensors


def count(*bounds: Any) -> Iterator[Tensor]:
    """`range`, of numbers as the device has them."""
    for at in range(*map(int, bounds)):
        yield tensor(at, torch.int32)


class Language(Tensors):
    """`gl` of one launch: `blocks` programs; what differs between them and their roles is in the thread."""

    def __init__(self, blocks: int, late: bool) -> None:
        self.blocks, self.late = blocks, late
        self.here = threading.local()
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []
        for name in ("NVMMADistributedLayout", "SliceLayout", "DotOperandLayout", "BlockedLayout", "SwizzledSharedLayout",
                     "NVMMASharedLayout"):
            setattr(self, name, Layout())

    def launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        self.together([lambda pid=pid: self._block(pid, kernel, arguments, constants) for pid in range(self.blocks)])

    def _block(self, pid: int, kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        self.here.pid, self.here.turns = pid, {}
        kernel(*arguments, **constants)

    def warp_specialize(self, roles: list[tuple[Any, tuple[Any, ...]]], *_: Any) -> None:
        pid, turns = self.here.pid, {at: NamedBarrier() for at in range(8, 16)}

        def role(function: Any, given: tuple[Any, ...]) -> None:
            self.here.pid, self.here.turns, self.here.leaving, self.here.coming = pid, turns, [], []
            function(*given)
            assert not self.here.leaving, "a store was not awaited"
            assert not self.here.coming, "a copy was not awaited"

        self.together([lambda f=f, g=g: role(f, g) for f, g in roles])
        assert not any(turn.arrived for turn in turns.values()), "a turn was left to nobody"

    def together(self, calls: list[Any]) -> None:
        """All at once, each in a thread; the first error is raised."""

        def guarded(call: Any) -> None:
            try:
                call()
            except BaseException as error:
                self.errors.append(error)

        threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        if self.errors:
            raise self.errors[0]

    def program_id(self, axis: int) -> Tensor:
        return tensor(self.here.pid, torch.int32)

    def num_programs(self, axis: int) -> Tensor:
        return tensor(self.blocks, torch.int32)

    def num_warps(self) -> int:
        return 4

    def allocate_shared_memory(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Shared:
        if layout == "mbarrier":
            return Shared([Barrier() for _ in range(shape[0])])
        unwritten = torch.nan if dtype.is_floating_point else min(1 << 20, torch.iinfo(dtype).max)
        return Shared(torch.full(shape, unwritten, dtype=dtype))

    def load(self, pointer: Pointer, mask: Any = True, other: Any = 0, cache_modifier: str = "") -> Tensor:
        at, mask = torch.broadcast_tensors(torch.as_tensor(pointer.at), torch.as_tensor(mask))
        return tensor(torch.where(mask, pointer.flat[torch.where(mask, at, 0).long()], other))

    def store(self, pointer: Pointer, x: Any, mask: Any = True) -> None:
        at, x, mask = torch.broadcast_tensors(*map(torch.as_tensor, (pointer.at, x, mask)))
        pointer.flat[at[mask].long()] = x[mask].to(pointer.flat.dtype)

    def atomic_add(self, pointer: Pointer, x: int, sem: str = "acq_rel") -> Tensor:
        hesitate()
        with self.lock:
            before = pointer.flat[pointer.at].clone()
            pointer.flat[pointer.at] += x
        return tensor(before)

    def inline_asm_elementwise(self, text: str, constraints: str, given: list[Any], dtype: torch.dtype, is_pure: bool,
                               pack: int) -> Tensor | None:
        if text.startswith("bar."):
            return self._turn(text.replace("$1", str(int(given[0])) if given else ""))
        if "prefetch" in text:                                      # changes nothing
            return None
        given = torch.broadcast_tensors(*map(torch.as_tensor, given))
        if pack > 1 and given[0].element_size() * pack == 4:                    # several in a register
            parts = [x.contiguous().view(torch.int32).flatten() for x in given]
        else:
            parts = [x.reshape(-1, pack)[:, at].contiguous() for x in given for at in range(pack)] if pack > 1 else given
        if dtype.itemsize * pack == 4 and pack > 1:                             # and comes out so
            return tensor(ptx(text, parts)[0].as_subclass(torch.Tensor).view(dtype).reshape(given[0].shape))
        found = [floats(x) if dtype == torch.float32 else bits(x) for x in ptx(text, parts, pack)]
        return tensor(torch.stack(found, -1).reshape(given[0].shape) if pack > 1 else found[0])

    def _turn(self, text: str) -> None:
        operation, barrier, threads = re.match(r"bar\.(\w+) (\d+), (\d+)", text).groups()
        if threads == "32":                                         # a warp, which is one thread here
            return
        self.here.turns[int(barrier)].come(int(threads) // 128, operation == "sync")
