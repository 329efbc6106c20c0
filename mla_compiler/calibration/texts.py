"""The model and the windows of text, from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError

CHARACTERS = 12
"""Of a token, at most, in text that is read for a window: the tokenizer does not see the whole of a long text."""


@dataclass(frozen=True)
class Windows:
    """ids [T] each: what is calibrated on, and what is held out."""

    calibrating: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...]


def load(path: Path, device: str) -> tuple[Any, Any]:
    """The model and its tokenizer. Raises OptionError where there is none."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise OptionError("transformers, which reads models, is not installed", 'pip install "mla-compiler[demo]"') from error
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    home = path.parent if gguf else path
    if not path.exists():
        raise OptionError(f"there is no model {path}", "give a folder that transformers reads, or a .gguf file")
    try:
        model = AutoModelForCausalLM.from_pretrained(home, dtype=dtype, **gguf)
        return model.to(device).eval(), AutoTokenizer.from_pretrained(home, **gguf)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise OptionError(f"transformers cannot read the model {path}: {error}", "try it with AutoModelForCausalLM") from error


def windows(tokenizer: Any, texts: Sequence[Path], tokens: int, number: int) -> Windows:
    """2 * number windows of each text, each from the middle of its part on: one to calibrate on, one to hold out, and so on.

    Each begins as the tokenizer begins any text. Raises OptionError where a text is too short, or cannot be read.
    """
    found: list[Tensor] = []
    for path in texts:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise OptionError(f"the text {path} cannot be read: {error}", "give files of plain text") from error
        for part in range(2 * number):
            start, stop = ((len(text) * at) // (4 * number) for at in (2 * part + 1, 2 * part + 3))
            ids = tokenizer(text[start:min(stop, start + CHARACTERS * tokens)]).input_ids[:tokens]
            if len(ids) < tokens:
                raise OptionError(f"{path} is too short: a window of {tokens} tokens finds {len(ids)}, of {2 * number} windows",
                                  "give a longer text, a smaller --tokens or fewer --windows")
            found.append(torch.tensor(ids))
    return Windows(tuple(found[::2]), tuple(found[1::2]))
