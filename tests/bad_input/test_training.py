"""Gradients and dropout: attention is left as it was, says so, and every gradient is right."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.harness import assert_within_twice, compiled, reasons, watching
from tests.models.architectures import model
from tests.models.scenarios import tokens


def qkv(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 6, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def called(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def spelled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(later, float("-inf")).softmax(-1) @ v


def gradients(fn: object, inputs: list[Tensor]) -> list[Tensor]:
    out = fn(*inputs)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), inputs)]


@pytest.mark.parametrize("fn", [called, spelled])
def test_gradients_are_right(fn: object) -> None:
    with watching() as seen, torch.enable_grad():
        found = gradients(compiled(fn), qkv())
    eager, truth = gradients(fn, qkv()), gradients(fn, qkv(torch.float64))
    for one in zip(found, eager, truth, strict=True):
        assert_within_twice(*([x] for x in one))
    assert reasons(seen.sites) == Counter(GRADIENT=1)


def test_a_model_in_training_learns_what_eager_learns() -> None:
    def step(compile_it: bool, dtype: torch.dtype) -> list[Tensor]:
        subject = model("llama", dtype).train()
        forward = compiled(subject.forward) if compile_it else subject.forward
        forward(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        return [p.grad for p in subject.parameters()]

    with watching() as seen, torch.enable_grad():
        found = step(True, torch.float32)
    assert reasons(seen.sites) == Counter(GRADIENT=2)
    assert_within_twice(found, step(False, torch.float32), step(False, torch.float64))


def test_the_same_function_is_fused_without_gradients() -> None:
    with watching() as seen:
        compiled(called)(*(x.detach() for x in qkv()))
    assert [site.status for site in seen.sites] == ["fused"]


def test_parameters_that_want_gradients_are_no_matter_under_no_grad() -> None:
    with watching() as seen:
        compiled(called)(*qkv())
    assert [site.status for site in seen.sites] == ["fused"]


def dropout_called(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)


def dropout_spelled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1), 0.5, training=True) @ v


@pytest.mark.parametrize("fn", [dropout_called, dropout_spelled])
def test_dropout_is_still_done(fn: object) -> None:
    """With v = 1 each output is the sum of the weights kept, times two: 1 only where nothing is dropped."""
    q, k, _ = (x.detach() for x in qkv())
    with watching() as seen:
        kept = compiled(fn)(q, k, torch.ones_like(k))
    assert reasons(seen.sites) == Counter(DROPOUT=1)
    assert (kept - 1).abs().max() > 0.1
    assert 0.7 < kept.mean() < 1.3
