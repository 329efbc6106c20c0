"""A plain PyTorch model that spells its attention out, with a mask nobody has a name for.

    python examples/handwritten.py [--device cpu] [--length 1024]

A reader of a dialogue sees the last 256 tokens of its own speaker, every 64th token of anybody, and nothing of the
future. The model builds that as a [B, 1, T, T] mask and adds it to q.k, as many models do; nothing in it knows of us.
"""

from __future__ import annotations

import argparse
import math
import sys

import _models
import torch
from torch import Tensor, nn

import mla_compiler


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + mask) v, in six lines of PyTorch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, C], mask [B, 1, T, T] additive."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
        weights = torch.softmax(scores, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Reader(nn.Module):
    def __init__(self, width: int = 256, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.layers = nn.ModuleList(Attention(width, heads) for _ in range(layers))

    def forward(self, tokens: Tensor, speaker: Tensor) -> Tensor:
        """tokens, speaker [B, T] -> [B, T, C]"""
        at = torch.arange(tokens.shape[1], device=tokens.device)
        behind = at[:, None] - at[None, :]
        own = (speaker[:, :, None] == speaker[:, None, :]) & (behind < 256)
        visible = (behind >= 0) & (own | (at % 64 == 0))
        mask = torch.where(visible[:, None], 0.0, float("-inf"))
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x, mask)
        return x


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=_models.default_device())
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--backend", default="flashmla")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Reader().to(given.device).eval()
    tokens = torch.randint(1000, (2, given.length), device=given.device)
    speaker = (torch.rand(2, given.length, device=given.device) < 0.02).cumsum(-1) % 3
    with torch.inference_mode():
        truth, eager = _models.exact(model)(tokens, speaker), model(tokens, speaker)
        ours = torch.compile(model, backend=given.backend)(tokens, speaker)
    print(*mla_compiler.reports(), sep="\n")
    return _models.judge(ours, eager, truth)


if __name__ == "__main__":
    sys.exit(main())
