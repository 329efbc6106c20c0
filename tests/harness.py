"""error(compiled, truth) <= 2 * error(eager, truth)        truth: the same eager model, everything in float64

Also what every coverage test shares: the compile options that keep C++ compilers out, and what our backend reported.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch._inductor.config
from torch import Tensor
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode

import mla_compiler
from mla_compiler import lowering
from mla_compiler.ir import AttentionSpec, Site
from mla_compiler.lowering import select

BACKEND = "flashmla"

# Inductor goes its whole way, but every operator becomes a call of ATen: seconds saved per graph, no C++ compiler run.
FAST: dict[str, Any] = {"fallback_by_default": True}

_WIDER = {torch.float32: torch.float64, torch.float: torch.float64}


class Float64(TorchFunctionMode):
    """Whatever the program casts to float32 on the way (softmax, norms, rotary angles) stays in float64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        wider = {name: self._widen(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._widen, args), **wider)

    @staticmethod
    def _widen(value: Any) -> Any:
        return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value


def worst(outputs: list[Tensor], truth: list[Tensor]) -> float:
    """The largest absolute difference. NaN anywhere gives NaN, which no bound accepts."""
    assert [o.shape for o in outputs] == [t.shape for t in truth]
    return torch.stack([(o.double() - t).abs().max() for o, t in zip(outputs, truth, strict=True)]).max().item()


def root_mean_square(outputs: list[Tensor], truth: list[Tensor]) -> float:
    """The error of the typical element: of few numbers the largest error is mostly luck."""
    errors = torch.cat([(o.double() - t).flatten() for o, t in zip(outputs, truth, strict=True)])
    return errors.square().mean().sqrt().item()


def assert_within_twice(compiled: list[Tensor], eager: list[Tensor], truth: list[Tensor]) -> None:
    """The bound at the head of this file. `truth` must be float64 and the eager error positive, or nothing was tested.

    Of a few numbers eager may hit the truth by luck: its error counts as no less than one rounding of the largest of them.
    """
    assert all(t.dtype == torch.float64 for t in truth)
    assert worst(eager, truth) > 0
    rounding = torch.finfo(eager[0].dtype).eps / 2 * max(t.abs().max().item() for t in truth)
    allowed, found = max(worst(eager, truth), rounding), worst(compiled, truth)
    assert found <= 2 * allowed, f"error {found:.3g} from float64; eager's is {allowed:.3g}"


class Steps:
    """`forward`, and how many graphs had been compiled after each call of it. generate reads its signature."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, forward)
        self.forward, self.graphs = forward, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.forward(*args, **kwargs)
        self.record()
        return out

    def record(self) -> None:
        self.graphs.append(counters["stats"]["unique_graphs"])

    def assert_settled(self, calls: int) -> None:
        """Nothing was compiled after the first `calls` calls."""
        assert len(self.graphs) > calls or calls == 1
        assert self.graphs[calls - 1:] == [self.graphs[calls - 1]] * (len(self.graphs) - calls + 1), self.graphs


class Seen:
    """What our backend reported inside one `watching()` block: a report for each compiled graph that has attention."""

    def __init__(self) -> None:
        self.graphs: list[list[Site]] = []

    @property
    def sites(self) -> list[Site]:
        return [site for graph in self.graphs for site in graph]

    def assert_each_graph(self, sites: int, left: Counter[str]) -> None:
        """Every graph has `sites` attentions, all fused but those `left` (the name of a Reason -> how many)."""
        assert self.graphs, "the backend reported no graph"
        for graph in self.graphs:
            assert len(graph) == sites, f"{len(graph)} of {sites} attentions seen:\n{describe(graph)}"
            assert reasons(graph) == left, describe(graph)


def _supports_everywhere(spec: AttentionSpec, head_dim: int, value_dim: int, dtype: torch.dtype, device_type: str) -> Any:
    """The lowering's answer. What the CPU supports in a GPU's dtypes and head dims must have a GPU kernel too."""
    answer = select.supports(spec, head_dim, value_dim, dtype, device_type)
    if answer is None and dtype in select.DTYPES and max(head_dim, value_dim) <= select.LARGEST_HEAD_DIM:
        assert select.supports(spec, head_dim, value_dim, dtype, "cuda") is None, f"no GPU kernel for {spec}"
    return answer


@contextmanager
def watching() -> Iterator[Seen]:
    """Nothing compiled before, no cached compilation, no gradient; then what was compiled inside."""
    torch._dynamo.reset()
    counters.clear()
    seen, before = Seen(), len(mla_compiler.reports())
    with (torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True),
          mock.patch.object(lowering, "supports", _supports_everywhere)):
        yield seen
    seen.graphs = [list(report.sites) for report in mla_compiler.reports()[before:] if report.sites]


def compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Through our backend, in one graph: a graph break is an error."""
    return torch.compile(fn, backend=BACKEND, fullgraph=True, options={**FAST, **options})


def reasons(sites: list[Site]) -> Counter[str]:
    """Name of the Reason -> how many sites were left for it. A fused site counts nowhere."""
    return Counter(reason_name(site) for site in sites if site.status != "fused")


def reason_name(site: Site) -> str:
    """`Rejected` prints the sentence first: the Reason is the one whose sentence begins the text."""
    names = [reason.name for reason in mla_compiler.Reason if site.reason.startswith(reason.value)]
    assert len(names) == 1, f"{site.name}: not left for a Reason: {site.reason!r}"
    return names[0]


def describe(sites: list[Site]) -> str:
    return "\n".join(f"{s.name} {s.source} {s.status} {s.reason} [{s.predicate}] {s.score}" for s in sites)
