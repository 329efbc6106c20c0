"""Decode on a real GPU: unequal lengths, graphs that replay as sequences grow, two streams at once, the same bits again."""

import pytest
import torch

from mla_compiler import lowering
from mla_compiler.lowering import counters

from .cases import Case
from .test_gpu import check, within_twice

pytestmark = pytest.mark.gpu
SPEC = "score: 0.125*s; hi: T0[b] + 1; group: 4"


@pytest.fixture(autouse=True, scope="module")
def kernels():
    lowering.register()


class Step:
    """One decode step: q [B, 8, 1, 64] on k, v [B, 2, S, 64], of which length[b] + 1 keys are live."""

    def __init__(self, batch: int, keys: int, spec: str = SPEC) -> None:
        shapes = (batch, 8, 1, 64), (batch, 2, keys, 64), (batch, 2, keys, 64)
        self.q, self.k, self.v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
        self.length = torch.full((batch,), keys - 1, device="cuda")
        self.spec = spec

    def run(self) -> torch.Tensor:
        return torch.ops.flashmla.attend(self.q, self.k, self.v, [self.length], [], [], self.spec)

    def check(self, out: torch.Tensor) -> None:
        within_twice(out, self.q, self.k, self.v, [self.length], self.spec)

    def captured(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        self.run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.run()
        return graph, out


@pytest.fixture(autouse=True)
def every_counter_ends_at_zero():
    yield
    torch.cuda.synchronize()
    for buffer in counters._arenas(torch.device("cuda", torch.cuda.current_device())).streams.values():
        assert not buffer.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("queries", [1, 4, 16])
def test_unequal_lengths(queries, dtype):
    spec = f"score: 0.125*s; hi: T0[b] + i - {queries - 2}; group: 4; sink: F1[h]"
    for batch, keys in ((1, 3000), (5, 5000), (40, 700)):
        check(Case(spec, ("uneven", "sinks"), batch=batch, heads=8, queries=queries, keys=keys, head_dim=64, value_dim=64,
                   dtype=dtype, choice=None))


@pytest.mark.parametrize("splits", [1, 2, 7, 64])
def test_asked_for_parts(splits):
    step = Step(3, 4000, f"{SPEC}; kv_splits: {splits}")
    step.length.copy_(torch.tensor([3999, -1, 70]))
    step.check(step.run())


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_graph_replays_as_sequences_grow(batch):
    step = Step(batch, 8192)
    graph, out = step.captured()
    for live in (0, 17, 63, 64, 1000, 4095, 8191):
        step.length.copy_(torch.arange(batch) * 37 % 101 + live).clamp_(max=8191)
        graph.replay()
        step.check(out)


def test_two_streams_at_once():
    """Eager launches and graphs, on two streams: each counts for itself."""
    steps = [Step(2, 16384), Step(3, 9000)]
    wanted = [step.run() for step in steps]
    graphs = [step.captured() for step in steps for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, (graph, _) in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        with torch.cuda.stream(streams[0]):
            first = steps[0].run()
        with torch.cuda.stream(streams[1]):
            second = steps[1].run()
    torch.cuda.synchronize()
    found = [graphs[0][1], graphs[1][1], graphs[2][1], graphs[3][1], first, second]
    for out, at in zip(found, (0, 0, 1, 1, 0, 1), strict=True):
        assert torch.equal(out, wanted[at])


def test_the_same_bits_every_time():
    step = Step(5, 20000)
    step.length.copy_(torch.tensor([19999, 3, 700, -1, 12345]))
    first = step.run()
    assert all(torch.equal(first, step.run()) for _ in range(100))


def test_a_capture_without_an_arena_sets_its_own_zeros(monkeypatch):
    step = Step(2, 8192)
    step.run()
    monkeypatch.setattr(counters._arenas(step.q.device), "room", torch.empty(0, dtype=torch.int32, device="cuda"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step.run()
    for live in (100, 8191):
        step.length.fill_(live)
        graph.replay()
        step.check(out)
