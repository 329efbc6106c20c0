"""Dynamo graph in, compiled callable out: torch.compile(model, backend="flashmla")

    capture ▸ AOTAutograd ▸ pipeline (in Inductor's joint-graph hook, before its own fusions) ▸ Inductor

The one file that sees both passes and lowering.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, GraphModule, Node

from . import lowering, report_store
from .errors import OptionError, StrictError
from .ir import Rejected, Site
from .logs import log_graph
from .options import Options
from .passes.capture import capture, leave_for_gradient, needs_gradient
from .passes.hoist_steps import hoist
from .pipeline import Run, run_passes
from .report import Report, record
from .report_table import pass_times
from .sites import layer_of, source_of

HOOK = "joint_custom_pre_pass"


def flashmla(
    module: GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The Dynamo backend. Ours among `options` begin with `flashmla.`, the others are Inductor's; `mode` as Inductor's.

    Raises OptionError on an unknown or ill-typed option, StrictError if `flashmla.strict` is set and an attention is left.
    """
    ours, patches = Options.split(options, mode)
    ours = ours.resolved()
    if HOOK in patches:
        raise OptionError(f"option {HOOK!r} is taken by flashmla", "use post_grad_custom_pre_pass")
    lowering.register()
    compilation = Compilation(ours, _key(module, inputs, ours, patches), _placeholder_names(module))
    steps = hoist(module)
    if needs_gradient(inputs):
        compilation.leave(leave_for_gradient(module))
    else:
        log_graph("captured", module)
        compilation.leave(capture(module))
        compilation.hooked = True
        patches = {**patches, HOOK: compilation}
    started = time.perf_counter()
    compiled = compile_fx(module, inputs, config_patches=patches)
    compilation.finish(time.perf_counter() - started)
    return steps.around(compiled) if steps else compiled


@dataclass
class Compilation(CustomGraphPass):
    """One graph being compiled: Inductor calls it with the functional graph; it keeps what became of each attention."""

    options: Options
    key: str
    input_names: list[str]
    sites: list[Site] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    hooked: bool = False
    ran: bool = False
    after: Any = field(default_factory=lambda: config.joint_custom_pre_pass)

    def __call__(self, graph: Graph) -> None:
        log_graph("before", graph, show=self.options.debug >= 3)
        names = dict(zip((n.name for n in graph.find_nodes(op="placeholder")), self.input_names, strict=False))
        on_pass = (lambda name, g: log_graph(f"after_{name}", g, show=True)) if self.options.debug >= 4 else None
        run = Run(graph, self.options, lowering, names, on_pass=on_pass)
        self.sites += run_passes(run)
        self.seconds = run.seconds
        self.ran = True
        log_graph("after", graph, show=self.options.debug >= 3)
        if self.after is not None:
            self.after(graph)

    def uuid(self) -> tuple[str, str, Any]:
        """Source and options: what else the compiled graph depends on."""
        return source_hash(), str(self.options), self.after.uuid() if self.after is not None else None

    def leave(self, left: Sequence[tuple[Node, Rejected]]) -> None:
        self.sites += [
            Site(at, node.name, source_of(node), layer_of(node), reason=str(why)) for at, (node, why) in enumerate(left)
        ]

    def finish(self, compile_s: float) -> None:
        """Record the report, and keep it beside the compile cache; on a hit there, read it back."""
        report = self._report(compile_s)
        record(report)
        if self.options.debug >= 1 and report.sites:
            print(report)
        if self.options.debug >= 2 and report.sites:
            print(pass_times(report))
        if self.options.strict and report.left:
            raise StrictError.of(report.left)

    def _report(self, compile_s: float) -> Report:
        known = None if self.ran else report_store.load(self.key)
        if known is not None:
            return known
        if self.hooked and not self.ran:
            return Report(tuple(self.sites), {"compile_s": compile_s, "lost": True})
        meta = {"compile_s": compile_s, "passes_s": sum(self.seconds.values()), "passes": self.seconds}
        report = Report(tuple(self.sites), meta)
        report_store.save(self.key, report)
        return report


def _key(module: GraphModule, inputs: Sequence[Any], ours: Options, patches: Mapping[str, Any]) -> str:
    """A name for what is compiled: the graph, what is known of its inputs, the options, and our source."""
    facts = [module.code, source_hash(), str(ours), str(sorted(patches.items())), torch.__version__]
    facts += [
        f"{tuple(x.shape)} {x.stride() if x.layout == torch.strided else ''} {x.dtype} {x.device} {x.requires_grad}"
        if isinstance(x, torch.Tensor) else f"{type(x).__name__} {x}" for x in inputs
    ]
    facts.append(str(torch.is_grad_enabled()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def source_hash() -> str:
    """SHA-256 of this package's source: part of the compile cache's key."""
    home = Path(__file__).parent
    rooms = (home, home / "passes", home / "lowering")  # links in a checkout, which glob does not follow
    digest = hashlib.sha256()
    for path in sorted({path.resolve() for room in rooms for path in room.glob("**/*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _placeholder_names(module: GraphModule) -> list[str]:
    """The inputs as the user would call them: `attention_mask` for L_kwargs_attention_mask_."""
    names = [node.name for node in module.graph.find_nodes(op="placeholder")]
    return [re.sub(r"^l_(kwargs_|args_|self_modules_|self_)?|_+$", "", name, flags=re.IGNORECASE) or name for name in names]
