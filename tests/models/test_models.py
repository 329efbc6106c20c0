"""Every architecture in every scenario: all attention seen, fused or rightly left; values; graphs settled."""

from __future__ import annotations

import pytest
import torch

from tests.harness import Float64, Steps, assert_within_twice, compiled, watching
from tests.models import generate, latents
from tests.models.architectures import ARCHITECTURES, model
from tests.models.expected import left, needs_newer
from tests.models.scenarios import scenarios

CASES = [(a.name, s) for a in ARCHITECTURES.values() for s in scenarios(a) if not needs_newer(a.name, s)]
GENERATED = ("llama", "gemma3", "gpt_oss", "bloom", "falcon_rope", "t5", "whisper", *latents.NAMES)
"""Decoders, plain, with windows, sinks, ALiBi, heads stored otherwise, encoders, latents: `generate` does nothing else with the
rest, which `test_forward` decodes step by step."""
GENERATE = [(name, cache) for name in GENERATED if name in ARCHITECTURES for cache in ARCHITECTURES[name].caches
            if not needs_newer(name, cache)]


@pytest.mark.parametrize(("name", "scenario_name"), CASES)
def test_forward(name: str, scenario_name: str) -> None:
    architecture = ARCHITECTURES[name]
    scenario = scenarios(architecture)[scenario_name]
    subject, exact = model(name), model(name, torch.float64)
    with watching() as seen:
        forward = Steps(compiled(subject.forward))
        found = scenario.run(subject, forward)
        eager = scenario.run(subject, subject)
        with Float64():
            truth = scenario.run(exact, exact)
    seen.assert_each_graph(scenario.sites(architecture), left(name, scenario_name))
    if name in latents.NAMES:
        latents.assert_by_cost(seen.sites, name)
    assert_within_twice(found, eager, truth)
    forward.assert_settled(scenario.settled)


@pytest.mark.parametrize(("name", "cache"), GENERATE)
def test_generate(name: str, cache: str) -> None:
    seen = generate.check(name, cache)
    if name in latents.NAMES:
        latents.assert_by_cost(seen.sites, name)
