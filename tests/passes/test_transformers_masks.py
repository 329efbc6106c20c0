"""The masks transformers writes, read back to the sentence they mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from mla_compiler import expr as E
from mla_compiler.passes.denote import Evaluator
from mla_compiler.passes.raise_mask import raise_mask, split_mask

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 32, "max_position_embeddings": 64,
}
LENGTH = 12
IDS = torch.arange(2 * LENGTH).reshape(2, LENGTH) % 32
LEFT_PADDED = (torch.arange(LENGTH) >= torch.tensor([[3], [0]])).long()
PACKED = torch.cat([torch.arange(5), torch.arange(LENGTH - 5)]).expand(2, LENGTH)


Hull = tuple[str, str, str]


def masks_of(run: Callable[[Callable], object], model: torch.nn.Module, dynamic: bool | None = None) -> list[Hull]:
    """(lo, hi, residue) of each attention that has a mask, tables named by their type alone."""
    found: list[Hull] = []

    def capture(module: fx.GraphModule, _: list[Tensor]) -> Callable:
        found.extend(_raised(module.graph))
        return module.forward
    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=capture, decompositions=select_decomp_table())
    with torch.no_grad():
        run(torch.compile(model, backend=backend, dynamic=dynamic))
    return found


def _raised(graph: fx.Graph) -> list[Hull]:
    evaluator = Evaluator(graph)
    sites = [n for n in graph.nodes if "scaled_dot_product" in str(n.target)]
    result = []
    for mask, q, k in ((n.kwargs.get("attn_mask"), *n.args[:2]) for n in sites):
        if mask is None:
            continue
        (batch, heads, rows, _), keys = evaluator.size(q), evaluator.size(k)[2]
        evaluator.ranges = {E.b: batch, E.h: heads, E.i: rows, E.j: keys}
        predicate, bias = split_mask(evaluator.read(mask, (E.b, E.h, E.i, E.j)), mask.meta["val"].dtype)
        raised = raise_mask(predicate, evaluator.ranges, keys)
        assert bias == 0
        result.append(tuple(_text(e) for e in (raised.lo, raised.hi, raised.residue)))
    return result


def _text(expr: sympy.Basic) -> str:
    """Tables are named by graph nodes, which differ between versions: T0, T1, ... in order of appearance instead."""
    names = {load.name for load in E.loads(expr)}
    renamed = {E.table(name): E.table(f"{name[0]}{k}") for k, name in enumerate(sorted(names))}
    return E.to_text(expr.xreplace(renamed))


def llama(**config) -> torch.nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **config)).eval()


PREFILLS = {
    "causal": ({}, ("0", "i + 1", "True")),
    "left padded": ({"attention_mask": LEFT_PADDED}, ("0", "i + 1", "T0[b, j] != 0")),
    "packed": ({"position_ids": PACKED}, ("0", "i + 1", "T0[b, i] == T0[b, j]")),
}


@pytest.mark.parametrize(("name", "dynamic"), [("causal", False), ("left padded", False), ("packed", False), ("packed", True)])
def test_llama_prefill(name: str, dynamic: bool) -> None:
    inputs, expected = PREFILLS[name]
    assert masks_of(lambda model: model(IDS, use_cache=False, **inputs), llama(), dynamic) == [expected]


def test_static_cache_decode_sees_the_live_length() -> None:
    model = llama()
    cache = transformers.StaticCache(model.config, max_cache_len=32)
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    found = masks_of(lambda compiled: compiled(IDS[:, :1], past_key_values=cache), model)
    assert found == [("0", "T0[0] + 1", "True")]


def test_sliding_window() -> None:
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**SHAPE, sliding_window=5)).eval()
    assert masks_of(lambda compiled: compiled(IDS, use_cache=False), model) == [("i - 4", "i + 1", "True")]


def test_chunked() -> None:
    from transformers.models.llama4 import Llama4ForCausalLM, Llama4TextConfig
    config = Llama4TextConfig(
        **SHAPE, intermediate_size_mlp=32, head_dim=16, num_local_experts=1, attention_chunk_size=4,
        layer_types=["chunked_attention"], no_rope_layers=[1],
    )
    found = masks_of(lambda compiled: compiled(IDS, use_cache=False), Llama4ForCausalLM(config).eval())
    assert [text.replace("((i//4))", "(i//4)") for text in found[0]] == ["4*(i//4)", "i + 1", "True"]


def test_bidirectional_padding() -> None:
    config = transformers.BertConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"})
    model = transformers.BertModel(config).eval()
    found = masks_of(lambda compiled: compiled(IDS, attention_mask=LEFT_PADDED), model)
    assert found == [("0", "inf", "T0[b, j] != 0")]
