"""Gluon kernels on the CPU: each warp partition is a thread, an mbarrier is a condition, shared memory starts as NaN

What Triton's interpreter cannot run. A generated kernel is executed as plain Python against the stand-ins below: a partition is
one thread, a tile one tensor, layouts are nothing. A product that is begun reads its operands only when it is awaited, so
that a slot freed too early gives wrong numbers; a barrier that nobody will complete raises. Nothing is said about memory
order within a partition, proxies or layouts: the GPU tests are for that.
"""

from __future__ import annotations

import math
import random
import threading
import time
from types import SimpleNamespace

import torch

PATIENCE = 20.0
here = threading.local()
lock = threading.Lock()


class Tile(torch.Tensor):
    """A tensor whose `type.layout` is anything; `x += y` makes a new one, as in a kernel."""

    def __iadd__(self, other):
        return self + other

    @property
    def type(self):
        return SimpleNamespace(layout=Anything())

    def split(self):
        return self.unbind(-1)


class Anything:
    def __getattr__(self, name):
        return self

    def __getitem__(self, at):
        return self

    def __call__(self, *args, **kwargs):
        return self


def tile(x, dtype=None):
    return torch.as_tensor(x, dtype=dtype).as_subclass(Tile)


class Pointer:
    """Elements of a flat tensor at offsets."""

    def __init__(self, storage, at):
        self.storage, self.at = storage, at
        self.dtype = SimpleNamespace(element_ty=storage.dtype)

    def __add__(self, other):
        return Pointer(self.storage, self.at + tile(other).long())

    def __getitem__(self, index):
        return Pointer(self.storage, self.at[index])


