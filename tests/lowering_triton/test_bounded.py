"""Which pages the kernel lists, beside the same choice on the CPU: ties by the dozen, few and many pages, any share of them."""

from functools import partial

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu
from mla_compiler.lowering.sparse import cpu_bounded, paging
from mla_compiler.sparsity import Sparsity

GROUP, DIM, PAGE = 2, 16, 16


def whole(*shape, values):
    """Small whole numbers, so that every order of a sum gives the same."""
    return torch.randint(-values, values + 1, shape).float()


def lists(share, ends, values, queries=1, columns=70):
    """By the kernel and by the CPU: the numbers of the pages that each KV head of each sequence attends."""
    torch.manual_seed(0)
    policy = Sparsity("pages", "", share)
    spec = AttentionSpec.parse(f"score: 0.5*s; hi: min(T0[b], T0[b] + i - {queries - 1}); group: {GROUP}")
    q, bounds = whole(2, 2 * GROUP, queries, DIM, values=values), whole(140, 2, 2, DIM, values=values)
    pages = torch.randint(-140, 140, (2, columns)).int()
    given = [*gpu.operands(spec, [torch.tensor(ends)], [], []), paging.part_of(policy)]
    listed = paging.listed(partial(gpu.kernel, spec, "bounded"), GROUP, q, bounds, pages, PAGE, given, False)
    found = []
    for b, end in enumerate(ends):
        at = bounds[pages[b, :-(-end // PAGE)].long()].permute(1, 2, 3, 0)                     # [2, 2, DIM, pages]
        x = q[b].view(2, GROUP * queries, DIM)
        score = 0.5 * (x.clamp(min=0) @ at[:, 0] + (-x).clamp(min=0) @ at[:, 1]).amax(1)       # [2, pages]
        for g, wanted in enumerate(cpu_bounded.chosen(score, queries, PAGE, policy)):
            entries = listed[b, g, :len(wanted)]
            assert torch.equal(entries >> 32, pages[b].long()[wanted] % 140)
            found.append(((entries & 0xFFFFFFFF).tolist(), wanted.tolist()))
    return found


@pytest.mark.parametrize("values", [1, 1000], ids=["ties", "few ties"])
@pytest.mark.parametrize("share", [0.01, 0.125, 0.5, 1.0])
def test_the_kernel_lists_what_the_cpu_does(interpreted, share, values):
    for case in ({"ends": (70 * PAGE, 5)}, {"ends": (1000, 33), "queries": 3}, {"ends": (640, 641), "columns": 130}):
        for found, wanted in interpreted(partial(lists, share, values=values, **case)):
            assert found == wanted


def test_of_pages_that_are_alike_the_later_ones(interpreted):
    for found, wanted in interpreted(lists, 0.2, (70 * PAGE, 40 * PAGE), 0):
        assert found == wanted and found[0] == 0 and found[1:] == list(range(found[1], found[1] + len(found) - 1))


def test_more_pages_than_16_bits_count(interpreted):
    for found, wanted in interpreted(partial(lists, 0.001, (33000 * PAGE, 5), 1000, columns=33000)):
        assert found == wanted
