"""Reports to show, as a compilation would leave them."""

from mla_compiler.ir import Site
from mla_compiler.report import Report

LAYER = Site(
    0, "attend", source="transformers/models/llama/modeling_llama.py:248", layer="model.layers.0.self_attn", status="fused",
    predicate="(j <= i) & M0[b, j]", hull="0 <= j < i + 1", score="0.125*s", group=3, dtype="float32", device="cpu",
    shape="q [1, 9, 64, 64], k [1, 3, 64, 64], v [1, 3, 64, 64]", kernel="cpu", config="hull",
    spec="score: 0.125*s; hi: i + 1; residue: M0[b, j]; group: 3",
    flops_before=2 * 10**9, flops_after=10**9, bytes_before=4 * 10**6, bytes_after=2 * 10**6,
)
LEFT = Site(
    30, "softmax_3", source="model.py:41", layer="head", reason="dropout is active; found 0.1 <&> [bold]", dtype="float32",
    shape="q [1, 9, 64, 64], k [1, 3, 64, 64], v [1, 3, 64, 32]", device="cpu",
)


def layers(count: int) -> tuple[Site, ...]:
    from dataclasses import replace

    return tuple(replace(LAYER, index=k, name=f"attend_{k}", layer=f"model.layers.{k}.self_attn") for k in range(count))


def mixed() -> Report:
    return Report((*layers(30), LEFT), {"graphs": 1, "graph_breaks": 0, "passes_s": 0.31, "compile_s": 9.3, "device": "cpu"})
