"""The cases of the interpreter on a real GPU, with DeepSeek's dims; CUDA graphs as lengths grow; the op and its fake."""

from dataclasses import replace

import pytest
import torch

from mla_compiler import lowering
from mla_compiler.lowering import gpu_latent
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.machine import machine_of
from mla_compiler.lowering.mla import exchange_launch

from .latents import LAYOUTS, Case, errors, operands, truth
from .test_latent import CASES

pytestmark = pytest.mark.gpu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
REAL = {"rank": 512, "width": 64, "heads": 20}


@pytest.fixture(autouse=True, scope="module")
def kernels():
    lowering.register()


def check(case: Case) -> None:
    error, formula = errors(case, "cuda")
    assert error <= 2 * formula, (error, formula, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_attentions(name, dtype):
    for splits in ("", "; kv_splits: 3"):
        case = CASES[name].but(dtype=dtype, choice=None, **REAL, spec=CASES[name].spec + splits)
        check(case)
        check(case.but(chosen=30))
        check(case.but(rank=32, width=16))
        check(case.but(paged=True, keys=200, batch=2, queries=1 if name == "alibi" else case.queries))


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 70])
@pytest.mark.parametrize("heads", [16, 128])
def test_rows(queries, heads):
    case = CASES["live length"].but(dtype=torch.bfloat16, choice=None, **REAL | {"heads": heads}, queries=queries, keys=500)
    for splits in ("", "; kv_splits: 40"):
        check(case.but(spec=case.spec + splits))
        check(case.but(spec=case.spec + splits, chosen=200))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout):
    check(CASES["full"].but(layout=layout, batch=2, keys=130, choice=None, dtype=torch.bfloat16, **REAL))


@pytest.mark.parametrize("tile", [(32, 4), (64, 2), (16, 4)], ids=str)
@pytest.mark.parametrize("paged", [False, True])
def test_tiles_of_the_hopper_kernel(tile, paged):
    if machine_of(torch.device("cuda", 0)).capability != (9, 0):
        pytest.skip("needs Hopper")
    for name in ("live length", "window", "sinks"):
        for splits in (1, 7):
            case = CASES[name].but(dtype=torch.bfloat16, **REAL, keys=600, paged=paged)
            check(case.but(choice=Choice("mla_hopper", 64, tile[0], 4, tile[1], splits)))
            check(case.but(choice=Choice("tokens_hopper", 64, tile[0], 4, tile[1], splits), chosen=250))


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("chosen", [0, 250])
@pytest.mark.parametrize("heads", [16, 128])
def test_exchange(heads, chosen, paged):
    """One item a block; parts that a second launch merges; a line of tiles whose parts are joined in the same launch."""
    machine = machine_of(torch.device("cuda", 0))
    if machine.capability != (9, 0):
        pytest.skip("needs Hopper")
    family = "tokens_exchange" if chosen else "mla_exchange"
    for name in ("live length", "window", "sinks", "softcap", "nothing to see"):
        case = CASES[name].but(dtype=torch.bfloat16, **REAL | {"heads": heads}, keys=900, paged=paged, chosen=chosen)
        rows, keys = (heads, chosen) if chosen else (heads * case.queries, case.keys)
        line = exchange_launch.line(family, case.batch, case.queries, rows, keys, machine)
        few = replace(line, programs=2 * -(-rows // 64))
        for choice in (Choice(family, 64, 64, 4, 2), Choice(family, 64, 64, 4, 2, 7), line, few):
            check(case.but(choice=choice))


def test_a_graph_replays_as_the_sequence_grows():
    """One captured decode step serves every live length: nothing is read back."""
    case = Case("score: 0.07*s; hi: T0[b] + i + 1", batch=2, queries=1, keys=4096, dtype=torch.bfloat16, **REAL)
    given, _ = operands(case)
    there = gpu_latent.Latents(*[None if x is None else x.cuda() for x in vars(given).values()])
    length = torch.zeros(2, dtype=torch.int64, device="cuda")
    args = (*vars(there).values(), [length], [], [], case.spec)
    torch.ops.flashmla.attend_latent(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.flashmla.attend_latent(*args)
    for live in (0, 17, 1000, 4095):
        length.fill_(live)
        graph.replay()
        best, formula = (truth(case, given, [length.cpu()], dtype) for dtype in (torch.float64, torch.bfloat16))
        rounding = best.abs().max() * torch.finfo(torch.bfloat16).eps
        assert (out.cpu() - best).abs().max() <= 2 * (formula - best).abs().max().clamp(min=rounding)


@pytest.mark.parametrize("chosen", [0, 20])
def test_the_op_is_what_its_fake_says(chosen):
    case = CASES["full"].but(dtype=torch.bfloat16, chosen=chosen)
    given, _ = operands(case)
    there = replace(given, **{name: x.cuda() for name, x in vars(given).items() if x is not None})
    args = (*vars(there).values(), [], [], [], case.spec)
    torch.library.opcheck(torch.ops.flashmla.attend_latent.default, args, test_utils=("test_schema", "test_faketensor"))