def pointer(x):
    flat = torch.as_strided(x, (x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
    return Pointer(flat, tile(x.storage_offset(), torch.int64))


class Buffer:
    """Shared memory."""

    def __init__(self, data):
        self.data, self.shape, self.dtype = data, list(data.shape), data.dtype

    def index(self, at):
        return Buffer(self.data[int(at)])

    def reshape(self, shape):
        return Buffer(self.data.view(shape))

    def permute(self, order):
        return Buffer(self.data.permute(order))

    def slice(self, start, length, dim):
        return Buffer(self.data.narrow(dim, start, length))

    def load(self, layout):
        return tile(self.data.clone())

    def store(self, x):
        self.data.copy_(x)

    def _reinterpret(self, dtype, shape, layout):
        return Buffer(self.data.view(dtype))


class Barrier:
    def __init__(self):
        self.changed = threading.Condition()
        self.phase = self.arrived = self.bytes = 0
        self.count = 1

    def arrive(self, count=1, size=0):
        with self.changed:
            self.arrived += count
            self.bytes += size
            assert self.arrived <= self.count, "more arrivals than a phase has"
            if self.arrived == self.count and self.bytes == 0:
                self.phase, self.arrived = self.phase ^ 1, 0
                self.changed.notify_all()

    def wait(self, phase):
        patience = time.monotonic() + PATIENCE
        with self.changed:
            while not self.changed.wait_for(lambda: self.phase != int(phase), 0.1):
                give_up()
                assert time.monotonic() < patience, "a barrier for ever"


class Barriers:
    def __init__(self, count):
        self.all = [Barrier() for _ in range(count)]

    def index(self, at):
        return self.all[int(at)]


class Begun:
    """A product that is not awaited yet."""

    def __init__(self, a, b, acc):
        self.a, self.b, self.acc = a, b, acc

    def value(self):
        acc = self.acc.value() if isinstance(self.acc, Begun) else self.acc
        a, b = (x.data if isinstance(x, Buffer) else x for x in (self.a, self.b))
        return acc + tile(a).float() @ tile(b).float()


class Descriptor:
    """A tensor in tiles of these sizes of its last dims; what lies outside reads as 0, and is not written."""

    layout = Anything()

    def __init__(self, x, *tile):
        self.x, self.tile, self.dtype = x, [1] * (x.dim() - len(tile)) + list(tile), x.dtype
        self.layout = Anything()
        self.block_type = SimpleNamespace(nbytes=math.prod(tile) * x.itemsize, shape=self.tile)

    def inside(self, at):
        """That part of the tensor, and where it lies in the tile."""
        sizes = zip(at, self.tile, self.x.shape, strict=True)
        spans = [slice(int(start), min(int(start) + size, whole)) for start, size, whole in sizes]
        return self.x[tuple(spans)], tuple(slice(0, max(0, span.stop - span.start)) for span in spans)

    def read(self, at):
        out = torch.zeros(self.tile, dtype=self.x.dtype)
        found, there = self.inside(at)
        out[there] = found
        return out

    def write(self, at, x):
        found, there = self.inside(at)
        found.copy_(x[there])


def load(p, mask=None, other=0, cache_modifier=None):
    at = p.at if mask is None else p.at.expand(torch.broadcast_shapes(p.at.shape, mask.shape))
    if mask is None:
        return tile(p.storage[at])
    seen = tile(mask).expand(at.shape)
    found = p.storage[torch.where(seen, at, 0)]
    return tile(torch.where(seen, found, torch.tensor(other, dtype=found.dtype)))


def store(p, x, mask=None):
    x, at = tile(x).to(p.storage.dtype), p.at
    shape = torch.broadcast_shapes(x.shape, at.shape, *([] if mask is None else [mask.shape]))
    seen = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
    p.storage[at.expand(shape)[seen]] = x.expand(shape)[seen]


def atomic_add(p, n, sem=None):
    hesitate()
    give_up()
    with lock:
        before = p.storage[p.at].clone()
        p.storage[p.at] = before + n
    return tile(before)


def give_up():
    if here.run.failed:
        raise RuntimeError("another partition failed")


def hesitate():
    if random.random() < 0.05:
        time.sleep(random.random() * 1e-3)


def wait(bar, phase):
    hesitate()
    bar.wait(phase)


def arrive(bar, count=1, pred=True):
    hesitate()
    if pred:
        bar.arrive(count)


def allocate(dtype, shape, layout):
    if dtype == torch.int64:
        return Barriers(shape[0])
    return Buffer(torch.full([int(n) for n in shape], math.nan if dtype.is_floating_point else -(2**31), dtype=dtype))


def specialize(parts, warps, registers):
    """The first in this thread, the others in threads of their own."""
    run, program = here.run, here.program

    def other(function, arguments):
        here.run, here.program = run, program
        run.attempt(function, arguments)

    threads = [threading.Thread(target=other, args=part) for part in parts[1:]]
    for thread in threads:
        thread.start()
    run.attempt(*parts[0])
    for thread in threads:
        thread.join()


class Run:
    """One launch."""

    def __init__(self, programs):
        self.programs, self.failed = programs, []

    def attempt(self, function, arguments):
        try:
            function(*arguments)
        except BaseException as error:
            self.failed.append(error)


def compare(function):
    return lambda x, y: tile(function(tile(x), tile(y)))


def count(*bounds):
    for at in range(*map(int, bounds)):
        yield tile(at, torch.int32)


gl = SimpleNamespace(
    constexpr=lambda x=None: x, int32=torch.int32, int64=torch.int64, float32=torch.float32,
    arange=lambda start, end, layout=None: tile(torch.arange(start, end, dtype=torch.int32)),
    zeros=lambda shape, dtype, layout=None: tile(torch.zeros([int(n) for n in shape], dtype=dtype)),
    full=lambda shape, value, dtype, layout=None: tile(torch.full(shape, value, dtype=dtype)),
    where=lambda c, x, y: tile(torch.where(tile(c), x, y)), minimum=compare(torch.minimum), maximum=compare(torch.maximum),
    max=lambda x, axis: tile(x.amax(axis)), min=lambda x, axis: tile(x.amin(axis)),
    sum=lambda x, axis: tile(x.sum(axis, dtype=None if x.is_floating_point() else torch.int32)),
    cdiv=lambda x, y: -(-x // y), associative_scan=lambda x, axis, combine: tile(x.cumsum(axis, dtype=x.dtype)),
    exp=torch.exp, exp2=torch.exp2, log2=torch.log2, abs=torch.abs, cast=lambda x, dtype: tile(x).to(dtype),
    load=load, store=store, atomic_add=atomic_add, static_range=range,
    convert_layout=lambda x, layout: x, expand_dims=lambda x, axis: x.unsqueeze(axis),
    inline_asm_elementwise=lambda text, constraints, args, **_: torch.exp2(args[0]), allocate_shared_memory=allocate,
    warp_specialize=specialize, num_warps=lambda: 4, program_id=lambda axis: tile(here.program, torch.int32),
    num_programs=lambda axis: tile(here.run.programs, torch.int32), **{
        name: Anything() for name in (
            "BlockedLayout", "SliceLayout", "NVMMADistributedLayout", "DotOperandLayout", "NVMMASharedLayout",
            "SwizzledSharedLayout")},
)


def copy_by_tma(descriptor, at, bar, buffer):
    hesitate()
    buffer.store(descriptor.read(at))
    bar.arrive(0, -descriptor.block_type.nbytes)


def write_by_tma(descriptor, at, buffer):
    descriptor.write(at, buffer.data)


def copy_by_threads(buffer, p, mask):
    buffer.store(load(p, mask))


def namespace():
    """The names that a generated module imports."""
    jit = lambda function=None, **_: function or (lambda f: f)  # noqa: E731
    return {
        "gluon": SimpleNamespace(jit=jit), "gl": gl, "range": count,
        "tl": SimpleNamespace(debug_barrier=lambda: None, constexpr=gl.constexpr),
        "mbarrier": SimpleNamespace(
            MBarrierLayout=Anything(), init=lambda bar, count: setattr(bar, "count", count), wait=wait, arrive=arrive,
            expect=lambda bar, size: bar.arrive(1, size)),
        "fence_async_shared": lambda: None, "gdc_launch_dependents": lambda: None,
        "warpgroup_mma": lambda a, b, acc, use_acc=True, is_async=False: Begun(a, b, acc if use_acc else acc * 0),
        "warpgroup_mma_wait": lambda n, begun: begun[0].value(),
        "tma": SimpleNamespace(
            async_copy_global_to_shared=copy_by_tma, async_copy_shared_to_global=write_by_tma, store_wait=lambda n: None),
        "async_copy": SimpleNamespace(
            async_copy_global_to_shared=copy_by_threads, wait_group=lambda n: None,
            mbarrier_arrive=lambda bar, increment_count: bar.arrive(bar.count)),
    }


def launch(source, entry, programs, arguments, constants):
    """Runs all programs of a generated module at once. Tensors become pointers; whatever a partition raises is raised."""
    names = namespace()
    text = "\n".join(line for line in source.splitlines() if not line.startswith(("import ", "from ")))
    exec(compile(text, entry, "exec"), names)
    run = Run(programs)

    def one(program):
        here.run, here.program = run, program
        given = [pointer(x) if isinstance(x, torch.Tensor) else tile(x, torch.int32) if isinstance(x, int) else x
                 for x in arguments]
        run.attempt(lambda: names[entry](*given, **constants), ())

    threads = [threading.Thread(target=one, args=(program,)) for program in range(programs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if run.failed:
        raise run.failed[0]
