"""SDPA one head at a time is SDPA."""

import pytest
import torch
import torch.nn.functional as F

from mla_compiler.bench.one_head import OneHeadAtATime
from mla_compiler.bench.work import Work, random_llama

CALLS = {
    "grouped, causal": (4, 2, {"is_causal": True, "enable_gqa": True}),
    "grouped, scaled": (6, 2, {"scale": 0.3, "enable_gqa": True}),
    "one mask for all heads": (4, 4, {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()}),
    "a mask of each head": (4, 4, {"attn_mask": torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator())}),
    "a mask of each sequence": (4, 2, {"attn_mask": torch.ones(2, 1, 5, 5, dtype=torch.bool).tril(), "enable_gqa": True}),
}


@pytest.mark.parametrize("name", CALLS)
def test_equal_to_the_plain_call(name):
    heads, kv_heads, given = CALLS[name]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 5, 8, dtype=torch.float64) for n in (heads, kv_heads, kv_heads))
    plain = F.scaled_dot_product_attention(q, k, v, **given)
    with OneHeadAtATime():
        found = F.scaled_dot_product_attention(q, k, v, **given)
    torch.testing.assert_close(found, plain, rtol=1e-13, atol=1e-14)


def test_each_head_is_asked_alone_and_other_functions_are_left(monkeypatch):
    seen, plain = [], F.scaled_dot_product_attention
    q = torch.randn(1, 4, 3, 8)

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is plain:
                seen.append((args[0].shape[1], args[1].shape[1]))
            return func(*args, **(kwargs or {}))

    with Watch(), OneHeadAtATime():
        F.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True)
        assert torch.equal(torch.add(q, q), 2 * q)
    assert seen == [(1, 1)] * 4


def test_a_model_gives_the_same_logits():
    from mla_compiler.bench.cases import TINY, Case

    for case in (Case("prefill", 1, 24), Case("decode", 2, 24, 40)):
        work = Work.of(random_llama(TINY, "cpu", torch.float64), case)
        with torch.no_grad():
            plain = work.step(work.model)
            work.rewind()
            with OneHeadAtATime():
                found = work.step(work.model)
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
