"""A static cache is read where it lies: the generated code of a decode step makes no buffer as large as one cache.

Only the code is generated here; no compiler of C++ runs. That the check can fail, Inductor alone shows (repeat_kv).
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch._inductor.utils import get_code
from transformers import StaticCache

from tests.harness import BACKEND, watching
from tests.models.architectures import model
from tests.models.expected import needs_newer
from tests.models.scenarios import MAX_LEN, tokens

# Caches [B, H, MAX_LEN, D] of every layer grow no further than MAX_LEN; latents [B, 1, MAX_LEN, R] are never expanded to heads.
NAMES = tuple(name for name in ("llama", "qwen3", "gpt2", "bloom", "gpt_oss", "deepseek_v3", "minicpm3", "mistral4")
              if not needs_newer(name, "static"))


def decode_code(name: str, backend: str) -> tuple[str, StaticCache]:
    """Wrapper and kernels of one decode step, as text."""
    subject = model(name)
    cache = StaticCache(config=subject.config, max_cache_len=MAX_LEN)
    with watching():
        subject(input_ids=tokens(), past_key_values=cache)
        step = torch.compile(lambda ids: subject(input_ids=ids, past_key_values=cache).logits, backend=backend)
        return "\n".join(get_code(step, tokens(1))), cache


def copies(code: str, cache: StaticCache) -> list[str]:
    """Buffers of at least a cache's size, and loops over whole rows [MAX_LEN, D] of one."""
    full = [layer.keys for layer in cache.layers if layer.keys.shape[-2] == MAX_LEN]
    assert full and "call(" in code
    smallest, row = min(k.numel() for k in full), math.prod(full[0].shape[-2:])
    shapes = re.findall(r"empty_strided_\w+\(\(([\d, ]+)\)", code)
    assert shapes, "no buffer was recognised in the generated code"
    buffers = [shape for shape in shapes if math.prod(int(d) for d in shape.split(",") if d.strip()) >= smallest]
    loops = [n for n in re.findall(r"static_cast<int64_t>\((\d+)L\)", code) if int(n) and int(n) % row == 0]
    return buffers + loops


@pytest.mark.parametrize("name", NAMES)
def test_no_cache_is_copied(name: str) -> None:
    assert copies(*decode_code(name, BACKEND)) == []


def test_the_check_sees_a_copy() -> None:
    assert copies(*decode_code("llama", "inductor")) != []
