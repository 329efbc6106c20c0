"""The Hopper kernel of prefill, launched on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from mla_compiler.lowering import codegen
from mla_compiler.lowering.hopper import launch as hopper
from mla_compiler.lowering.machine import MACHINES

from .memory import Descriptor
from .run import run as run_kernel


def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """launch(spec, choice, q, k, v, given, out): hopper.launch, its kernel run in at most `blocks` blocks; `listed`: the tiles
    that were chosen beforehand."""

    def run(spec, choice, q, k, v, given, out, blocks=3, late=True, text=None, listed=None):
        counter = torch.zeros(1, dtype=torch.int32)

        def start(_function, grid, arguments, constants, *_, **_options):
            run_kernel(text or codegen.source(spec, "hopper"), "hopper", *grid, arguments, constants, late)

        monkeypatch.setattr(hopper, "describe", Descriptor)
        monkeypatch.setattr(hopper, "machine_of", lambda _: dataclasses.replace(MACHINES["sm_90"], processors=blocks))
        monkeypatch.setattr(hopper, "counters", lambda *_: counter)
        monkeypatch.setattr(hopper, "start", start)
        module = type("Module", (), {"hopper": None})
        hopper.launch(module, spec.group, choice, q, k, v, given, out, spec.tile is not None, listed)
        assert counter.item() == 0

    return run
