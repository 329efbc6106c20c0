"""A pool as those who serve meet it, case by case, and what came of each: figures by their unit, bars among them.

    generate   model.generate over pages and over transformers' static cache, both compiled
    append     the writing of one token of every sequence, beside the step that it is part of
    offload    steps whose layers lie on the host in turn, beside the same steps and the same copies alone
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .bars import Judged, Limit, judge, missed
from .cases import FLASHMLA, INDUCTOR, LLAMA_8B, TINY

GENERATE, APPEND, OFFLOAD = "generate", "append", "offload"
STATIC, OF_STEP, HIDDEN = "x the static cache", "% of the step", "% of the copy hidden"
"""Units of the bars."""
COLUMNS = (INDUCTOR, FLASHMLA)
"""Of generate: over a static cache, and over a pool."""
K = 1024


@dataclass(frozen=True)
class Serving:
    """`batch` sequences of `context` tokens in Llama-8B's shape with `layers` layers; `tokens`: decoded in one run.

    reserved: tokens that a static cache has room for, 0 for those there are; offload: so many layers lie on the host, evenly
    spread.
    """

    name: str
    kind: str
    batch: int
    context: int
    tokens: int
    layers: int
    bars: tuple[Limit, ...] = ()
    reserved: int = 0
    offload: int = 0
    toy: bool = False

    @property
    def shape(self) -> Mapping[str, Any]:
        return {**(TINY if self.toy else LLAMA_8B), "num_hidden_layers": self.layers}

    @property
    def written(self) -> int:
        """Tokens that a sequence comes to."""
        return self.context + self.tokens

    @property
    def longest(self) -> int:
        """Tokens that a sequence might have."""
        return max(self.reserved, self.written)

    def shrunk(self) -> Serving:
        """The same case at a size for any machine, with no bar."""
        return dataclasses.replace(
            self, batch=min(self.batch, 2), context=self.context // 64, tokens=min(self.tokens, 64), layers=min(self.layers, 2),
            bars=(), reserved=self.reserved // 64, offload=min(self.offload, 1), toy=True)


@dataclass
class Served:
    """One case. figures: by their unit; failure: why there are none."""

    case: Serving
    figures: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def ratio(self, peer: str, of: str = "time") -> float | None:
        """No bar of these cases is a ratio to a column: those are figures too."""
        raise NotImplementedError(peer, of)

    def figure(self, unit: str) -> float | None:
        return self.figures.get(unit)

    def bars(self) -> list[Judged]:
        return judge(self.case.bars, self)


class Wrong(Exception):
    """What was to be timed does not give the right answer."""


def failures(rows: list[Served]) -> Iterator[str]:
    """What makes the benchmark fail: no right result, or a bar missed."""
    for row in rows:
        if row.failure:
            yield f"{row.case.name}: {row.failure}"
        yield from (f"{row.case.name}: {line}" for line in missed(row.bars()))


SERVING = (
    Serving("generate B=16, 8k of 16k", GENERATE, 16, 8 * K, 64, 8, (Limit(STATIC, 5, least=True),), reserved=16 * K),
    Serving("generate B=16, 8k", GENERATE, 16, 8 * K, 64, 8, (Limit(STATIC, 5, least=True, goal=True),)),
    Serving("append B=64, 32 layers, 2k", APPEND, 64, 2 * K, 64, 32, (Limit(OF_STEP, 1),)),
    Serving("offload B=1, 4 of 32 layers, 32k", OFFLOAD, 1, 32 * K, 96, 32, (Limit(HIDDEN, 80, least=True),), offload=4),
)
