"""What pages in fewer bits cost: perplexity of a trained model over a PooledCache of each format, and the bytes of a token.

    python examples/pool_accuracy.py [TEXT...] [--model smollm2|gemma3] [--length 2048] [--windows 4] [--formats fp8,int8,...]

Of each TEXT (a file, plain or .gz; a folder: its .py, .rst, .md and .txt; none: the reference manual in Python's help())
windows of `length` tokens are read from a quarter of it on. The first token goes in alone and the others in steps: a step into
a cache that is not empty reads what it has just written, so that every key and value of every query comes out of the pages, as
when tokens are decoded one by one.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import _models
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mla_compiler import KVPool, PooledCache
from mla_compiler.pool import Geometry

STEP = 512
"""Tokens of a step; logits [STEP, vocabulary] are the largest tensor."""
SUFFIXES = (".py", ".rst", ".md", ".txt")
MODELS = {"smollm2": _models.smollm2, "gemma3": _models.gemma3}


def read(path: Path) -> str:
    """A file's text, or that of all files of a folder in the order of their names."""
    if path.is_dir():
        return "\n\n".join(read(file) for file in sorted(path.rglob("*")) if file.suffix in SUFFIXES)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode(errors="replace")


def reference_manual() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def windows(text: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> list[Tensor]:
    """ids [1, length], one after the other from a quarter of the text on, each behind what the tokenizer begins with."""
    begin = tokenizer("").input_ids
    part = text[len(text) // 4 :][: 16 * length * count]
    ids, size = tokenizer(part).input_ids[len(begin) :], length - len(begin)
    if len(ids) < size * count:
        raise SystemExit(f"a text has {len(ids)} tokens from its quarter on; {size * count} are wanted")
    return [torch.tensor([begin + ids[at * size : (at + 1) * size]]) for at in range(count)]


def pool_like(model: PreTrainedModel, format: str, length: int) -> KVPool:
    """Of one layer a page, so that it serves layers of every window, for one sequence of `length` tokens."""
    config = model.config
    pages = -(-length // 64) * config.num_hidden_layers
    heads, dim = config.num_key_value_heads, config.head_dim
    return KVPool(1, heads, dim, dtype=model.dtype, device=model.device, tokens=64 * pages, format=format)


def steps(ids: Tensor) -> Iterator[tuple[int, int]]:
    """0 to 1, and then STEP at a time."""
    yield 0, 1
    for start in range(1, ids.shape[1], STEP):
        yield start, min(start + STEP, ids.shape[1])


@torch.inference_mode()
def surprise(model: PreTrainedModel, ids: Tensor, pool: KVPool) -> tuple[float, int]:
    """Nats of the tokens after the first, summed, and how many of them were the likeliest."""
    cache, nats, right = PooledCache(model.config, pool=pool), 0.0, 0
    for start, stop in steps(ids):
        logits = model(ids[:, start:stop], past_key_values=cache).logits[0].float()
        wanted = ids[0, start + 1 : stop + 1]
        logits = logits[: len(wanted)]
        nats += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        right += int((logits.argmax(-1) == wanted).sum())
    cache.release()
    return nats, right


def token_bytes(model: PreTrainedModel, format: str) -> int:
    """Bytes of one token in all layers, of a model that runs in bfloat16."""
    config = model.config
    dims = config.num_key_value_heads, config.head_dim, config.head_dim
    return Geometry(config.num_hidden_layers, *dims, torch.bfloat16, torch.device("cpu"), format=format).token_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--device", default=_models.default_device())
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=4, help="of each text")
    parser.add_argument("--formats", type=lambda text: text.split(","), default=["fp8", "int8", "k8v4", "k6v4", "int4"])
    given = parser.parse_args()
    model, tokenizer = MODELS[given.model](given.device)
    contents = {path.name: read(path) for path in given.texts} or {"manual": reference_manual()}
    texts = {name: windows(text, tokenizer, given.length, given.windows) for name, text in contents.items()}
    shown = Table(title=f"{given.model}, {given.windows} windows of {given.length} tokens, {model.dtype} on {given.device}")
    for name in ("pages", "bytes a token", "of bfloat16", *(f"{name}: perplexity, top-1" for name in texts)):
        shown.add_column(name)
    exact: dict[str, float] = {}
    for format in ("plain", *given.formats):
        pool, cells = pool_like(model, format, given.length), []
        for name, ids in texts.items():
            found = [surprise(model, one.to(given.device), pool) for one in ids]
            count = len(ids) * (given.length - 1)
            nats, right = sum(nats for nats, _ in found) / count, sum(right for _, right in found) / count
            loss = math.expm1(nats - exact.setdefault(name, nats))
            cells.append(f"{math.exp(nats):.4g} ({loss:+.2%}), {right:.2%}")
            print(f"{format} {name}: {cells[-1]}", file=sys.stderr, flush=True)
        size = token_bytes(model, format)
        shown.add_row(format, str(size), f"1/{token_bytes(model, 'plain') / size:.2f}", *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
