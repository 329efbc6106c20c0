"""Whole modules, as people write them: nn.MultiheadAttention, relative positions, weights that are also returned."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from tests.harness import Float64, assert_within_twice, compiled, watching

BATCH, LENGTH, WIDTH, HEADS = 2, 7, 32, 4
FUSED: Counter[str] = Counter()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(module: nn.Module, *args: Tensor, left: Counter[str] = FUSED, **kwargs: object) -> None:
    """Every tensor that the module returns is right; one attention, fused or `left`."""
    module = module.eval()
    with watching() as seen:
        found = _tensors(compiled(module)(*args, **kwargs))
        eager = _tensors(module(*args, **kwargs))
        with Float64():
            truth = _tensors(module.double()(*(a.double() if a.is_floating_point() else a for a in args), **kwargs))
    for one in zip(found, eager, truth, strict=True):
        assert_within_twice(*([x] for x in one))
    seen.assert_each_graph(1, left)


def _tensors(out: object) -> list[Tensor]:
    return [x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor)]


def multihead() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)


def test_multihead_attention() -> None:
    """nn.MultiheadAttention in eval mode, compiled, calls F.sdpa."""
    x, memory = normal(BATCH, LENGTH, WIDTH), normal(BATCH, 9, WIDTH, seed=1)
    check(multihead(), x, memory, memory, need_weights=False)


@pytest.mark.parametrize("per_head", [False, True])
def test_multihead_attention_with_weights(per_head: bool) -> None:
    x, memory = normal(BATCH, LENGTH, WIDTH), normal(BATCH, 9, WIDTH, seed=1)
    check(multihead(), x, memory, memory, need_weights=True, average_attn_weights=per_head, left=Counter(SHARED=1))


def test_multihead_attention_with_masks() -> None:
    x = normal(BATCH, LENGTH, WIDTH)
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    padded = torch.arange(LENGTH)[None] >= torch.tensor([[5], [7]])
    check(multihead(), x, x.clone(), x.clone(), need_weights=False, attn_mask=later, key_padding_mask=padded)


class SelfAttention(nn.Module):
    """nanoGPT: one projection, a buffer of ones for the causal mask; optionally gives the weights back."""

    def __init__(self, give_weights: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.ones(16, 16).tril().view(1, 1, 16, 16))
        self.dropout, self.give_weights = nn.Dropout(0.1), give_weights

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        q, k, v = (y.view(batch, length, HEADS, -1).transpose(1, 2) for y in self.qkv(x).split(width, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.seen[:, :, :length, :length] == 0, float("-inf"))
        weights = self.dropout(torch.softmax(scores, dim=-1))
        out = self.out((weights @ v).transpose(1, 2).contiguous().view(batch, length, width))
        return (out, weights) if self.give_weights else out


def test_a_mask_held_in_a_buffer() -> None:
    check(SelfAttention(), normal(BATCH, LENGTH, WIDTH))


def test_weights_given_back_stay() -> None:
    check(SelfAttention(give_weights=True), normal(BATCH, LENGTH, WIDTH), left=Counter(SHARED=1))


class Single(nn.Module):
    """One head, three dimensions, cross attention."""

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        weights = torch.bmm(x, memory.transpose(1, 2)).div(math.sqrt(x.shape[-1])).softmax(-1)
        return torch.bmm(weights, memory)


def test_one_head_in_three_dimensions() -> None:
    check(Single(), normal(BATCH, LENGTH, 16), normal(BATCH, 9, 16, seed=1))


class Unbatched(nn.Module):
    """[T, D]: matrices only."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.T / 4.0, dim=-1) @ v


def test_matrices() -> None:
    check(Unbatched(), normal(LENGTH, 16), normal(9, 16, seed=1), normal(9, 16, seed=2))


class RelativePositions(nn.Module):
    """T5: logarithmic buckets of the distance, a learned value for each bucket and head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.values = nn.Embedding(8, HEADS)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        distance = torch.arange(k.shape[2])[None, :] - torch.arange(q.shape[2])[:, None]
        near = distance.abs().clamp(max=3) + (distance > 0) * 4
        bias = self.values(near).permute(2, 0, 1)[None]
        return torch.softmax(q @ k.mT + bias, -1) @ v


def test_relative_positions() -> None:
    check(RelativePositions(), *(normal(BATCH, HEADS, n, 8, seed=n) for n in (LENGTH, 9)), normal(BATCH, HEADS, 9, 8, seed=3))


class BloomLike(nn.Module):
    """ALiBi as the first argument of baddbmm, heads merged into the batch."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        batch, heads, length, width = q.shape
        alibi = (slopes[:, None] * torch.arange(length))[None, :, None].expand(batch, heads, 1, length).reshape(-1, 1, length)
        q, k, v = (x.reshape(batch * heads, length, width) for x in (q, k, v))
        scores = alibi.baddbmm(batch1=q, batch2=k.transpose(1, 2), beta=1.0, alpha=width**-0.5)
        scores = scores.view(batch, heads, length, length)
        later = torch.arange(length)[None, :] > torch.arange(length)[:, None]
        weights = scores.masked_fill(later, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32).to(q.dtype)
        return torch.bmm(weights.view(-1, length, length), v).view(batch, heads, length, width)


def test_alibi_in_baddbmm() -> None:
    q, k, v = (normal(BATCH, HEADS, LENGTH, 8, seed=s) for s in range(3))
    check(BloomLike(), q, k, v, 0.5 ** torch.arange(1, HEADS + 1, dtype=torch.float32))


class NotAttention(nn.Module):
    """A softmax over classes between two products: nothing here is q.kT."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.softmax(x @ weight, dim=0).sum(1)


def test_what_is_no_attention_is_not_reported() -> None:
    args = normal(LENGTH, 16), normal(16, 5, seed=1)
    with watching() as seen:
        found = compiled(NotAttention())(*args)
    assert seen.sites == []
    assert_within_twice([found], [NotAttention()(*args)], [NotAttention()(*(a.double() for a in args))])
