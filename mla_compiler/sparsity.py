"""Which work an attention may leave out, and on what terms

    exact               nothing but what the mask hides
    error_budget=0.01   p.v of tiles, at most 0.01 of any row's softmax: |out - dense| <= 2 * 0.01 * max |v|, proved
    threshold=0.1       p.v of a tile in which no row has a key of 0.1 of the weight that the best keys before it have together
    pages.share=0.05    q.k and p.v of a tile that, by the least and greatest of its keys, has 0.05 of no row's softmax
    pages=0.125         q.k and p.v of all but the eighth of the pages that so promise most;  pages.mass=0.95 by their sum,
                        pages.budget=0.01 of those that are proved to hold at most 0.01 of any row
    lsh=0.25            q.k and p.v of all but the quarter of the tiles that signatures of random hyperplanes find most alike;
                        lsh.mass=0.95 by estimated weight

A text is one of these; after one that leaves out q.k, `+threshold=0.1` goes on among what it keeps. Rules, `pattern: policy`
joined by `;`, give each layer the last policy whose pattern, a regular expression, is found in its name; a policy without
pattern is for all: `threshold=0.1; layers[.][01][.]: exact`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import OptionError

EXACT = "exact"
MEASURES: Mapping[str, tuple[str, ...]] = {
    EXACT: (), "error_budget": ("",), "threshold": ("",), "pages": ("", "share", "mass", "budget"), "lsh": ("", "mass"),
}
"""What the number of each policy may say."""
SELECTING = ("pages", "lsh")

FILE_FORMAT = "flashmla.policy/1"


@dataclass(frozen=True)
class Sparsity:
    """One policy. `value` is in (0, 1]: a share of the softmax (error_budget, share, mass, budget), of tiles (pages, lsh) or
    of weights (threshold). `then`: the threshold that goes on among the tiles chosen by pages or lsh; 0 if none does.

    Raises OptionError for a policy, a measure or a number there is none of.
    """

    policy: str = EXACT
    measure: str = ""
    value: float = 0.0
    then: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in MEASURES:
            raise OptionError(f"sparsity {self.policy!r} is unknown", f"it is one of {', '.join(MEASURES)}")
        if self.policy == EXACT:
            if self.measure or self.value or self.then:
                raise OptionError("the sparsity exact takes no number", "give exact alone")
            return
        if self.measure not in MEASURES[self.policy]:
            known = ", ".join(f"{self.policy}{'.' * bool(m)}{m}" for m in MEASURES[self.policy])
            raise OptionError(f"sparsity {self.policy}.{self.measure} is unknown", f"it is one of {known}")
        if not 0 < self.value <= 1 or not 0 <= self.then <= 1:
            raise OptionError(f"sparsity {self} is out of range", "the numbers are above 0 and at most 1")
        if self.then and self.policy not in SELECTING:
            raise OptionError(f"sparsity {self}: {self.policy} leaves no q.k out", "a threshold can follow pages or lsh")

    def __str__(self) -> str:
        """Canonical text, which `parse` reads back to the same bits."""
        if self.policy == EXACT:
            return EXACT
        then = f"+threshold={self.then!r}" if self.then else ""
        return f"{self.policy}{'.' * bool(self.measure)}{self.measure}={self.value!r}{then}"

    @property
    def selects(self) -> bool:
        """Whether tiles are chosen before the attention, so that q.k is left out with p.v."""
        return self.policy in SELECTING

    @property
    def ratio(self) -> float:
        """The threshold; 0 if there is none."""
        return self.value if self.policy == "threshold" else self.then

    @property
    def log2_limit(self) -> float:
        """log2 of the threshold, or of the error budget; -inf if there is none."""
        number = self.value if self.policy == "error_budget" else self.ratio
        return math.log2(number) if number else -math.inf

    @property
    def proved(self) -> bool:
        """Whether the error has a bound for every input."""
        return self.policy in (EXACT, "error_budget") or (self.measure == "budget" and not self.then)

    @staticmethod
    def parse(text: str) -> Sparsity:
        """`threshold=0.1`, `pages.share=0.05+threshold=0.1`, `exact`. Raises OptionError."""
        number = r"([0-9.eE+-]+?)"
        found = re.fullmatch(rf"\s*(\w+)(?:\.(\w+))?\s*(?:=\s*{number})?\s*(?:[+]\s*threshold\s*=\s*{number})?\s*", text)
        if not found:
            raise OptionError(f"the sparsity {text!r} cannot be read", "for example threshold=0.1")
        policy, measure, value, then = found.groups()
        try:
            numbers = float(value or 0), float(then or 0)
        except ValueError as error:
            raise OptionError(f"the sparsity {text!r} has no number: {error}", "for example threshold=0.1") from error
        return Sparsity(policy, measure or "", *numbers)


EXACTLY = Sparsity()


@dataclass(frozen=True)
class Rules:
    """Which policy each layer has: (pattern, policy) in order, the last that fits counts; exact if none does."""

    entries: tuple[tuple[str, Sparsity], ...] = ()

    def __str__(self) -> str:
        """What `parse` reads back, if no pattern has a semicolon."""
        return "; ".join(f"{pattern}: {policy}" if pattern else str(policy) for pattern, policy in self.entries)

    def of(self, layer: str) -> Sparsity:
        fitting = [policy for pattern, policy in self.entries if re.search(pattern, layer)]
        return fitting[-1] if fitting else EXACTLY

    @staticmethod
    def parse(text: str) -> Rules:
        """`policy; pattern: policy; ...`. Raises OptionError naming the rule."""
        return Rules(tuple(_rule(part) for part in text.split(";") if part.strip()))

    @staticmethod
    def read(path: str) -> Rules:
        """The rules of a file that `flashmla calibrate` wrote. Raises OptionError if it is none."""
        try:
            found = json.loads(Path(path).read_text())
            if found["format"] != FILE_FORMAT:
                raise OptionError(f"the policy file {path} has the format {found['format']!r}", f"this is {FILE_FORMAT}")
            return Rules(tuple((f"{re.escape(layer)}$", Sparsity.parse(text)) for layer, text in found["layers"].items()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"the policy file {path} cannot be read: {error}", "flashmla calibrate writes one") from error


def _rule(text: str) -> tuple[str, Sparsity]:
    pattern, colon, policy = text.rpartition(":")
    try:
        re.compile(pattern.strip())
    except re.error as error:
        raise OptionError(f"{pattern.strip()!r} is not a regular expression: {error}",
                          "a rule is `pattern: policy`") from error
    return (pattern.strip() if colon else ""), Sparsity.parse(policy)
