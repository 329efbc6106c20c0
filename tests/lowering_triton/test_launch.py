"""A launch binds once per specialisation, and again whenever the compiled code would be another."""

from types import SimpleNamespace

import pytest
import torch

from mla_compiler.lowering.launch import launch

X = torch.zeros(64)


class Function:
    """Stands for a JIT function x, strides, n, m, BLOCK, FLAG: notes what is bound, and what is called directly."""

    arg_names = ("x", "strides", "n", "m", "BLOCK", "FLAG")

    def __init__(self) -> None:
        names = {"n": "do_not_specialize", "m": "do_not_specialize_on_alignment"}
        self.params = [SimpleNamespace(**{names.get(name, "_"): True}) for name in self.arg_names]
        self.bound, self.called = [], []

    def __getitem__(self, grid):
        def bind(*arguments, num_warps, num_stages, **constants):
            self.bound.append((grid, arguments, constants, num_warps, num_stages))
            return Compiled(self)

        return bind


class Compiled:
    def __init__(self, function: Function) -> None:
        self.function = function

    def __getitem__(self, grid):
        return lambda *arguments: self.function.called.append((grid, arguments))


def started(function: Function, x=X, strides=(64, 1), n=5, m=7, block=32, flag=True, device=0, warps=4, stages=2):
    launch(function, (3,), (x, strides, n, m), {"FLAG": flag, "BLOCK": block}, warps, stages, device)
    return len(function.bound)


def test_the_second_call_is_direct_and_has_every_parameter_in_order():
    function = Function()
    assert started(function) == 1 and not function.called
    assert started(function, n=6) == 1
    ((grid, (x, *rest)),) = function.called
    assert grid == (3, 1, 1) and x is X and rest == [(64, 1), 6, 7, 32, True]


@pytest.mark.parametrize("change", [
    {"x": X[1:]}, {"x": X.half()}, {"strides": (1, 64)}, {"strides": (65, 1)}, {"strides": (2**31, 1)}, {"n": 2**31}, {"m": 1},
    {"m": 2**31}, {"block": 64}, {"flag": False}, {"device": 1}, {"warps": 8}, {"stages": 3},
], ids=str)
def test_another_specialisation_is_bound_anew(change):
    function = Function()
    started(function)
    assert started(function, **change) == 2
    assert started(function, **change) == 2 and len(function.called) == 1


@pytest.mark.parametrize("change", [{"x": torch.ones(64)}, {"strides": (128, 1)}, {"n": 1}, {"n": 16}, {"m": 16}], ids=str)
def test_what_specialises_nothing_is_not_bound_anew(change):
    function = Function()
    started(function)
    assert started(function, **change) == 1


def test_an_interpreter_that_returns_no_kernel_binds_every_time():
    class Interpreted(Function):
        def __getitem__(self, grid):
            return lambda *arguments, **constants: self.bound.append(arguments)

    function = Interpreted()
    assert started(function) == 1 and started(function) == 2
