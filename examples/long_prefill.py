"""One long prompt through a Llama: 32768 tokens on a GPU, fewer on a CPU; time and peak memory, eager and compiled.

    python examples/long_prefill.py [--device cpu] [--length 32768] [--layers 2] [--backends eager,inductor,flashmla]

Under torch.compile transformers always writes the [T, T] mask down: a gigabyte at 32k, and F.sdpa loses its fast path.
flashmla proves that the mask says no more than j <= i, and neither builds nor reads it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import _models
import torch

import mla_compiler


def shape(on_gpu: bool, layers: int) -> dict[str, int]:
    """Llama-8B's layers on a GPU, SmolLM2's on a CPU."""
    wide = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    narrow = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    return {"vocab_size": 32000, "num_hidden_layers": layers, "max_position_embeddings": 131072, **(wide if on_gpu else narrow)}


def run(forward: Callable[..., Any], ids: torch.Tensor, times: int = 2) -> tuple[torch.Tensor, str]:
    """Logits of the last position, and the time and memory of the last of the calls."""
    on_gpu = ids.is_cuda
    for _ in range(times):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        logits = forward(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        if on_gpu:
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
    memory = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if on_gpu else ""
    return logits, f"{1e3 * spent:9.1f} ms, {ids.shape[1] / spent:9.0f} tokens/s{memory}"


def main() -> int:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=_models.default_device())
    parser.add_argument("--length", type=int, default=32768 if on_gpu else 4096)
    parser.add_argument("--layers", type=int, default=8 if on_gpu else 2)
    parser.add_argument("--backends", type=lambda text: text.split(","), default=["eager", "inductor", "flashmla"])
    given = parser.parse_args()
    dtype = torch.float32 if given.device == "cpu" else torch.bfloat16
    model = _models.random_llama(given.device, dtype, **shape(given.device != "cpu", given.layers))
    ids = torch.randint(32000, (1, given.length), device=given.device)
    logits = {}
    with torch.inference_mode():
        for backend in given.backends:
            torch.compiler.reset()
            forward = model if backend == "eager" else torch.compile(model, backend=backend)
            logits[backend], facts = run(forward, ids)
            print(f"{backend:9} {given.length} tokens: {facts}", flush=True)
        truth, _ = run(_models.exact(model), ids, times=1)
    print(*mla_compiler.reports(), sep="\n")
    return _models.judge(logits[given.backends[-1]], logits["eager"], truth)


if __name__ == "__main__":
    sys.exit(main())
