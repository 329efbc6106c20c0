"""Inline PTX over whole tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

_NUMBER = re.compile(r"0x([0-9A-F]+)|(-?\d+)$")


def ptx(text: str, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The instructions of an inline text over whole tensors; $0 is the output, then inputs. A register is its bits."""
    registers = {f"${1 + at}": x.as_subclass(torch.Tensor) for at, x in enumerate(inputs)}
    for line in re.split(r"[;\n]", text.strip("{} \n")):
        name, *rest = line.split(maxsplit=1)[:2] if line.strip(" {}") else [""]
        if not rest or name.startswith("."):
            continue
        target, *sources = (part.strip() for part in rest[0].split(","))
        registers[target] = _INSTRUCTIONS[name](*(_value(source, registers) for source in sources))
    return registers["$0"]


def _value(text: str, registers: dict[str, torch.Tensor]) -> Any:
    found = _NUMBER.match(text)
    if not found:
        return registers[text]
    number = int(found[1], 16) if found[1] else int(found[2])
    return torch.tensor(number - (1 << 32) if number >= 1 << 31 else number, dtype=torch.int32)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def floats(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.float32) if x.dtype == torch.int32 else x


def _select(a: torch.Tensor, m: torch.Tensor, c: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    assert int(table) == 0xB8
    return (bits(a) & ~m) | (bits(c) & m)


def _packed(high: torch.Tensor, low: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([low, high], -1).to(dtype).view(torch.int32).squeeze(-1)


_INSTRUCTIONS = {
    "ex2.approx.ftz.f32": lambda x: torch.where(torch.exp2(x) < 2.0**-126, 0.0, torch.exp2(x)),
    "mov.b32": lambda x: x,
    "shr.s32": lambda x, y: bits(x) >> y,
    "lop3.b32": _select,
    "cvt.rn.bf16x2.f32": lambda x, y: _packed(x, y, torch.bfloat16),
    "cvt.rn.f16x2.f32": lambda x, y: _packed(x, y, torch.float16),
}
