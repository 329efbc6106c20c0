"""Kernels over pages on a real GPU: the cases of the interpreter, every format, CUDA graphs as sequences grow."""

import pytest
import torch

from mla_compiler import lowering
from tests.ops.pages import encoded, store
from tests.pool.test_bounds import CASES as CHOSEN
from tests.pool.test_bounds import problem

from .attentions import CASES
from .cases import Case
from .test_gpu import check, within_twice
from .test_pages import FORMATS, paged

pytestmark = pytest.mark.gpu
DTYPES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def kernels():
    lowering.register()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_attentions(name, dtype):
    for page in (16, 64):
        check(paged(CASES[name].but(dtype=dtype, choice=None, queries=1), page))
        check(paged(CASES[name].but(dtype=dtype, choice=None, queries=200, keys=333), page))


@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (192, 128), (256, 256)], ids=str)
@pytest.mark.parametrize("page", [32, 64, 128])
def test_a_step_over_pages_of_any_size(dims, page):
    """More pages than the Hopper kernel's loading warp holds at once, and sequences of every length."""
    spec = "score: 0.125*s; hi: T0[b] + 1; group: 4; sink: F1[h]"
    case = Case(spec, ("uneven", "sinks"), batch=5, heads=8, queries=1, keys=200 * page, head_dim=dims[0], value_dim=dims[1],
                dtype=torch.bfloat16, choice=None, page=page)
    check(case)
    check(case.but(batch=1, tables=("lengths", "sinks")))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (192, 128), (256, 256)], ids=str)
def test_formats(dims, format):
    for dtype in (*DTYPES, torch.float32):
        for queries in (1, 5, 300):
            case = CASES["causal, aligned to the end"].but(sizes=(400 - queries,), queries=queries, keys=448, choice=None)
            check(paged(case.but(dtype=dtype, head_dim=dims[0], value_dim=dims[1], format=format), 64))


@pytest.mark.parametrize("format", ["plain", "int8"])
def test_a_graph_replays_as_sequences_grow_into_new_pages(format):
    """One captured step: lengths and the table are read anew by every replay."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, s, 64, dtype=torch.bfloat16) for h, s in ((8, 1), (2, 4096), (2, 4096)))
    pages = torch.randperm(150)[:128].view(2, 64)
    (k_values, k_scales, k), (v_values, v_scales, v) = (encoded(x, format, keys) for x, keys in ((k, True), (v, False)))
    stores = [x if x is None else store(x, pages, 64, 150).cuda() for x in (k_values, v_values, k_scales, v_scales)]
    table, lengths = torch.full((2, 64), -1, dtype=torch.int32, device="cuda"), torch.zeros(2, dtype=torch.int32, device="cuda")
    spec, on_gpu = "score: 0.125*s; hi: T0[b]; group: 4", q.cuda()

    def step():
        return torch.ops.flashmla.attend_paged(on_gpu, *stores, table, format, [lengths], [], [], spec)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for ends in ((1, 64), (65, 4096), (700, 3)):
        table.fill_(-1)
        for row, end in enumerate(ends):
            table[row, : -(-end // 64)] = pages[row, : -(-end // 64)].int().cuda()
        lengths.copy_(torch.tensor(ends))
        graph.replay()
        within_twice(out, q, k, v, [lengths], spec)


def unaligned(x):
    """The same numbers, of which TMA can address none."""
    return torch.cat([x, x[..., :1]], -1)[..., :x.shape[-1]]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", CHOSEN)
def test_chosen_pages(name, aligned):
    """As the policy's words have it, in float64: pages are chosen, listed and attended."""
    arguments, truth, formula = problem(**CHOSEN[name])
    moved = [x.cuda() if isinstance(x, torch.Tensor) else [y.cuda() for y in x] if isinstance(x, list) else x
             for x in arguments]
    moved[1:3] = moved[1:3] if aligned else map(unaligned, moved[1:3])
    found = torch.ops.flashmla.attend_paged(*moved).cpu().double()
    rounding = truth.abs().max() * torch.finfo(arguments[0].dtype).eps
    assert (found - truth).abs().max() <= 2 * max((formula - truth).abs().max(), rounding)
