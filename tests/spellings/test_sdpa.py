"""F.scaled_dot_product_attention with each of its arguments, and masks of every shape it broadcasts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.harness import Float64, assert_within_twice, compiled, watching

B, H, G, T, S, D = 2, 4, 2, 6, 9, 8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(fn: Callable[..., Tensor], *args: Tensor, left: Counter[str] | None = None) -> None:
    with watching() as seen:
        found = compiled(fn)(*args)
        eager = fn(*args)
        with Float64():
            truth = fn(*(a.double() if a.is_floating_point() else a for a in args))
    assert_within_twice([found], [eager], [truth])
    seen.assert_each_graph(1, left or Counter())


def qkv(keys: int = S, kv_heads: int = H, value_width: int = D) -> tuple[Tensor, Tensor, Tensor]:
    return normal(B, H, T, D), normal(B, kv_heads, keys, D, seed=1), normal(B, kv_heads, keys, value_width, seed=2)


def visible(*shape: int) -> Tensor:
    """A bool mask with no fully masked row."""
    mask = normal(*shape, seed=3) > 0
    mask[..., 0] = True
    return mask


ARGUMENTS = {
    "nothing": {}, "causal": {"is_causal": True}, "scale": {"scale": 0.3}, "scale_causal": {"scale": 0.3, "is_causal": True},
    "dropout_0": {"dropout_p": 0.0},
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("keys", [T, S])
def test_arguments(name: str, keys: int) -> None:
    """is_causal with unequal lengths is aligned to the top left."""
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **ARGUMENTS[name]), *qkv(keys))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_grouped_heads(name: str) -> None:
    fn = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **ARGUMENTS[name])  # noqa: E731
    check(fn, *qkv(kv_heads=G))


@pytest.mark.parametrize("shape", [(T, S), (1, S), (B, 1, T, S), (B, 1, 1, S), (1, H, T, S), (B, H, T, S), (1, 1, T, 1)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_given_mask(shape: tuple[int, ...], kind: str) -> None:
    """The mask is an input: nothing to raise, read as a table."""
    mask = visible(*shape) if kind == "bool" else normal(*shape, seed=3)
    check(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), *qkv(), mask)


def test_a_given_mask_of_infinities() -> None:
    mask = torch.zeros(B, 1, T, S).masked_fill(~visible(B, 1, T, S), float("-inf"))
    check(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), *qkv(), mask)


def test_values_of_another_width() -> None:
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), *qkv(value_width=12))


def test_cross_attention_with_padding() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, (torch.arange(S) < lengths[:, None])[:, None, None])

    check(fn, *qkv(), torch.tensor([4, 9]))


def test_strided_operands() -> None:
    """One projection, split: q, k and v are views of it."""
    def fn(x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (H, D)).transpose(1, 2) for part in x.chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    check(fn, normal(B, T, 3 * H * D))


@pytest.mark.parametrize("shape", [(T, D), (B, 2, H, T, D)])
def test_other_ranks_are_left(shape: tuple[int, ...]) -> None:
    fn = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    check(fn, *(normal(*shape, seed=s) for s in range(3)), left=Counter(RANK=1))


def test_two_attentions_of_one_mask() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.arange(S) <= torch.arange(T)[:, None] + 3
        return F.scaled_dot_product_attention(F.scaled_dot_product_attention(q, k, v, mask), k, v, mask)

    with watching() as seen:
        found = compiled(fn)(*qkv())
        truth = fn(*(x.double() for x in qkv()))
    assert_within_twice([found], [fn(*qkv())], [truth])
    seen.assert_each_graph(2, Counter())
