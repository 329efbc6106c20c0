"""Gluon's names in torch on the CPU: enough of them to run a generated Hopper kernel, every role of every block a thread

Layouts are ignored, barriers are real: a missing arrival is a `Stuck` after some seconds. Of what is asynchronous the worst
is assumed, one way or the other: `late`, copies are there at once, and products and results are read when they are awaited,
so that a tile that is overwritten too early gives wrong numbers; else products are done at once, and a copy is there when
someone waits for it. Inline PTX is interpreted. What stays untested is what the layouts and the compiler do.
"""

from __future__ import annotations

import ast
import re
import struct
import threading
from types import SimpleNamespace
from typing import Any

import torch

SECONDS = 60


class Stuck(AssertionError):
    """A role waited in vain."""


class Tensor(torch.Tensor):
    """With what Triton's tensors have and torch's have not."""

    def to(self, dtype, bitcast=False):
        x = self.as_subclass(torch.Tensor)
        return (x.view(dtype) if bitcast else x.to(dtype)).as_subclass(Tensor)

    type = property(lambda self: SimpleNamespace(layout=None))


def tensor(x: Any, dtype: Any = None) -> Tensor:
    return torch.as_tensor(x, dtype=dtype).as_subclass(Tensor)


class Pointer:
    """Elements of a flat tensor, at an offset or a tensor of them."""

    def __init__(self, flat: torch.Tensor, at: Any = 0) -> None:
        self.flat, self.at = flat, at
        self.dtype = SimpleNamespace(element_ty=flat.dtype)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.flat, self.at + offset)


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes have come."""

    def __init__(self) -> None:
        self.count = self.arrived = self.bytes = self.phase = 0
        self.copies: list[Any] = []
        self.changed = threading.Condition(threading.RLock())

    def come(self, arrived: int, size: int) -> None:
        with self.changed:
            self.arrived, self.bytes = self.arrived + arrived, self.bytes + size
            assert self.arrived <= self.count
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


class Shared:
    """A piece of shared memory; `barriers` instead of numbers where it holds mbarriers."""

    def __init__(self, data: torch.Tensor | list[Barrier]) -> None:
        self.data = data
        self.shape = list(data.shape) if isinstance(data, torch.Tensor) else [len(data), 1]
        self.dtype = getattr(data, "dtype", None)

    def index(self, at: Any) -> Any:
        assert 0 <= int(at) < self.shape[0]
        found = self.data[int(at)]
        return Shared(found) if isinstance(found, torch.Tensor) else found

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.data.view(shape))

    def permute(self, order: list[int]) -> Shared:
        return Shared(self.data.permute(order))

    def load(self, layout: Any) -> Tensor:
        return tensor(self.data.clone())

    def store(self, x: torch.Tensor) -> None:
        assert list(x.shape) == self.shape
        self.data.copy_(x.as_subclass(torch.Tensor))


class Descriptor:
    """A TMA descriptor of a tensor [B, H, S, D] in tiles of rows x columns."""

    def __init__(self, x: torch.Tensor, rows: int, columns: int) -> None:
        self.x, self.dtype, self.layout = x, x.dtype, None
        self.block_type = SimpleNamespace(shape=[1, 1, rows, columns], nbytes=rows * columns * x.itemsize)

    def inside(self, coord: list[Any]) -> tuple[torch.Tensor, tuple[int, int]]:
        b, h, row, column = map(int, coord)
        rows, columns = self.block_type.shape[2:]
        found = self.x[b, h, max(row, 0) : row + rows, column : column + columns]
        return found, tuple(found.shape)


class Product:
    """A product in flight."""

    def __init__(self, a: Any, b: Shared, acc: Any, late: bool) -> None:
        self.parts, self.value = (a, b, acc), None
        if not late:
            self.get()

    def get(self) -> Tensor:
        if self.value is None:
            a, b, acc = self.parts
            left = a.data if isinstance(a, Shared) else a.as_subclass(torch.Tensor)
            acc = acc.get() if isinstance(acc, Product) else acc
            self.value = tensor(left.float() @ b.data.float() + (0 if acc is None else acc.as_subclass(torch.Tensor)))
        return self.value


# ------------------------------------------------------------------------------------------------------------------ PTX

_NUMBER = re.compile(r"0f([0-9A-F]{8})|0x([0-9A-F]+)|(-?\d+)$")


def ptx(text: str, inputs: list[torch.Tensor], outputs: int, dtype: Any) -> list[torch.Tensor]:
    """The instructions of an inline text over whole tensors; $0 .. are outputs, then inputs. A register is its bits."""
    registers = {f"${outputs + at}": x.as_subclass(torch.Tensor) for at, x in enumerate(inputs)}
    for line in re.split(r"[;\n]", text.strip("{} \n")):
        name, *rest = line.split(maxsplit=1)[:2] if line.strip(" {}") else [""]
        if not rest or name.startswith("."):
            continue
        target, *sources = (part.strip() for part in rest[0].split(","))
        registers[target] = _INSTRUCTIONS[name](*(_value(source, registers) for source in sources))
    return [registers[f"${at}"] for at in range(outputs)]


def _value(text: str, registers: dict[str, torch.Tensor]) -> Any:
    found = _NUMBER.match(text)
    if not found:
        return registers[text]
    if found[1]:
        return torch.tensor(struct.unpack(">f", bytes.fromhex(found[1]))[0])
    number = int(found[2], 16) if found[2] else int(found[3])
    return torch.tensor(number - (1 << 32) if number >= 1 << 31 else number, dtype=torch.int32)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def _floats(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.float32) if x.dtype == torch.int32 else x


def _select(a: torch.Tensor, m: torch.Tensor, c: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    assert int(table) == 0xB8
    return (_bits(a) & ~m) | (_bits(c) & m)


def _packed(high: torch.Tensor, low: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([low, high], -1).to(dtype).view(torch.int32).squeeze(-1)


_INSTRUCTIONS = {
    "ex2.approx.ftz.f32": lambda x: torch.where(torch.exp2(x) < 2.0**-126, 0.0, torch.exp2(x)),
    "max.NaN.f32": torch.maximum,
    "add.rn.f32": lambda x, y: _floats(x) + _floats(y),
    "sub.rn.f32": lambda x, y: _floats(x) - _floats(y),
    "mul.rn.f32": lambda x, y: _floats(x) * _floats(y),
    "fma.rn.f32": lambda x, y, z: (x.double() * y.double() + z.double()).float(),
    "mov.b32": lambda x: x,
    "mov.u32": lambda x: x,
    "shl.b32": lambda x, y: _bits(x) << y,
    "shr.s32": lambda x, y: _bits(x) >> y,
    "lop3.b32": _select,
    "cvt.rn.bf16x2.f32": lambda x, y: _packed(x, y, torch.bfloat16),
    "cvt.rn.f16x2.f32": lambda x, y: _packed(x, y, torch.float16),
}


# ------------------------------------------------------------------------------------------------------------- the names


class Language:
    """`gl` of one launch: `blocks` programs; what differs between them and their roles is in the thread."""

    float16, bfloat16, float32 = torch.float16, torch.bfloat16, torch.float32
    int1, int8, int16, int32, int64 = torch.bool, torch.int8, torch.int16, torch.int32, torch.int64

    def __init__(self, blocks: int, late: bool) -> None:
        self.blocks, self.late = blocks, late
        self.here = threading.local()
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []
        for name in ("NVMMADistributedLayout", "SliceLayout", "DotOperandLayout", "BlockedLayout", "SwizzledSharedLayout"):
            setattr(self, name, lambda *_: None)

    # ---- programs

    def launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        self.together([lambda pid=pid: self._block(pid, kernel, arguments, constants) for pid in range(self.blocks)])

    def _block(self, pid: int, kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        self.here.pid, self.here.turns = pid, {}
        kernel(*arguments, **constants)

    def warp_specialize(self, roles: list[tuple[Any, tuple[Any, ...]]], *_: Any) -> None:
        pid, turns = self.here.pid, {at: threading.Semaphore(0) for at in range(8, 16)}

        def role(function: Any, given: tuple[Any, ...]) -> None:
            self.here.pid, self.here.turns, self.here.leaving = pid, turns, []
            function(*given)
            assert not self.here.leaving, "a store was not awaited"

        self.together([lambda f=f, g=g: role(f, g) for f, g in roles])
        assert not any(turn.acquire(blocking=False) for turn in turns.values()), "a turn was left to nobody"

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

    def num_programs(self, axis: int) -> int:
        return self.blocks

    def num_warps(self) -> int:
        return 4

    # ---- memory

    def allocate_shared_memory(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Shared:
        if layout == "mbarrier":
            return Shared([Barrier() for _ in range(shape[0])])
        return Shared(torch.full(shape, torch.nan if dtype.is_floating_point else 1 << 20, dtype=dtype))

    def load(self, pointer: Pointer, mask: Any = True, other: Any = 0) -> Tensor:
        at, mask = torch.broadcast_tensors(torch.as_tensor(pointer.at), torch.as_tensor(mask))
        return tensor(torch.where(mask, pointer.flat[torch.where(mask, at, 0).long()], other))

    def store(self, pointer: Pointer, x: Any, mask: Any = True) -> None:
        at, x, mask = torch.broadcast_tensors(*map(torch.as_tensor, (pointer.at, x, mask)))
        pointer.flat[at[mask].long()] = x[mask].to(pointer.flat.dtype)

    def atomic_add(self, pointer: Pointer, x: int, sem: str) -> Tensor:
        with self.lock:
            before = pointer.flat[pointer.at].clone()
            pointer.flat[pointer.at] += x
        return tensor(before)

    # ---- tensors

    @staticmethod
    def constexpr(x: Any) -> Any:
        return x

    @staticmethod
    def static_range(n: int) -> range:
        return range(n)

    @staticmethod
    def arange(start: int, end: int, layout: Any = None) -> Tensor:
        return tensor(torch.arange(start, end, dtype=torch.int32))

    @staticmethod
    def full(shape: list[int], value: Any, dtype: torch.dtype, layout: Any = None) -> Tensor:
        return tensor(torch.full(shape, value, dtype=dtype))

    @staticmethod
    def zeros(shape: list[int], dtype: torch.dtype, layout: Any = None) -> Tensor:
        return tensor(torch.zeros(shape, dtype=dtype))

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> Tensor:
        return tensor(torch.where(torch.as_tensor(condition), x, y))

    @staticmethod
    def maximum(x: Any, y: Any, propagate_nan: Any = None) -> Tensor:
        return tensor(torch.maximum(torch.as_tensor(x), torch.as_tensor(y)))

    @staticmethod
    def minimum(x: Any, y: Any, propagate_nan: Any = None) -> Tensor:
        return tensor(torch.minimum(torch.as_tensor(x), torch.as_tensor(y)))

    @staticmethod
    def max(x: Tensor, axis: int) -> Tensor:
        return x.amax(axis)

    @staticmethod
    def min(x: Tensor, axis: int) -> Tensor:
        return x.amin(axis)

    @staticmethod
    def sum(x: Tensor, axis: int) -> Tensor:
        return tensor(x.sum(axis, dtype=x.dtype))

    @staticmethod
    def associative_scan(x: Tensor, axis: int, combine: Any) -> Tensor:
        return tensor(x.cumsum(axis, dtype=x.dtype))

    @staticmethod
    def convert_layout(x: Tensor, layout: Any) -> Tensor:
        return x

    @staticmethod
    def reshape(x: Tensor, shape: list[int]) -> Tensor:
        return x.reshape(shape)

    @staticmethod
    def permute(x: Tensor, order: list[int]) -> Tensor:
        return x.permute(order)

    @staticmethod
    def expand_dims(x: Tensor, axis: int) -> Tensor:
        return x.unsqueeze(axis)

    @staticmethod
    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 0], x[..., 1]

    @staticmethod
    def join(x: Tensor, y: Tensor) -> Tensor:
        return tensor(torch.stack([x, y], -1))

    @staticmethod
    def cast(x: Any, dtype: torch.dtype) -> Tensor:
        return tensor(x).to(dtype)

    exp, exp2, log, log2, abs, floor, ceil, sqrt_rn = (
        staticmethod(lambda x, f=f: tensor(f(torch.as_tensor(x)))) for f in (
            torch.exp, torch.exp2, torch.log, torch.log2, torch.abs, torch.floor, torch.ceil, torch.sqrt))

    def inline_asm_elementwise(self, text: str, constraints: str, given: list[Any], dtype: torch.dtype, is_pure: bool,
                               pack: int) -> Tensor | None:
        if text.startswith("bar."):
            return self._turn(text)
        given = torch.broadcast_tensors(*map(torch.as_tensor, given))
        parts = [x.reshape(-1, pack)[:, at].contiguous() for x in given for at in range(pack)]
        found = ptx(text, parts, pack, dtype)
        found = [_floats(x) if dtype == torch.float32 else _bits(x) for x in found]
        return tensor(torch.stack(found, -1).reshape(given[0].shape))

    def _turn(self, text: str) -> None:
        operation, barrier = re.match(r"bar\.(\w+) (\d+), 256", text).groups()
        turn = self.here.turns[int(barrier)]
        if operation == "arrive":
            turn.release()
        elif not turn.acquire(timeout=SECONDS):
            raise Stuck(f"turn {barrier}")


def namespace(language: Language) -> dict[str, Any]:
    """The names a generated module imports."""

    def only(bar: Any) -> Barrier:
        return bar.data[0] if isinstance(bar, Shared) else bar

    def init(bar: Any, count: int) -> None:
        only(bar).count = count

    def wait(bar: Any, phase: Any, pred: Any = True) -> None:
        if pred:
            only(bar).wait(int(phase))

    def arrive(bar: Any, pred: Any = True) -> None:
        if pred:
            only(bar).come(1, 0)

    def copy_in(desc: Descriptor, coord: list[Any], bar: Any, to: Shared) -> None:
        def copy() -> None:
            found, (rows, columns) = desc.inside(coord)
            to.data.zero_()
            to.data[0, 0, :rows, :columns] = found
            only(bar).come(0, -desc.block_type.nbytes)

        if language.late:
            copy()
            return
        with only(bar).changed:
            only(bar).copies.append(copy)
            only(bar).changed.notify_all()

    def copy_out(desc: Descriptor, coord: list[Any], source: Shared) -> None:
        def leave() -> None:
            found, (rows, columns) = desc.inside(coord)
            found.copy_(source.data[0, 0, :rows, :columns])

        language.here.leaving.append(leave)
        if not language.late:
            store_wait(0)

    def store_wait(pendings: int) -> None:
        while len(language.here.leaving) > pendings:
            language.here.leaving.pop(0)()

    def product(a: Any, b: Shared, acc: Any, use_acc: bool = True, is_async: bool = False) -> Product:
        return Product(a, b, acc if use_acc else None, language.late)

    def identity(*args: Any, **_: Any) -> Any:
        return args[0] if args else identity

    return {
        "gl": language, "gluon": SimpleNamespace(jit=identity), "constexpr_function": identity,
        "tl": SimpleNamespace(debug_barrier=lambda: None, PropagateNan=SimpleNamespace(ALL=None)),
        "fence_async_shared": lambda: None, "warpgroup_mma": product,
        "warpgroup_mma_wait": lambda pendings, found: found[0].get(),
        "mbarrier": SimpleNamespace(
            MBarrierLayout=lambda: "mbarrier", init=init, wait=wait, arrive=arrive,
            expect=lambda bar, size: only(bar).come(1, size)),
        "tma": SimpleNamespace(
            async_copy_global_to_shared=copy_in, async_copy_shared_to_global=copy_out, store_wait=store_wait),
    }


def run(text: str, entry: str, blocks: int, arguments: tuple[Any, ...], constants: dict[str, Any], late: bool) -> None:
    """The kernel `entry` of a generated module in so many blocks; its tensors are pointers, descriptors are `Descriptor`s."""
    language = Language(blocks, late)
    module = ast.parse(text)
    module.body = [node for node in module.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    names = namespace(language)
    exec(compile(module, entry, "exec"), names)
    language.launch(names[entry], *(_pointer(x) if isinstance(x, torch.Tensor) else x for x in arguments), **constants)


def _pointer(x: torch.Tensor) -> Pointer:
    whole = x.untyped_storage().nbytes() // x.itemsize
    return Pointer(x.as_strided((whole,), (1,), 0), x.storage_offset())
