"""The exchange kernels as threads on the CPU: equal to the formula, however the keys are divided; nobody waits for ever."""

import pytest
import torch

from mla_compiler.lowering import codegen, gpu, tma
from mla_compiler.lowering.choice import Choice

from . import gluon_threads
from .latents import Case, operands, run, truth
from .test_latent import CASES

HULLS = {name: case for name, case in CASES.items() if "residue" not in case.spec}
SMALL = {"rank": 128, "width": 64}


class Threads:
    """A kernel's module as `gpu.kernel` returns it; its launch runs on the CPU."""

    def __init__(self, spec, family):
        self.source, self.family = codegen.source(spec, family), family

    def __getattr__(self, entry):
        return self

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, maxnreg, launch_cooperative_grid, **constants):
            gluon_threads.launch(self.source, self.family, grid[0], arguments, constants)

        return launch


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "kernel", Threads)
    monkeypatch.setattr(tma, "describe", gluon_threads.Descriptor)


def errors(case: Case) -> tuple[float, float]:
    """(the kernel's, the formula's in float16): largest differences from float64. Run twice: counters are left as found."""
    given, tables = operands(case)
    run(case, given, tables)
    found = run(case, given, tables)
    best = truth(case, given, tables)
    formula = (truth(case, given, tables, case.dtype) - best).abs().max().item()
    return (found.double() - best).abs().max().item(), max(formula, best.abs().max().item() * torch.finfo(case.dtype).eps)


def check(case: Case, programs: int) -> None:
    family = "tokens_exchange" if case.chosen else "mla_exchange"
    power = lambda n: 1 << (n - 1).bit_length()  # noqa: E731
    block_b, block_t = (1, 1) if case.chosen else (power(case.batch), power(case.queries))
    choice = Choice(family, 64, 64, 4, 2, programs=programs, block_b=block_b, block_t=block_t, block_r=4)
    error, formula = errors(case.but(choice=choice))
    assert error <= 2 * formula, (error, formula, case, choice)


@pytest.mark.parametrize("name", HULLS)
@pytest.mark.parametrize("programs", [0, 1, 5])
def test_dense(name, programs):
    check(HULLS[name].but(**SMALL, keys=500), programs)


@pytest.mark.parametrize("name", HULLS)
@pytest.mark.parametrize("programs", [0, 4])
def test_chosen_tokens(name, programs):
    check(HULLS[name].but(**SMALL, keys=500, chosen=280), programs)


@pytest.mark.parametrize("programs", [2, 3, 6, 8])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_sequences_of_all_lengths(programs, batch):
    """A block has several short ones, or a piece of a long one."""
    check(HULLS["live length"].but(**SMALL, keys=900, batch=batch, queries=1), programs)


@pytest.mark.parametrize("chosen", [0, 200])
def test_lanes(chosen):
    """Rows of two blocks, the second not full."""
    check(HULLS["live length"].but(**SMALL, keys=700, batch=2, queries=1, heads=70, chosen=chosen), 6)


@pytest.mark.parametrize("chosen", [0, 100])
def test_pages(chosen):
    check(HULLS["live length"].but(**SMALL, keys=300, batch=2, paged=True, chosen=chosen), 4)
