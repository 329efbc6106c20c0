"""`python -m mla_compiler.bench.probe`: compiles a Llama of many narrow layers once and prints, as JSON, what that took.

    {"compile_s", "passes_s", "fused", "left", "fx_hits", "fx_misses", "aot_hits", "aot_misses", "greedy"}

Two runs with one TORCHINDUCTOR_CACHE_DIR show whether the second process finds what the first compiled.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch

from .cases import Case
from .work import Work, random_llama


def probe(layers: int, backend: str, case: Case) -> dict[str, Any]:
    """Compile one step and say what it took: seconds of the first call less those of the second, and cache counters."""
    from torch._dynamo.utils import counters

    import mla_compiler

    shape = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers,
             "num_attention_heads": 4, "num_key_value_heads": 2}
    work = Work.of(random_llama(shape, "cpu", torch.float32), case)
    forward = torch.compile(work.model, backend=backend, dynamic=False)
    cold, tokens = _seconds(work, forward)
    warm, _ = _seconds(work, forward)
    reports = mla_compiler.reports()
    inductor, aot = counters["inductor"], counters["aot_autograd"]
    return {
        "compile_s": cold - warm,
        "passes_s": sum(report.meta.get("passes_s", 0.0) for report in reports),
        "fused": sum(len(report.fused) for report in reports),
        "left": sum(len(report.left) for report in reports),
        "fx_hits": inductor["fxgraph_cache_hit"], "fx_misses": inductor["fxgraph_cache_miss"],
        "aot_hits": aot["autograd_cache_hit"], "aot_misses": aot["autograd_cache_miss"],
        "greedy": tokens,
    }


def _seconds(work: Work, forward: Any) -> tuple[float, list[int]]:
    work.rewind()
    start = time.perf_counter()
    with torch.no_grad():
        tokens = work.step(forward).argmax(-1).tolist()
    return time.perf_counter() - start, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--backend", default="flashmla")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--cache", type=int, default=0, help="length of a static cache; 0: a prefill")
    given = parser.parse_args()
    json.dump(probe(given.layers, given.backend, Case("probe", 1, given.context, given.cache)), sys.stdout)


if __name__ == "__main__":
    main()
