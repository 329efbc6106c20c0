"""A pass key hidden in a long text, and whether a model finds it under some policies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mla_compiler.calibration.subject import Policies, Subject


def hidden(tokenizer: Any, text: Tensor, seed: int) -> tuple[Tensor, int]:
    """A prompt as long as the text, which hides five digits and asks for them and ends with them; how many tokens they are."""
    chance = random.Random(seed)
    key = "".join(chance.choice("0123456789") for _ in range(5))
    chat = "<|im_start|>" in tokenizer.get_vocab()
    asking, answering = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n") if chat else ("", "\n")
    parts = [tokenizer(part, add_special_tokens=False).input_ids for part in (
        f"{asking}There is a pass key hidden in the text. Find it and remember it.\n\n",
        f"\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n",
        f"\n\nWhat is the pass key?{answering}The pass key is ", key)]
    before, need, question, answer = parts
    room = len(text) - sum(map(len, parts))
    at = chance.randrange(1, room)
    own = text.tolist()
    ids = own[:1] + before + own[1:at] + need + own[at:room] + question + answer
    return torch.tensor(ids, device=text.device), len(answer)


def prompts(tokenizer: Any, texts: Sequence[Tensor], number: int) -> list[tuple[Tensor, int]]:
    """So many, in the texts by turns, each with a key and a place of its own."""
    return [hidden(tokenizer, texts[seed % len(texts)], seed) for seed in range(number)]


def found(subject: Subject, prompts: Sequence[tuple[Tensor, int]], policies: Policies) -> str:
    """`3/4`: how many keys had each of their tokens as the likeliest."""
    right = sum(bool((subject.run(ids, policies, last=size).top == ids[-size:]).all()) for ids, size in prompts)
    return f"{right}/{len(prompts)}" if prompts else ""
