"""An operand of attention that lies in pages, as kernels and their launches see it. Imports no Triton."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..pool.formats import FORMATS
from .machine import machine_of


@dataclass(frozen=True)
class Layout:
    """What the text of a kernel says of pages: `page` tokens each, numbers in `format`; `key_group` channels of a key to a
    scale, 0 where a scale is for the whole row; `e4m3`: the machine converts fp8 itself; `chosen`: of a list of pages;
    `value_format`: that of values, if it is another."""

    format: str = "plain"
    page: int = 64
    key_group: int = 0
    e4m3: bool = False
    chosen: bool = False
    value_format: str = ""

    def __str__(self) -> str:
        kind = "" if self.format == "plain" else f"{self.format} "
        return f"{kind}pages of {self.page}"


@dataclass(frozen=True)
class Held:
    """store [P, G, PAGE, D, or the bytes of D channels], scales [P, G, PAGE, .], pages [B, N]: it stands for a tensor
    [B, G, N * PAGE, D]."""

    store: Tensor
    scales: Tensor | None
    pages: Tensor
    format: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        _, heads, page, stored = self.store.shape
        return self.pages.shape[0], heads, self.pages.shape[1] * page, FORMATS[self.format].channels(stored)

    @property
    def layout(self) -> Layout:
        """Of keys; of values too, if each of their rows has one scale."""
        groups = 1 if self.scales is None else self.scales.shape[3]
        machine = machine_of(self.store.device)
        e4m3 = self.format == "fp8" and machine.backend == "cuda" and machine.capability >= (8, 9) and self.store.is_cuda
        return Layout(self.format, self.store.shape[2], self.shape[3] // groups if groups > 1 else 0, e4m3)

    def table(self) -> tuple[Tensor, tuple[int, ...]]:
        """Which pages, as the Hopper kernel takes it, and the strides of sequences, heads and entries."""
        return self.pages, (self.pages.stride(0), 0, self.pages.stride(1))

    def arguments(self) -> tuple[Any, tuple[int, ...]]:
        """As `pages.py` takes it."""
        scales, strides = (self.store, (0, 0, 0, 0)) if self.scales is None else (self.scales, self.scales.stride())
        return (self.store, scales, self.pages), (*self.store.stride(), *strides, *self.pages.stride(), len(self.store))


def arguments(x: Tensor | Held) -> tuple[Any, tuple[int, ...]]:
    """A kernel's argument for keys or values, and the one for their strides."""
    return x.arguments() if isinstance(x, Held) else (x, x.stride())


def boxed(x: Tensor | Held) -> tuple[Tensor, ...]:
    """The memory it lies in, [.., S, D]; of quantised pages the scales too, [P, G, ., PAGE]."""
    if not isinstance(x, Held):
        return (x,)
    return (x.store,) if x.scales is None else (x.store, x.scales.transpose(2, 3))


def layout_of(k: Tensor | Held, v: Tensor | Held | None = None) -> Layout | None:
    """None of dense keys; values are as the keys are, unless they are given."""
    if not isinstance(k, Held):
        return None
    return replace(k.layout, value_format=v.format) if isinstance(v, Held) and v.format != k.format else k.layout
