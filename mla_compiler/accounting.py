"""accounts(): what attentions left out while they ran under `flashmla.account`, as a table, as JSON, as a picture

    options = {"flashmla.sparsity": "threshold=0.05", "flashmla.account": True}
    torch.compile(model, backend="flashmla", options=options)(**inputs)
    print(mla_compiler.accounts());  mla_compiler.accounts().draw("tiles.png")
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .ledger import LEDGER, Account


@dataclass(frozen=True)
class Accounts:
    """One account for each site and each policy that it ran under."""

    each: tuple[Account, ...]

    def text(self, heads: bool = False, width: int = 120) -> str:
        """A row for each site; with `heads`, also for each query head."""
        from .accounts_table import text

        return text(self.each, heads, width)

    def json(self) -> str:
        """All but which tiles."""
        from .accounts_table import to_json

        return to_json(self.each)

    def draw(self, path: str | Path, heads: bool = False) -> None:
        """A PNG: which tiles each site computed, in the call with most tiles; with `heads` a panel for each head.

        Needs matplotlib. Raises OptionError where it is absent or there is nothing to draw.
        """
        from .accounts_table import draw

        draw(self.each, path, heads)

    @property
    def left_out(self) -> float:
        """The share of all FLOPs."""
        total = sum(account.flops[0] for account in self.each)
        return sum(account.flops[1] for account in self.each) / total if total else 0.0

    def __str__(self) -> str:
        return self.text()

    def __iter__(self) -> Iterator[Account]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)


def accounts(forget: bool = False) -> Accounts:
    """Of every site that ran under `flashmla.account` in this process; `forget`: they begin anew after it. Reads the device."""
    found = Accounts(tuple(sums.account(*key) for key, sums in LEDGER.sums.items()))
    if forget:
        LEDGER.sums.clear()
    return found
