"""The cases of the interpreter on a real GPU, with DeepSeek's dims; CUDA graphs as lengths grow; the op and its fake."""

from dataclasses import replace

import pytest
import torch

from mla_compiler import lowering
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu_latent
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.fp8 import dequantize
from mla_compiler.lowering.machine import machine_of
from mla_compiler.lowering.mla import exchange_launch

from .latents import Case, errors, operands, truth
from .test_latent import CASES

pytestmark = pytest.mark.gpu
LIVE = CASES["live length"]
REAL = {"rank": 512, "width": 64, "heads": 20}


@pytest.fixture(autouse=True, scope="module")
def kernels():
    lowering.register()


def check(case: Case) -> None:
    error, formula = errors(case, "cuda")
    assert error <= 2 * formula, (error, formula, case)


@pytest.mark.parametrize("chosen", [0, 250])
@pytest.mark.parametrize("name", CASES)
def test_attentions(name, chosen):
    """The kernel that is taken; its blocks share few keys and many."""
    case = CASES[name].but(dtype=torch.bfloat16, choice=None, **REAL, keys=900, chosen=chosen)
    check(case)
    check(case.but(keys=3000))


@pytest.mark.parametrize("heads, queries", [(16, 1), (8, 3)])
@pytest.mark.parametrize("name", CASES)
def test_few_rows(name, heads, queries):
    """Keys as the rows of the products, in 16 columns and in 32."""
    case = CASES[name].but(dtype=torch.bfloat16, choice=None, rank=512, width=64, heads=heads, queries=queries, keys=900)
    check(case)
    check(case.but(keys=3000))


@pytest.mark.parametrize("heads, queries", [(16, 1), (16, 2), (1, 1), (5, 4)])
def test_few_rows_in_parts_and_pages(heads, queries):
    case = LIVE.but(dtype=torch.float16, choice=None, rank=512, width=64, heads=heads, queries=queries, keys=700)
    check(case.but(spec=f"{LIVE.spec}; kv_splits: 3"))
    check(case.but(paged=True, batch=2))


@pytest.mark.parametrize("chosen", [0, 200])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_dtypes(dtype, chosen):
    check(LIVE.but(dtype=dtype, choice=None, **REAL, keys=500, chosen=chosen))


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("chosen", [0, 200])
@pytest.mark.parametrize("heads", [16, 128])
def test_packed(heads, chosen, paged):
    """Codes converted by the target, in the kernel that is taken and in the plain one."""
    case = LIVE.but(dtype=torch.bfloat16, choice=None, rank=512, width=64, heads=heads, keys=500, chosen=chosen)
    case = case.but(packed=True, paged=paged, spec=LIVE.spec.replace("0.25", "0.07"))
    check(case)
    check(case.but(keys=3000, batch=3))
    check(case.but(keys=3000, spec=f"{case.spec}; kv_splits: 3"))
    check(case.but(choice=Choice("tokens" if chosen else "mla", 16, 32, 8, 2)))


def test_quantised_on_the_gpu():
    """Within half a step of e4m3 of what was there: 2^-4 of a channel, or 2^-10 of a scale."""
    latent, rope = torch.randn(70, 512).bfloat16(), torch.randn(70, 64).bfloat16()
    found = torch.ops.flashmla.quantize_latent(latent.cuda(), rope.cuda()).cpu()
    back, beside = dequantize(found, 512, torch.bfloat16, torch.float64)
    step = found[:, 512:528].view(torch.float32).double().repeat_interleave(128, -1) * 2.0**-10
    exact = latent.double()
    assert torch.equal(beside, rope.double())
    assert ((back - exact).abs() <= (exact.abs() * 2.0**-4 + step) * (1 + 2.0**-20)).all()


@pytest.mark.parametrize("chosen", [0, 200])
def test_parts(chosen):
    """Any number of them is the same kernel."""
    case = LIVE.but(dtype=torch.bfloat16, choice=None, rank=512, width=64, heads=128, keys=500, chosen=chosen)
    for splits in (2, 3, 40):
        for queries in (1, 3, 70):
            check(case.but(spec=f"{LIVE.spec}; kv_splits: {splits}", queries=queries))


@pytest.mark.parametrize("heads, chosen", [(20, 0), (20, 250), (40, 0), (16, 0)])
def test_shares(heads, chosen):
    """Blocks that have several sequences, pieces of them, or nothing."""
    machine = machine_of(torch.device("cuda", 0))
    if machine.capability != (9, 0):
        pytest.skip("needs Hopper")
    family = exchange_launch.family_of("tokens" if chosen else "mla", heads, 1)
    sizes = {**REAL, "heads": heads}
    case = Case(LIVE.spec, ("uneven",), batch=5, queries=1, keys=1500, dtype=torch.bfloat16, **sizes, chosen=chosen)
    spec = AttentionSpec.parse(case.spec)
    whole = exchange_launch.line(spec, family, case.batch, case.heads, 1, chosen or case.keys, machine)
    assert whole is not None
    for programs in (1, 3, 7, whole.programs):
        check(case.but(choice=replace(whole, programs=programs)))


@pytest.mark.parametrize("chosen", [0, 200])
def test_pages(chosen):
    check(LIVE.but(dtype=torch.bfloat16, choice=None, **REAL, paged=True, keys=700, batch=2, chosen=chosen))


@pytest.mark.parametrize("chosen", [0, 100])
def test_the_plain_kernels(chosen):
    """What TMA cannot address, and small dims."""
    case = CASES["full"].but(batch=2, keys=130, choice=None, dtype=torch.bfloat16, chosen=chosen)
    check(case.but(layout="strided", **REAL))
    check(case.but(rank=32, width=16))
    check(case.but(rank=32, width=16, spec=case.spec + "; kv_splits: 3"))


def test_one_buffer():
    check(CASES["full"].but(layout="one buffer", batch=2, keys=130, choice=None, dtype=torch.bfloat16, **REAL))


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
