"""The exchange kernels as threads on the CPU: equal to the formula, however the keys are divided; nobody waits for ever."""

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch

from mla_compiler.lowering import codegen, gpu
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.mla import exchange_launch
from mla_compiler.lowering.mla.workspace import workspace

from .gluon.memory import Descriptor
from .gluon.run import run as run_kernel
from .latents import Case, operands, run, truth
from .test_latent import CASES

HULLS = {name: case for name, case in CASES.items() if "residue" not in case.spec}
SMALL = {"rank": 128, "width": 64}


class Threads:
    """A kernel's module as `gpu.kernel` returns it; its launch runs on the CPU."""

    def __init__(self, spec, family, late):
        self.source, self.family, self.late = codegen.source(spec, family), family, late

    def __getattr__(self, entry):
        return self

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, maxnreg, launch_pdl, **constants):
            run_kernel(self.source, self.family, grid[0], arguments, constants, self.late)

        return launch


def unseen(case: Case, tables: list[torch.Tensor]) -> torch.Tensor:
    """Keys [B, S] of a live length or of a window that no row sees."""
    j = torch.arange(case.keys).expand(case.batch, -1)
    return j >= tables[0][:, None] + case.queries if tables else (j < 10) | (j >= 29 + case.queries)


def errors(case: Case, exponent: int = 0, poisoned: bool = False) -> tuple[float, float]:
    """(the kernel's, the formula's in its dtype): largest differences from float64. Copies are early, then products.
    Latents times 2^exponent, their queries as much smaller: the same weights. `poisoned`: NaN in keys that no row sees."""
    given, tables = operands(case)
    if exponent:
        given = replace(given, q_latent=given.q_latent * 2.0**-exponent, latent=given.latent * 2.0**exponent)
    best = truth(case, given, tables)
    formula = (truth(case, given, tables, case.dtype) - best).abs().max().item()
    if poisoned:
        dead = unseen(case, tables)[..., None]
        given = replace(given, latent=given.latent.masked_fill(dead, torch.nan), rope=given.rope.masked_fill(dead, torch.nan))
    found = []
    for late in (True, False):
        with mock.patch.object(gpu, "kernel", partial(Threads, late=late)), \
                mock.patch.object(exchange_launch, "describe", Descriptor):
            found.append((run(case, given, tables).double() - best).abs().max().item())
    return max(found), max(formula, best.abs().max().item() * torch.finfo(case.dtype).eps)


def check(interpreted, case: Case, programs: int, splits: int = 1, exponent: int = 0, narrow: bool = False,
          poisoned: bool = False) -> None:
    """`programs` that share a line; 0: each item in `splits` parts."""
    family = "tokens_exchange" if case.chosen else "packed_exchange" if case.packed else "mla_exchange"
    family = exchange_launch.family_of("mla", case.heads, case.queries) if narrow else family
    power = lambda n: 1 << (n - 1).bit_length()  # noqa: E731
    block_b, block_t = (1, 1) if case.chosen else (power(case.batch), power(case.queries))
    choice = replace(exchange_launch.whole(family, case.heads, case.queries), kv_splits=splits, programs=programs,
                     block_b=block_b, block_t=block_t)
    error, formula = interpreted(errors, case.but(choice=choice), exponent, poisoned)
    assert error <= 2 * formula, (error, formula, case, choice)


@pytest.mark.parametrize("name", HULLS)
@pytest.mark.parametrize("programs, splits", [(0, 1), (0, 3), (1, 1), (5, 1)])
def test_dense(interpreted, name, programs, splits):
    check(interpreted, HULLS[name].but(**SMALL, keys=500), programs, splits)


@pytest.mark.parametrize("name", HULLS)
@pytest.mark.parametrize("programs, splits", [(0, 1), (0, 3), (4, 1)])
def test_chosen_tokens(interpreted, name, programs, splits):
    check(interpreted, HULLS[name].but(**SMALL, keys=500, chosen=280), programs, splits)


@pytest.mark.parametrize("name", ["live length", "window"])
@pytest.mark.parametrize("programs, splits", [(0, 1), (5, 1)])
def test_what_no_row_sees_may_be_nan(interpreted, name, programs, splits):
    check(interpreted, HULLS[name].but(**SMALL, keys=500), programs, splits, poisoned=True)


@pytest.mark.parametrize("exponent", [-30, 30, 100])
@pytest.mark.parametrize("programs, splits", [(0, 3), (5, 1)])
def test_parts_of_any_magnitude(interpreted, programs, splits, exponent):
    """Parts have the range of what they are joined to."""
    check(interpreted, HULLS["live length"].but(**SMALL, keys=500, dtype=torch.bfloat16), programs, splits, exponent)


def test_the_workspace_has_a_slot_for_each_piece():
    """B=4 of 8k, 128 heads: 66 blocks of each of two boxes cut 4 items in 69 pieces at most; then B=1 in 66 parts."""
    out = torch.empty(0, dtype=torch.bfloat16)
    for choice, items, pieces in ((Choice("mla_exchange", 64, 64, 4, 2, programs=132), 4, 132 + 6),
                                  (Choice("mla_exchange", 64, 64, 4, 2, 66), 1, 132)):
        found = workspace(choice, items, 2, 512, out)
        assert found.parts.nbytes == pieces * 64 * 1024 and found.parts.shape[0] == len(found.lse)
    assert workspace(Choice("mla_exchange", 64, 64, 4, 2), 1, 2, 512, out) is None


@pytest.mark.parametrize("programs", [2, 3, 6, 8])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_sequences_of_all_lengths(interpreted, programs, batch):
    """A block has several short ones, or a piece of a long one, or nothing."""
    check(interpreted, HULLS["live length"].but(**SMALL, keys=900, batch=batch, queries=1), programs)


@pytest.mark.parametrize("chosen", [0, 200])
@pytest.mark.parametrize("heads, queries, lanes", [(70, 1, 2), (5, 9, 2), (40, 2, 2), (64, 1, 1)])
def test_boxes_of_rows(interpreted, chosen, heads, queries, lanes):
    """Boxes that are not full, of heads or of queries."""
    case = HULLS["live length"].but(**SMALL, keys=700, batch=2, queries=queries, heads=heads, chosen=chosen)
    if chosen:
        lanes = -(-heads // 64)
    check(interpreted, case, 3 * lanes)
    check(interpreted, case, 0, 2)


@pytest.mark.parametrize("chosen", [0, 100])
def test_pages(interpreted, chosen):
    check(interpreted, HULLS["live length"].but(**SMALL, keys=300, batch=2, paged=True, chosen=chosen), 4)


PACKED = {"rank": 512, "width": 64, "packed": True, "dtype": torch.bfloat16}


@pytest.mark.parametrize("name", HULLS)
@pytest.mark.parametrize("programs, splits", [(0, 1), (0, 3), (5, 1)])
def test_packed(interpreted, name, programs, splits):
    """The formula on what the codes and scales say."""
    case = HULLS[name].but(**PACKED, keys=300)
    check(interpreted, case.but(spec=case.spec.replace("0.25", "0.07")), programs, splits)


@pytest.mark.parametrize("width, dtype", [(64, torch.float16), (8, torch.bfloat16)])
def test_packed_in_pages(interpreted, width, dtype):
    case = HULLS["live length"].but(**{**PACKED, "width": width, "dtype": dtype}, keys=300, paged=True, batch=2)
    check(interpreted, case.but(spec=case.spec.replace("0.25", "0.07")), 4)
