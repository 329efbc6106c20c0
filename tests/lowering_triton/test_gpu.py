"""The cases of the interpreter on a real GPU; the op, its strides and CUDA graphs; more than 2^31 elements."""

import pytest
import torch
from torch import Tensor

from mla_compiler import lowering
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu, reference
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.summary import reference as summary_reference

from .attentions import CASES
from .cases import LAYOUTS, Case, errors, operands, run
from .test_parts import masks

pytestmark = pytest.mark.gpu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
PARTS = [None, Choice("decode", 16, 64, 4, 2, 1), Choice("decode", 16, 32, 4, 2, 3)]


@pytest.fixture(autouse=True, scope="module")
def kernels():
    lowering.register()


def check(case: Case) -> None:
    error, formula = errors(case, "cuda")
    assert error <= 2 * formula, (error, formula, case)


def within_twice(out: Tensor, q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], spec: str) -> None:
    out, q, k, v, *tables = (x.cpu() for x in (out, q, k, v, *tables))
    truth = reference.attend(q, k, v, tables, [], [], spec)
    formula = reference.attend(q, k, v, tables, [], [], spec, dtype=q.dtype)
    rounding = truth.abs().max() * torch.finfo(q.dtype).eps
    assert (out - truth).abs().max() <= 2 * (formula - truth).abs().max().clamp(min=rounding)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_attentions(name, dtype):
    for choice in PARTS:
        check(CASES[name].but(dtype=dtype, choice=choice))
    check(CASES[name].but(dtype=dtype, choice=None, queries=1))
    check(CASES[name].but(dtype=dtype, choice=None, queries=200, keys=333))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [(16, 16), (64, 64), (72, 72), (80, 96), (128, 128), (192, 128), (256, 256)], ids=str)
def test_head_dims(dims, dtype):
    for queries in (1, 5, 300):
        case = CASES["causal, aligned to the end"].but(sizes=(400 - queries,), queries=queries, keys=400, choice=None)
        check(case.but(dtype=dtype, head_dim=dims[0], value_dim=dims[1]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout):
    for queries in (1, 130):
        check(CASES["causal"].but(layout=layout, batch=2, queries=queries, keys=130, head_dim=64, choice=None))


@pytest.mark.parametrize("at", range(7))
def test_summarize(at):
    mask = list(masks())[at]
    for found, truth in zip(gpu.summarize(mask.cuda()), summary_reference.summarize(mask), strict=True):
        assert torch.equal(found.cpu(), truth)


def test_a_graph_replays_as_the_sequence_grows():
    """One captured decode step serves every live length: nothing is read back."""
    spec = "score: 0.125*s; hi: T0[b] + 1; group: 4"
    q, k, v = (torch.randn(2, h, s, 64, device="cuda", dtype=torch.bfloat16) for h, s in ((8, 1), (2, 4096), (2, 4096)))
    length = torch.zeros(2, dtype=torch.int64, device="cuda")
    torch.ops.flashmla.attend(q, k, v, [length], [], [], spec)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.flashmla.attend(q, k, v, [length], [], [], spec)
    for live in (0, 17, 1000, 4095):
        length.fill_(live)
        graph.replay()
        within_twice(out, q, k, v, [length], spec)


def test_no_new_kernel_as_the_sequence_grows():
    case = CASES["causal, aligned to the end"].but(queries=1, head_dim=64, value_dim=64)
    case = case.but(choice=Choice("decode", 16, 32, 4, 2, 3))
    module = gpu.kernel(AttentionSpec.parse(case.spec), "decode")
    run(case.but(keys=40, sizes=(39,)), "cuda")
    before = sum(len(cache[0]) for cache in module.decode.device_caches.values())
    for keys in (41, 48, 64, 100):
        run(case.but(keys=keys, sizes=(keys - 1,)), "cuda")
    assert sum(len(cache[0]) for cache in module.decode.device_caches.values()) == before


def test_more_than_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB")
    keys, live = (1 << 31) // 128 + 4096, 64
    k = torch.zeros(1, 1, keys, 128, device="cuda", dtype=torch.bfloat16)
    v = torch.full_like(k, torch.nan)
    k[:, :, -live:], v[:, :, -live:] = (torch.randn(1, 1, live, 128, device="cuda") for _ in "kv")
    for queries in (1, 64):
        q = torch.randn(1, 1, queries, 128, device="cuda", dtype=torch.bfloat16)
        out = torch.ops.flashmla.attend(q, k, v, [], [keys - live], [], "score: 0.1*s; lo: n0")
        within_twice(out, q, k[:, :, -live:], v[:, :, -live:], [], "score: 0.1*s")


@pytest.mark.parametrize("heads_first", [0, 1])
def test_the_op_is_what_its_fake_says(heads_first):
    given = operands(CASES["causal"].but(dtype=torch.bfloat16), "cuda")
    spec = CASES["causal"].spec + (f"; heads_first: {heads_first}" if heads_first else "")
    args = (given.q, given.k, given.v, [], [], [], spec)
    torch.library.opcheck(torch.ops.flashmla.attend.default, args, test_utils=("test_schema", "test_faketensor"))
