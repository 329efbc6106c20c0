"""A kernel and its arguments  =>  a launch on the current stream that pays for Triton's binding once.

Binding costs a JIT call some hundred microseconds of the host when strides travel as tuples: more than a decode step takes on
the GPU. The compiled kernel that a first call returns is kept under everything that its specialisation depends on, and
called directly after that. Under the interpreter there is none, and every call binds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

_WIDE = 1 << 31
_compiled: dict[tuple[Any, ...], tuple[Any, Any]] = {}


def launch(function: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: dict[str, Any], warps: int,
           stages: int, device: int | None, **options: int) -> None:
    """`arguments` by position; `constants` by name, all the parameters after them. `device`: the GPU's index; `options`:
    others of Triton's compiler."""
    facts = (*options.items(), *constants.values(), *map(_specialisation, _params(function), arguments))
    key = (id(function), device, warps, stages, *facts)
    found = _compiled.get(key)
    if found is None:
        compiled = function[grid](*arguments, **constants, num_warps=warps, num_stages=stages, **options)
        if compiled is not None:
            _compiled[key] = function, compiled  # the function is held, for its id is in the key
        return
    three = (*grid, 1, 1)[:3]
    found[1][three](*arguments, *(constants[name] for name in function.arg_names[len(arguments):]))


@lru_cache(maxsize=4096)
def _params(function: Any) -> tuple[tuple[bool, bool], ...]:
    """Of each parameter: whether its value, and whether its divisibility by 16, specialises the kernel."""
    params = getattr(function, "params", None) or [None] * len(function.arg_names)
    return tuple(
        (not getattr(p, "do_not_specialize", False), not getattr(p, "do_not_specialize_on_alignment", False)) for p in params
    )


def _specialisation(param: tuple[bool, bool], value: Any) -> Any:
    """What of an argument the compiled code depends on."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, tuple):
        tensors = bool(value) and isinstance(value[0], Tensor)
        return tuple(_specialisation(param, x) for x in value) if tensors else _of_tuple(value)
    if isinstance(value, int):
        return _of_integer(value, *param)
    if hasattr(value, "block_shape"):                                # a TMA descriptor
        return value.base.dtype, tuple(value.block_shape)
    return type(value)


@lru_cache(maxsize=4096)
def _of_tuple(values: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(_of_integer(value, True, True) for value in values)


def _of_integer(value: int, by_value: bool, by_alignment: bool) -> tuple[bool, bool, bool]:
    """Triton holds integers of 2^31 and more as int64, makes 1 a constant, and notes multiples of 16."""
    return value >= _WIDE or value < -_WIDE, by_value and value == 1, by_value and by_alignment and value % 16 == 0
