"""The architectures on a real GPU, in bfloat16, our kernels inside; then Inductor's own code around them.

    rms(compiled - truth) <= 2 rms(eager - truth)       truth: the same rounded weights, everything in float64
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from transformers import PreTrainedModel, StaticCache

from tests.harness import BACKEND, Float64, Steps, compiled, root_mean_square, watching
from tests.models import generate
from tests.models.architectures import ARCHITECTURES, model, widened
from tests.models.expected import left, needs_newer
from tests.models.scenarios import MAX_LEN, scenarios, tokens

pytestmark = pytest.mark.gpu
CASES = [(a.name, s) for a in ARCHITECTURES.values() for s in scenarios(a) if not needs_newer(a.name, s)]
GENERATE = [(a.name, cache) for a in ARCHITECTURES.values() for cache in a.caches if not needs_newer(a.name, cache)]
MODES = ["default", "reduce-overhead"]


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda"):
        yield


@pytest.mark.parametrize(("name", "scenario_name"), CASES)
def test_forward(name: str, scenario_name: str) -> None:
    architecture = ARCHITECTURES[name]
    scenario = scenarios(architecture)[scenario_name]
    subject = model(name, torch.bfloat16)
    with watching() as seen:
        forward = Steps(compiled(subject.forward))
        found = scenario.run(subject, forward)
        eager = scenario.run(subject, subject)
        exact = widened(copy.deepcopy(subject))
        with Float64():
            truth = scenario.run(exact, exact)
    seen.assert_each_graph(scenario.sites(architecture), left(name, scenario_name))
    assert root_mean_square(found, truth) <= 2 * root_mean_square(eager, truth)
    forward.assert_settled(scenario.settled)


@pytest.mark.parametrize(("name", "cache"), GENERATE)
def test_generate(name: str, cache: str) -> None:
    generate.check(name, cache)


def decoded(subject: PreTrainedModel, mode: str | None = None) -> tuple[list[torch.Tensor], list[str], int]:
    """Logits of four steps at a static cache, the code that was generated if `mode` compiles, numbers in one cache."""
    cache = StaticCache(config=subject.config, max_cache_len=MAX_LEN)
    subject(input_ids=tokens(), past_key_values=cache)

    def step(ids: torch.Tensor) -> torch.Tensor:
        return subject(input_ids=ids, past_key_values=cache).logits

    forward = step if mode is None else torch.compile(step, backend=BACKEND, mode=mode)
    fed = tokens(4, seed=4)
    first, code = run_and_get_code(forward, fed[:, :1])
    logits = [first.clone(), *(forward(fed[:, [at]]).clone() for at in range(1, 4))]
    return logits, code, min(layer.keys.numel() for layer in cache.layers if layer.keys.shape[-2] == MAX_LEN)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "qwen3", "gemma2"])
def test_with_generated_code(name: str, mode: str) -> None:
    """Nothing falls back to ATen; a static cache is read where it lies; CUDA graphs replay as the sequence grows."""
    subject = model(name)
    with watching():
        found, code, size = decoded(subject, mode)
        eager, _, _ = decoded(subject)
        with Float64():
            truth, _, _ = decoded(widened(copy.deepcopy(subject)))
    assert root_mean_square(found, truth) <= 2 * root_mean_square(eager, truth)
    shapes = re.findall(r"empty_strided_cuda\(\(([\d, ]+)\)", "\n".join(code))
    assert shapes and all(math.prod(int(d) for d in shape.split(",") if d.strip()) < size for shape in shapes)
