"""The Gluon decode kernel as threads on the CPU: equal to the formula, however the line is cut; nobody waits for ever."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen, counters, gpu
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.decode import launch as decode
from mla_compiler.lowering.decode.config import batch_block, power
from mla_compiler.lowering.held import Layout
from mla_compiler.lowering.sparse.paging import Listed
from tests.pool.test_bounds import CASES as CHOSEN
from tests.pool.test_bounds import problem

from .attentions import CASES
from .cases import Case, errors, run
from .gluon.language import Language
from .gluon.memory import Descriptor, tensor
from .gluon.run import functions
from .gluon.run import run as run_kernel

FAMILY = "decode_hopper"
SINKS = Case("score: 0.25*s; hi: T0[b] + 1; group: 4; sink: F1[h]", ("uneven", "sinks"), batch=5, heads=8, queries=1, keys=700)


def chosen_pages(arguments: dict, choice: Choice, late: bool) -> tuple[float, float]:
    """(the error of attend_paged, the formula's), its steps over chosen pages by the Hopper kernel."""
    given, truth, formula = problem(**arguments)
    sources, plain = [], gpu.kernel

    def kernel(spec, family, layout):
        if family != FAMILY:
            return plain(spec, family, layout)
        sources.append(codegen.source(spec, family, layout))
        return SimpleNamespace(decode_hopper=None)

    def start(function, grid, arguments, constants, *rest, **options):
        run_kernel(sources[-1], FAMILY, grid[0], arguments, constants, late)

    with mock.patch.object(gpu, "kernel", kernel), mock.patch.object(gpu, "choose_paged", lambda *_: choice), \
            mock.patch.object(decode, "start", start), mock.patch.object(decode, "describe", Descriptor):
        found = gpu.attend_paged(*given).double()
    assert len(sources) == 1
    return (found - truth).abs().max().item(), (formula - truth).abs().max().item()


def ran(case: Case, late: bool) -> tuple[float, float, bool]:
    """(the kernel's error, the formula's, whether every counter is zero again)."""
    measured = on_threads(errors, case, late)
    return *measured, not counters.counters(torch.device("cpu"), 1024).any()


def output(case: Case) -> torch.Tensor:
    return on_threads(run, case, True)


def on_threads(function, case: Case, late: bool):
    """function(case), its kernel run as threads."""
    layout = Layout(case.format, case.page) if case.page else None
    source = codegen.source(AttentionSpec.parse(case.spec), FAMILY, layout)

    def start(function, grid, arguments, constants, *rest, **options):
        run_kernel(source, FAMILY, grid[0], arguments, constants, late)

    kernel = SimpleNamespace(decode_hopper=None)
    with mock.patch.object(gpu, "kernel", lambda *_: kernel), mock.patch.object(decode, "start", start), \
            mock.patch.object(decode, "describe", Descriptor):
        return function(case)


def cut(case: Case, programs: int, block_n: int = 64, stages: int = 2) -> Case:
    """By so many programs in such tiles."""
    rows = AttentionSpec.parse(case.spec).group * case.queries
    few = case.format != "plain" and rows <= 16
    block_m = 16 if few else 64 if rows <= 64 else 128
    choice = Choice(FAMILY, block_m, block_n, 4, stages, programs=programs, block_b=batch_block(case.batch),
                    block_t=power(case.queries), block_r=min(4, power(rows)))
    return case.but(choice=choice)


def check(interpreted, case: Case, programs: int, block_n: int = 64, stages: int = 2, late: bool = True) -> None:
    error, formula, clean = interpreted(ran, cut(case, programs, block_n, stages), late)
    assert clean
    assert error <= 2 * formula, f"{error} from the truth, the formula is {formula}: {case}"


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("programs", [1, 2, 5, 10, 11, 23])
def test_any_number_of_programs(interpreted, programs, late):
    """10 items: a program has several, one, or a part of one."""
    check(interpreted, SINKS, programs, late=late)


@pytest.mark.parametrize("programs", [2, 4, 7, 12])
def test_even_lines(interpreted, programs):
    check(interpreted, SINKS.but(batch=1, tables=("lengths", "sinks"), keys=2000), programs)


@pytest.mark.parametrize("block_n, stages", [(32, 3), (128, 1)])
def test_tiles_and_stages(interpreted, block_n, stages):
    check(interpreted, SINKS, 7, block_n, stages)


@pytest.mark.parametrize("name", ["full", "causal, aligned to the end", "window", "live length", "a length for all"])
@pytest.mark.parametrize("queries", [1, 5, 16])
def test_every_hull(interpreted, name, queries):
    keys = 330 if "n0" not in CASES[name].spec else CASES[name].keys
    check(interpreted, CASES[name].but(queries=queries, keys=keys, dtype=torch.float16), 6)


@pytest.mark.parametrize("head_dim, value_dim, group", [(64, 64, 1), (128, 64, 3), (64, 128, 20)])
def test_shapes(interpreted, head_dim, value_dim, group):
    """20 heads of 5 positions are 100 rows: two warpgroups."""
    spec = f"score: 0.125*s; hi: T0[b] + i - 3; group: {group}"
    check(interpreted, Case(spec, ("uneven",), batch=3, heads=2 * group, queries=5, keys=300, head_dim=head_dim,
                            value_dim=value_dim), 4)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("programs", [1, 2, 5, 10, 11, 23])
def test_pages_and_any_number_of_programs(interpreted, programs, late):
    """Pages in no order, one sequence's counted from the last, those that nobody has full of NaN."""
    check(interpreted, SINKS.but(page=64, keys=704), programs, late=late)


@pytest.mark.parametrize("page, block_n", [(64, 32), (128, 64), (32, 32)])
@pytest.mark.parametrize("programs", [2, 7, 10])
def test_tiles_within_pages(interpreted, page, block_n, programs):
    check(interpreted, SINKS.but(page=page, keys=768), programs, block_n, 3)


@pytest.mark.parametrize("batch, programs", [(1, 2), (2, 3), (2, 4)])
def test_more_pages_than_the_loading_warp_holds(interpreted, batch, programs):
    """400 pages of 16 keys, in whole items, shared ones and items with one program each."""
    case = SINKS.but(batch=batch, tables=("lengths", "sinks"), keys=6400, page=16)
    check(interpreted, case, programs, 16, 4)


@pytest.mark.parametrize("name", ["full", "causal, aligned to the end", "window", "live length", "a length for all"])
@pytest.mark.parametrize("queries", [1, 5])
def test_every_hull_over_pages(interpreted, name, queries):
    keys = 384 if "n0" not in CASES[name].spec else -(-CASES[name].keys // 64) * 64
    check(interpreted, CASES[name].but(queries=queries, keys=keys, page=64, dtype=torch.float16), 6)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("programs, block_n", [(2, 16), (4, 16), (11, 8)])
@pytest.mark.parametrize("name", ["a quarter", "all", "three queries", "nothing and a few", "two chunks"])
def test_chosen_pages(interpreted, name, programs, block_n, late):
    """Each KV head has a list of its own, and every tile its true position."""
    queries = CHOSEN[name].get("queries", 1)
    choice = Choice(FAMILY, 64, block_n, 4, 3, programs=programs, block_b=16, block_t=power(queries), block_r=4)
    error, formula = interpreted(chosen_pages, CHOSEN[name], choice, late)
    assert error <= 2 * formula


@pytest.mark.parametrize("page", [16, 48, 64])
def test_what_takes_its_place_reads_chosen_pages_in_tiles_that_divide_them(page):
    k, v = (torch.zeros(9, 2, page, 64, dtype=torch.float16) for _ in range(2))
    pages, listed = torch.zeros(1, 8, dtype=torch.int32), torch.zeros(1, 2, 8, dtype=torch.int64)
    keys, values = (Listed(x, None, pages, "plain", listed) for x in (k, v))
    spec = AttentionSpec.parse("score: s; hi: T0[b] + 1; group: 4")
    choice = gpu._plain_decode(spec, torch.zeros(1, 8, 1, 64, dtype=torch.float16), keys, values)
    assert choice.family == "decode" and page % choice.block_n == 0


MASK = CASES["mask of a step"].but(batch=3, heads=4, keys=704)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("page", [0, 64])
@pytest.mark.parametrize("queries, programs, block_n", [(1, 4, 64), (1, 13, 32), (5, 6, 64), (33, 13, 64), (5, 7, 128)])
def test_masks_in_memory(interpreted, queries, programs, block_n, page, late):
    """Read in tiles that their classes do not show whole, by one warpgroup and by two."""
    page = max(page, block_n) if page else 0
    check(interpreted, MASK.but(queries=queries, page=page, keys=768 if page > 64 else 704), programs, block_n, late=late)


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("queries", [1, 5, 12])
def test_masks_in_memory_over_quantised_pages(interpreted, queries, format):
    check(interpreted, MASK.but(queries=queries, page=64, format=format, dtype=torch.float16), 7, 64, 4)


@pytest.mark.parametrize("format", ["plain", "int8"])
@pytest.mark.parametrize("queries", [1, 5])
def test_masks_are_not_read_where_all_of_a_tile_is_seen(interpreted, queries, format):
    case = cut(MASK.but(queries=queries, page=64, format=format, dtype=torch.float16), 7, stages=4)
    blank = case.but(tables=("blank_mask", *case.tables[1:]))
    assert torch.equal(interpreted(output, blank), interpreted(output, case))


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize("name", ["a quarter", "three queries", "two chunks"])
def test_chosen_quantised_pages(interpreted, name, block_m, format, late):
    arguments = CHOSEN[name] | {"format": format, "dtype": torch.float16}
    choice = Choice(FAMILY, block_m, 16, 4, 8, programs=5, block_b=16, block_t=power(arguments.get("queries", 1)), block_r=4)
    error, formula = interpreted(chosen_pages, arguments, choice, late)
    assert error <= 2 * formula


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("programs", [1, 5, 10, 11, 23])
def test_quantised_pages(interpreted, programs, format, late):
    """What is asked for early and passed over is unpacked too; scales of pages that nobody has are NaN."""
    check(interpreted, SINKS.but(page=64, keys=704, format=format, dtype=torch.float16), programs, late=late, stages=3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_every_code_becomes_its_number(format, kind):
    """Of all 256 beside each other and in each place of a register, those of the even and of the odd channels."""
    code = torch.arange(256)
    codes = torch.stack([code, code + 1, 3 * code + 77]).to(torch.uint8)
    stored = codes.view(torch.float8_e4m3fn) if format == "fp8" else codes.view(torch.int8)
    names = functions(codegen.source(AttentionSpec.parse(SINKS.spec), FAMILY, Layout(format)), Language(1, True))
    for odd in (False, True):
        found = names["numbers_of"](tensor(codes.view(torch.int16)), odd, kind)
        assert found.dtype == kind
        torch.testing.assert_close(torch.Tensor(found.float()), stored.float()[:, odd::2], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["causal, aligned to the end", "window", "live length"])
@pytest.mark.parametrize("queries", [1, 20])
def test_every_hull_over_quantised_pages(interpreted, name, queries, format):
    """Few rows, whose numbers are in registers, and many."""
    keys = 384 if "n0" not in CASES[name].spec else -(-CASES[name].keys // 64) * 64
    check(interpreted, CASES[name].but(queries=queries, keys=keys, page=64, format=format, dtype=torch.float16), 6, 64, 4)
