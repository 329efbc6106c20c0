"""The compile cache is used, and where it is hit the report is read back; on the way our graphs are logged."""

import json

import pytest

from .test_imports import fresh

CODE = """
import json, torch
import mla_compiler

def attention(q, k, v, mask):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

torch.manual_seed(0)
q, k, v = (torch.randn(2, 3, 33, 16) for _ in range(3))
mask = torch.rand(2, 1, 1, 33) > 0.3
with torch.no_grad():
    compiled = torch.compile(attention, backend=mla_compiler.flashmla, options=OPTIONS)
    error = (compiled(q, k, v, mask) - attention(q, k, v, mask)).abs().max().item()
(report,) = mla_compiler.reports()
hits = torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"] + \\
    torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"]
print(json.dumps({"report": report.json(), "error": error, "hits": hits}))
"""


def run(cache, options="None", **variables):
    """What the process found, and what it logged."""
    told = fresh(CODE.replace("OPTIONS", options), TORCHINDUCTOR_CACHE_DIR=str(cache), **variables)
    line = next(line for line in told.splitlines() if line.startswith('{"report"'))
    found = json.loads(line)
    return json.loads(found["report"]), found, told


@pytest.mark.slow
def test_a_report_survives_a_hit_in_the_compile_cache(tmp_path):
    first, cold, told = run(tmp_path, TORCH_LOGS="+mla_compiler")
    assert "graph before" in told
    assert "torch.ops.flashmla.attend" in told.partition("graph after")[2]
    again, warm, _ = run(tmp_path)
    assert (cold["hits"], warm["hits"] > 0) == (0, True)
    assert again["sites"] == first["sites"]
    assert [site["status"] for site in again["sites"]] == ["fused"]
    assert again["meta"]["cached"] is True
    assert cold["error"] == warm["error"] < 1e-5
    other, changed, _ = run(tmp_path, '{"flashmla.enable": False}')
    assert [site["status"] for site in other["sites"]] == ["left"]
    assert changed["error"] < 1e-5
