"""K and V by heads, through the kernels: in the interpreter; on a GPU with DeepSeek's dims, in the memory of a few heads."""

from unittest import mock

import pytest
import torch

from mla_compiler import lowering
from mla_compiler.lowering import by_heads, gpu, head_groups
from mla_compiler.lowering.projected import Projected
from tests.ops.cases import CASES
from tests.ops.test_attend_projected import problem, written
from tests.ops.test_by_heads import parts

NAMES = ("full", "offset", "pad", "alibi", "odd", "sinks", "bias")
NOPE, ROPE, VALUE, RANK = 128, 64, 128, 512


def interpreted_errors(name: str, most: int, queries: int) -> tuple[float, float]:
    """Of the kernels and of the formula in float16, from float64."""
    found = problem(CASES[name], 0, queries, dtype=torch.float16)
    truth, formula = written(found, "expanded", torch.float64), written(found, "expanded", torch.float16)

    def attend(q, k, v, env, spec, out):
        gpu.attend_into(q, k, v, *map(list, env), spec, out)

    with mock.patch.object(by_heads, "_attend", attend):
        out = by_heads.expanded(*parts(found), most)
    error, allowed = ((x.double() - truth).square().mean().sqrt().item() for x in (out, formula))
    return error, max(allowed, torch.finfo(torch.float16).eps * truth.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("most", "queries"), [(3, 70), (2, 1)])
def test_kernels_write_into_the_heads_of_the_output(interpreted, name, most, queries):
    error, formula = interpreted(interpreted_errors, name, most, queries)
    assert error <= 2 * formula, (error, formula)


def deepseek(heads: int, queries: int, keys: int) -> Projected:
    """K and V of `heads` heads, bfloat16, on the GPU; both weights are views of one."""
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = (1, heads, queries, NOPE + ROPE), (1, keys, RANK), (1, keys, ROPE), (heads, NOPE + VALUE, RANK)
    q, latent, rope, weight = (torch.randn(shape, generator=draw, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    first, value = (weight / RANK**0.5).split([NOPE, VALUE], 1)
    return Projected(q, latent, rope, [first], [value], [0], NOPE)


def exactly(given: Projected, spec: str, dtype: torch.dtype) -> torch.Tensor:
    """Causal to the bottom right, head by head, in `dtype`."""
    out, (queries, keys) = torch.empty_like(given.q[..., :VALUE], dtype=dtype), (given.q.shape[2], given.latent.shape[1])
    hidden = torch.ones(queries, keys, dtype=torch.bool, device="cuda").triu(keys - queries + 1)
    latent, rope = given.latent[0].to(dtype), given.rope[0].to(dtype)
    for h in range(given.q.shape[1]):
        k = torch.cat([latent @ given.keys[0][h].to(dtype).T, rope], -1)
        s = (given.q[0, h].to(dtype) @ k.T * (NOPE + ROPE) ** -0.5).masked_fill(hidden, -torch.inf)
        out[0, h] = s.softmax(-1) @ (latent @ given.values[0][h].to(dtype).T)
    return out


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "most", "queries", "keys"), [(16, 6, 1000, 1000), (16, 5, 300, 1500), (12, 12, 700, 700),
                                                               (16, 4, 1, 3000)])
def test_groups_on_a_gpu(heads, most, queries, keys):
    spec = f"score: {(NOPE + ROPE) ** -0.5!r}*s; hi: i + n0 + 1"
    given = deepseek(heads, queries, keys)
    truth, formula = exactly(given, spec, torch.float64), exactly(given, spec, torch.bfloat16)
    out = by_heads.expanded(given, ([], [keys - queries], []), spec, most)
    error, allowed = ((x.double() - truth).square().mean().sqrt().item() for x in (out, formula))
    assert error <= 2 * allowed, (error, allowed)


@pytest.mark.gpu
def test_memory_on_a_gpu():
    """Beside the output: K and V of the heads that are made at a time, and what a kernel asks for, less than one head more."""
    lowering.register()
    given, spec = deepseek(128, 4096, 8192), f"score: {(NOPE + ROPE) ** -0.5!r}*s; hi: i + 4097"
    most = head_groups.heads_at_once(1, 128, 4096, 8192, NOPE + ROPE + VALUE, 2, given.q.device)
    assert most < 128

    def run():
        return torch.ops.flashmla.attend_projected(
            given.q, given.latent, given.rope, given.keys, given.values, [0], NOPE, 0, [], [], [], spec)

    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = run()
    head = 8192 * (NOPE + ROPE + VALUE) * 2
    assert torch.cuda.max_memory_allocated() - before - out.nbytes <= (most + 1) * head
