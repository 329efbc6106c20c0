"""Documents packed into one row, told apart by position_ids alone: SmolLM2 scores each as if it stood alone.

    python examples/packed_documents.py [--device cpu] [--random]

transformers turns position_ids that start again into a [1, 1, T, T] mask of blocks. flashmla reads the rule out of how
the mask is made (the same document, and not later in it) and evaluates it in the kernel: the mask is never built.
--random: a small model with random weights, which needs no download.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain

import _models
import torch
from torch import Tensor, nn

import mla_compiler

DOCUMENTS = (
    "Attention weighs every earlier word by how well it fits the question that the current word asks.",
    "Water boils at a lower temperature on a mountain, since there is less air above it to hold it down.",
    "A compiler reads a program in one language and writes the same program in another.",
    "The tide rises twice a day because the Earth turns beneath two bulges of water.",
)


def pack(documents: list[list[int]], device: str) -> tuple[Tensor, Tensor]:
    """Token ids [1, T], and position_ids [1, T] that count from 0 in each document."""
    ids = torch.tensor([list(chain.from_iterable(documents))], device=device)
    positions = torch.cat([torch.arange(len(document), device=device) for document in documents])
    return ids, positions[None]


def losses(logits: Tensor, ids: Tensor, documents: list[list[int]]) -> list[float]:
    """Mean negative log-likelihood of each document's tokens after its first, in nats."""
    lengths = [len(document) for document in documents]
    pairs = zip(logits[0].split(lengths), ids[0].split(lengths), strict=True)
    return [nn.functional.cross_entropy(of_one[:-1], one[1:]).item() for of_one, one in pairs]


def load(given: argparse.Namespace) -> tuple[nn.Module, list[list[int]]]:
    """The model and the documents as tokens."""
    if not given.random:
        model, tokenizer = _models.smollm2(given.device)
        return model, [tokenizer(text).input_ids for text in DOCUMENTS]
    shape = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2}
    return _models.random_llama(given.device, **shape), [list(text.encode()) for text in DOCUMENTS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=_models.default_device())
    parser.add_argument("--backend", default="flashmla")
    parser.add_argument("--random", action="store_true")
    given = parser.parse_args()
    model, documents = load(given)
    ids, positions = pack(documents, given.device)
    packed = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    with torch.inference_mode():
        exact = _models.exact(model)
        alone = torch.cat([exact(torch.tensor([document], device=given.device)).logits for document in documents], dim=1)
        eager, ours = model(**packed).logits, torch.compile(model, backend=given.backend)(**packed).logits
    print(*mla_compiler.reports(), sep="\n")
    for text, one, other in zip(DOCUMENTS, losses(alone, ids, documents), losses(ours, ids, documents), strict=True):
        print(f"loss alone {one:.4f}, packed {other:.4f}: {text[:60]}...")
    return _models.judge(ours, eager, alone)


if __name__ == "__main__":
    sys.exit(main())
