"""Inline PTX over whole tensors."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

import torch

_NUMBER = re.compile(r"0f([0-9A-F]{8})|0x([0-9A-F]+)|(-?\d+)$")


def ptx(text: str, inputs: Sequence[torch.Tensor], outputs: int = 1) -> list[torch.Tensor]:
    """The instructions of an inline text over whole tensors; $0 .. are outputs, then inputs. A register is its bits."""
    registers = {f"${outputs + at}": x.as_subclass(torch.Tensor) for at, x in enumerate(inputs)}
    beyond = ""
    for line in re.split(r"[;\n]", text.strip("{} \n")):
        if beyond:
            beyond = "" if line.strip() == f"{beyond}:" else beyond
            continue
        if line.startswith("@"):  # a branch, taken if all lanes take it; what one does that need not changes nothing
            predicate, _bra, label = line[2:].split()
            beyond = "" if registers[predicate].any() else label
            continue
        name, *rest = line.split(maxsplit=1)[:2] if line.strip(" {}") else [""]
        if not rest or name.startswith("."):
            continue
        target, *sources = (part.strip() for part in rest[0].split(","))
        registers[target] = _INSTRUCTIONS[name](*(_value(source, registers) for source in sources))
    return [registers[f"${at}"] for at in range(outputs)]


def _value(text: str, registers: dict[str, torch.Tensor]) -> Any:
    found = _NUMBER.match(text)
    if not found:
        return registers[text]
    if found[1]:
        return torch.tensor(struct.unpack(">f", bytes.fromhex(found[1]))[0])
    number = int(found[2], 16) if found[2] else int(found[3])
    return torch.tensor(number - (1 << 32) if number >= 1 << 31 else number, dtype=torch.int32)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def floats(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.float32) if x.dtype == torch.int32 else x


def _select(a: torch.Tensor, m: torch.Tensor, c: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    assert int(table) == 0xB8
    return (bits(a) & ~m) | (bits(c) & m)


def _permuted(x: torch.Tensor, y: int, selector: int) -> torch.Tensor:
    """Four bytes of the eight of x and y, as the selector's hexadecimal digits have it, the last first."""
    lots = [x >> 8 * at & 255 for at in range(4)] + [torch.tensor(y >> 8 * at & 255) for at in range(4)]
    return sum((lots[selector >> 4 * at & 7].to(torch.int32) << 8 * at for at in range(4)), torch.zeros_like(x))


def _packed(high: torch.Tensor, low: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([low, high], -1).to(dtype).view(torch.int32).squeeze(-1)


def _less(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Two numbers less two."""
    x, y = torch.broadcast_tensors(x, y)
    return (x.contiguous().view(dtype) - y.contiguous().view(dtype)).view(torch.int32)


def _from_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Two codes as two float16."""
    high, low = (((x >> shift) & 0xFF).to(torch.uint8).view(torch.float8_e4m3fn).float() for shift in (8, 0))
    return _packed(high, low, torch.float16)


_INSTRUCTIONS = {
    "cvt.u16.u32": lambda x: bits(x) & 0xFFFF,
    "cvt.rn.f16x2.e4m3x2": _from_e4m3,
    "mov.f32": lambda x: x,
    "setp.neu.f32": lambda x, y: ~(floats(x) == floats(y)),
    "setp.neu.or.f32": lambda x, y, p: ~(floats(x) == floats(y)) | p,
    "shfl.sync.idx.b32": lambda x, lane, clamp, members: x,
    "shfl.sync.bfly.b32": lambda x, lanes, clamp, members: x if int(lanes) == 0 else None,     # each with itself
    "vote.sync.any.pred": lambda p, members: p.any(),
    "ex2.approx.ftz.f32": lambda x: torch.where(torch.exp2(x) < 2.0**-126, 0.0, torch.exp2(x)),
    "lg2.approx.ftz.f32": lambda x: torch.log2(floats(x)),
    "mul.rn.f32": lambda x, y: floats(x) * floats(y),
    "mov.b32": lambda x: x,
    "shr.s32": lambda x, y: bits(x) >> y,
    "lop3.b32": _select,
    "xor.b32": lambda x, y: x ^ y,
    "and.b32": lambda x, y: x & y,
    "sub.bf16x2": lambda x, y: _less(x, y, torch.bfloat16),
    "sub.f16x2": lambda x, y: _less(x, y, torch.float16),
    "prmt.b32": lambda x, y, selector: _permuted(x, int(y), int(selector)),
    "cvt.rn.bf16x2.f32": lambda x, y: _packed(x, y, torch.bfloat16),
    "cvt.rn.f16x2.f32": lambda x, y: _packed(x, y, torch.float16),
}
