"""Gluon's names in torch on the CPU: enough of them to run the generated Hopper kernels, every role of every block a thread

Layouts are ignored, barriers are real: a missing arrival is a `Stuck` after some seconds. Of what is asynchronous the worst
is assumed, one way or the other: `late`, copies are there at once, and products and results are read when they are awaited,
so that a tile that is overwritten too early gives wrong numbers; else products are done at once, and a copy is there when
someone waits for it. Inline PTX is interpreted. What stays untested is what the layouts and the compiler do.
"""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import torch

from .barriers import Barrier, hesitate
from .language import Language, count
from .memory import Descriptor, Pointer, Product, Shared, tensor


def namespace(language: Language) -> dict[str, Any]:
    """The names a generated module imports."""

    def only(bar: Any) -> Barrier:
        return bar.data[0] if isinstance(bar, Shared) else bar

    def init(bar: Any, count: int) -> None:
        only(bar).count = count

    def wait(bar: Any, phase: Any, pred: Any = True) -> None:
        hesitate()
        if pred:
            only(bar).wait(int(phase))

    def arrive(bar: Any, count: int = 1, pred: Any = True) -> None:
        hesitate()
        if pred:
            only(bar).come(count, 0)

    def copy_for(bar: Any, copy: Any) -> None:
        """Done at once, or by whoever waits at the barrier."""
        if language.late:
            copy()
            return
        with only(bar).changed:
            only(bar).copies.append(copy)
            only(bar).changed.notify_all()

    def copy_in(desc: Descriptor, coord: list[Any], bar: Any, to: Shared) -> None:
        def copy() -> None:
            found, there = desc.inside(coord)
            to.data.zero_()
            to.data[there] = found
            only(bar).come(0, -desc.block_type.nbytes)

        assert to.shape == desc.block_type.shape
        copy_for(bar, copy)

    def copy_by_threads(to: Shared, pointer: Pointer, mask: Any) -> None:
        language.here.coming.append(lambda: to.store(language.load(pointer, mask)))

    def arrive_with_copies(bar: Any, increment_count: bool) -> None:
        """All threads, each when its copies are there."""
        copies, language.here.coming = language.here.coming, []

        def copy() -> None:
            [each() for each in copies]
            only(bar).come(only(bar).count, 0)

        assert not increment_count
        copy_for(bar, copy)

    def await_copies(pendings: int) -> None:
        while len(language.here.coming) > pendings:
            language.here.coming.pop(0)()

    def copy_out(desc: Descriptor, coord: list[Any], source: Shared) -> None:
        def leave() -> None:
            found, there = desc.inside(coord)
            found.copy_(source.data[there])

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
        "gl": language, "gluon": SimpleNamespace(jit=identity), "constexpr_function": identity, "range": count,
        "tl": SimpleNamespace(debug_barrier=lambda: None, PropagateNan=SimpleNamespace(ALL=None), constexpr=language.constexpr),
        "fence_async_shared": lambda: None, "gdc_launch_dependents": lambda: None, "gdc_wait": lambda: None,
        "mma_v2": lambda a, b, acc: Product(a, Shared(b), acc, False).get(),
        "warpgroup_mma": product, "warpgroup_mma_wait": lambda pendings, found: found[0].get(),
        "mbarrier": SimpleNamespace(
            MBarrierLayout=lambda: "mbarrier", init=init, wait=wait, arrive=arrive,
            expect=lambda bar, size: only(bar).come(1, size)),
        "tma": SimpleNamespace(
            async_copy_global_to_shared=copy_in, async_copy_shared_to_global=copy_out, store_wait=store_wait),
        "async_copy": SimpleNamespace(
            async_copy_global_to_shared=copy_by_threads, wait_group=await_copies, mbarrier_arrive=arrive_with_copies),
    }


def functions(text: str, language: Language) -> dict[str, Any]:
    """Those of a generated module, by name, and what it imports."""
    module = ast.parse(text)
    module.body = [node for node in module.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    names = namespace(language)
    exec(compile(module, "generated", "exec"), names)
    return names


def run(text: str, entry: str, blocks: int, arguments: tuple[Any, ...], constants: dict[str, Any], late: bool) -> None:
    """The kernel `entry` of a generated module in so many blocks; its tensors are pointers, descriptors are `Descriptor`s."""
    language = Language(blocks, late)
    language.launch(functions(text, language)[entry], *map(_given, arguments), **constants)


def _given(x: Any) -> Any:
    """An argument as the kernel has it: a tensor is a pointer, an int is of 32 bits."""
    if isinstance(x, int):
        return tensor(x, torch.int32)
    if not isinstance(x, torch.Tensor):
        return x
    whole = x.untyped_storage().nbytes() // x.itemsize
    return Pointer(x.as_strided((whole,), (1,), 0), tensor(x.storage_offset(), torch.int64))
