"""The generated kernels, printed."""

import ast

import pytest

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen
from mla_compiler.lowering.held import Layout

from .attentions import CASES


@pytest.mark.parametrize("name, family", [
    ("causal", "prefill"), ("mask, summarised", "prefill"), ("live length", "decode"), ("every function", "decode"),
    ("window", "hopper"), ("live length", "decode_hopper"), ("window", "promise"), ("window", "lsh"),
])
def test_source(golden, name, family):
    golden(f"kernels/{family} {name.replace(',', '')}.txt", codegen.source(AttentionSpec.parse(CASES[name].spec), family))


def test_source_of_pages(golden):
    spec = AttentionSpec.parse(CASES["live length"].spec)
    golden("kernels/decode live length in int4 pages.txt", codegen.source(spec, "decode", Layout("int4", 64, 32)))
    golden("kernels/decode_hopper live length in pages.txt", codegen.source(spec, "decode_hopper", Layout()))
    golden("kernels/decode_hopper live length in int8 pages.txt", codegen.source(spec, "decode_hopper", Layout("int8")))
    chosen = Layout("plain", 64, chosen=True)
    golden("kernels/decode live length in chosen pages.txt", codegen.source(spec, "decode", chosen))
    golden("kernels/decode_hopper live length in chosen pages.txt", codegen.source(spec, "decode_hopper", chosen))
    golden("kernels/bounded live length.txt", codegen.source(spec, "bounded", chosen))


@pytest.mark.parametrize("policy", ["error_budget=0.01", "pages.share=0.05+threshold=0.1"])
def test_source_that_leaves_tiles_out(golden, policy):
    spec = AttentionSpec.parse(f"{CASES['causal'].spec}; sparsity: {policy}")
    golden(f"kernels/prefill causal {spec.sparsity.policy}.txt", codegen.source(spec, "prefill"))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", codegen.FAMILIES)
def test_source_is_python_that_names_its_meaning(name, family):
    spec = AttentionSpec.parse(CASES[name].spec)
    text = codegen.source(spec, family)
    module = ast.parse(text)
    assert family in [node.name for node in module.body if isinstance(node, ast.FunctionDef)]
    about = ast.get_docstring(module)
    assert about.startswith(("out[b,h,i,:]", "listed[", "scores[", "promise(", "dropped[b,h,i]"))
    assert "visible" in about
    assert text == codegen.source.__wrapped__(AttentionSpec.parse(str(spec)), family)
