"""explain(fn, *args) = call fn once, compiled by us, and report every attention in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .pool import memory
from .report import Report, reports


def explain(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Report:
    """Compile `fn` (a module or a function, compiled already or not), call it once, and say what became of its attention.

    The call is made as the caller would make it: outside torch.no_grad() the report says that gradients are needed, and
    a cache among the arguments is written. What torch.compile remembers in memory is forgotten before and after, as
    torch._dynamo.explain does. Errors of `fn` and of the compilation pass through.
    """
    from .backend import flashmla

    torch._dynamo.reset()
    known, breaks, started = len(reports()), _graph_breaks(), time.perf_counter()
    torch.compile(_original(fn), backend=flashmla)(*args, **kwargs)
    meta: dict[str, Any] = {"call_s": time.perf_counter() - started, "graph_breaks": _graph_breaks() - breaks}
    torch._dynamo.reset()
    if pools := memory():
        meta["memory"] = pools
    return Report.merged(reports()[known:], **meta)


def _original(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What was given to torch.compile, if `fn` came out of it."""
    return getattr(fn, "_orig_mod", None) or getattr(fn, "_torchdynamo_orig_callable", None) or fn


def _graph_breaks() -> int:
    return sum(torch._dynamo.utils.counters["graph_break"].values())
